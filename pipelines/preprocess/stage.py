"""The actor of preprocess: a shard's number -> decoded, gazed at, packed and committed, clip by clip.

Frames go from a decoder's memory straight to what gazes. What goes on to the driver are counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from autogaze.gaze import Gaze
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset.frames import encode_frames, jpeg_members
from pipelines.dataset.indexes import INDEX_SCHEMA
from pipelines.dataset.shards import Outcome, packed, writing_shard
from pipelines.dataset.targets import make_targets
from pipelines.gazing.gazers import Gazer, ResolvedGaze
from pipelines.preprocess.decoding import ClipDecoders, Decoding
from pipelines.preprocess.gaze_threads import GazeThreads
from pipelines.preprocess.progress import Reporter
from pipelines.preprocess.rows import CommittedShard, DecodedClip, Effort
from pipelines.preprocess.streams import take_short_turns
from pipelines.storage import store


class PreprocessStage:
    """Ray Data actor: a shard's number -> CommittedShard, as a row. For two threads: see ClipDecoders.

    Args:
        output: URL of the dataset.
        plan: its plan.
        gaze: what gazes.
        decoding: how its decoders decode, and how many there are.
        device: cpu, cuda or mps.
        gazers: threads that gaze.
        report: told how many clips of a shard are done.
    """

    def __init__(
        self,
        output: str,
        plan: DatasetPlan,
        gaze: ResolvedGaze,
        decoding: Decoding,
        device: str,
        gazers: int = 1,
        report: Reporter | None = None,
    ) -> None:
        self.output, self.storage, self.report = output, decoding.storage, report or Reporter()
        store.clear_spools(output)
        take_short_turns()
        self.threads = GazeThreads(gaze, device, gazers, decoding.storage)
        self.decoders = ClipDecoders(plan, decoding)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.make(int(row["shard"])).to_row()

    def close(self) -> None:
        """End its threads and children."""
        self.threads.close()
        self.decoders.close()

    def make(self, shard: int) -> CommittedShard:
        """Make a shard and commit it. Raises PipelineError, StoreError."""
        done, effort, stops = CommittedShard(shard), Effort(), self.threads.gazer.stops
        with ExitStack() as stack:
            made = stack.enter_context(writing_shard(self.output, shard, INDEX_SCHEMA))
            for group, search in self.threads.gazed(self.decoders.clips(shard, effort), self._outcomes):
                effort.seconds["search"] += search
                with effort.seconds.time("write"):
                    for clip, outcome in group:
                        made.writer.add(clip.row, packed(outcome, stops))
                        _count(done, outcome, stops)
                self.report(shard, done.clips)
            with effort.seconds.time("write"):
                stack.close()
        # A group is gazed at while the one before is written.
        effort.seconds["gaze"] = max(effort.seconds["search"], effort.seconds["write"])
        return done.committed(made.bytes, effort)

    def _outcomes(self, group: list[DecodedClip], gazes: list[Gaze], gazer: Gazer) -> list[tuple[DecodedClip, Outcome]]:
        """What became of each clip of a group."""
        found, outcomes = iter(gazes), []
        for clip in group:
            if clip.failure is not None:
                outcomes.append((clip, Outcome(reason=clip.failure.reason, detail=clip.failure.detail)))
                continue
            assert clip.frames is not None
            jpeg = self.storage == "jpeg"
            members = jpeg_members(clip.jpegs) if jpeg else encode_frames(clip.frames, self.storage, 0)
            if gazer.reconstructor is not None and gazer.targets:
                members.append(make_targets(clip.name, clip.frames, members, gazer.targets, gazer.reconstructor))
            outcomes.append((replace(clip, frames=None, jpegs=[]), Outcome(gaze=next(found), members=members)))
        return outcomes


def _count(done: CommittedShard, outcome: Outcome, stops: float | Sequence[float]) -> None:
    gaze = outcome.gaze
    if gaze is None:
        done.count_failure(str(outcome.reason))
        return
    done.count(gaze.num_frames, int(gaze.counts()[0]))
    done.loss += float(gaze.final().mean())
    done.met += float(gaze.met(stops).float().mean())
