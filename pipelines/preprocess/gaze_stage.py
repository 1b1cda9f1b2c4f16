"""The second actor of preprocess: a decoded shard -> gazed, packed and committed.

Frames cross one process boundary, as uint8 at model resolution, and end here: what goes on to the driver are counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from autogaze.gaze import Gaze
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames_into, encode_frames, jpeg_members
from pipelines.dataset.shards import Outcome
from pipelines.dataset.targets import make_targets
from pipelines.gazing import gazers
from pipelines.gazing.gazers import Gazer, ResolvedGaze
from pipelines.preprocess.rows import CommittedShard, DecodedShard
from pipelines.preprocess.stopwatch import Stopwatch


class GazeStage:
    """Ray Data actor: a decoded shard -> gazed, packed and committed; CommittedShard is left, as a row.

    Args:
        output: URL of the dataset.
        plan: its plan.
        gazer: what gazes.
        storage: how frames are stored: see pipelines.dataset.frames.
        device: cpu, cuda or mps.
    """

    def __init__(self, output: str, plan: DatasetPlan, gazer: ResolvedGaze, storage: str, device: str) -> None:
        torch.set_num_threads(1)  # this actor asks Ray for at most one CPU
        self.output, self.plan, self.storage = output, plan, storage
        self.gazer = gazers.start(gazer, device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.commit(DecodedShard.from_row(row)).to_row()

    def commit(self, decoded: DecodedShard) -> CommittedShard:
        """Gaze at a shard's clips, pack it and commit it."""
        watch = Stopwatch(decoded.seconds)
        with watch.time("gaze"):
            rows = self.plan.clips_of(decoded.shard)
            with watch.time("search"):
                outcomes = self._outcomes(decoded, rows["clip"].tolist())
            with watch.time("write"):
                tar, index = shards.build_shard(rows, outcomes, self.gazer.stops)
                shards.commit_shard(self.output, decoded.shard, tar, index)
        gazes = [outcome.gaze for outcome in outcomes if outcome.gaze is not None]
        return CommittedShard(
            shard=decoded.shard,
            clips=len(rows),
            bytes=len(tar) + len(index),
            ok=len(gazes),
            frames=sum(gaze.num_frames for gaze in gazes),
            tokens=sum(int(gaze.counts()[0]) for gaze in gazes),
            loss=float(sum(float(gaze.final().mean()) for gaze in gazes)),
            met=float(sum(float(gaze.met(self.gazer.stops).float().mean()) for gaze in gazes)),
            failed=Counter(str(outcome.reason) for outcome in outcomes if outcome.gaze is None),
            restarts=decoded.restarts,
            fallbacks=decoded.fallbacks,
            seconds=watch,
            began=decoded.began,
            ended=time.time(),
        )

    def _outcomes(self, decoded: DecodedShard, clips: list[str]) -> list[Outcome]:
        """What became of each clip of a shard, in order of position."""
        ok, frames = decoded.ok, decoded.frames
        good_clips = [clip for clip, good in zip(clips, ok, strict=True) if good]
        gazed = frames if ok.all() else frames[ok]
        if self.gazer.settings.verify and self.storage == "jpeg":
            gazed = _as_stored(decoded.jpegs, gazed.shape)
        gazes = iter(gaze_each(self.gazer, gazed, good_clips))
        jpegs = iter(decoded.jpegs)
        outcomes: list[Outcome] = []
        for position, clip in enumerate(clips):
            if not ok[position]:
                failure = decoded.failures[position]
                outcomes.append(Outcome(reason=failure.reason, detail=failure.detail))
                continue
            if self.storage == "jpeg":
                members = jpeg_members(list(islice(jpegs, frames.shape[1])))
            else:
                members = encode_frames(frames[position], self.storage, 0)
            reconstructor, count = self.gazer.reconstructor, self.gazer.targets
            if reconstructor is not None and count:
                members.append(make_targets(clip, frames[position], members, count, reconstructor))
            outcomes.append(Outcome(gaze=next(gazes), members=members))
        return outcomes


def _as_stored(jpegs: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """The frames uint8 [K, T, S, S, 3] that a reader of the shard sees: what a verified gaze is measured on.

    jpegs: of all frames, clip after clip.
    """
    frames = np.empty(shape, np.uint8)
    for clip, out in enumerate(frames):
        decode_frames_into(dict(jpeg_members(jpegs[clip * shape[1] : (clip + 1) * shape[1]])), out)
    return frames


def gaze_each(gazer: Gazer, frames: np.ndarray, clips: list[str]) -> list[Gaze]:
    """The gaze of each clip, as it would be had the clip been alone. frames: uint8 [K, T, S, S, 3] of K clips.

    Unused slots belong to a clip: one that has none does not carry the places and slots of the batch.
    """
    if not clips:
        return []
    gaze = gazer.gaze(frames, clips)
    each = [gaze[b] for b in range(gaze.clips)]
    return [clip if _has_holes(clip) else replace(clip, places=None, slots=None) for clip in each]


def _has_holes(clip: Gaze) -> bool:
    return clip.slots is not None and not torch.equal(clip.slots, clip.lengths)
