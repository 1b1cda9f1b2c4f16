"""The actor of encode: a shard's number -> its clips, gazed at, encoded, packed and committed, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.vision import GazedEncoder, TokenFeatures, by_coverage
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset.features import FEATURE_INDEX_SCHEMA, FINAL, ClipFeatures, FeatureOutcome, packed_features
from pipelines.dataset.shards import writing_shard
from pipelines.encode.encoders import ResolvedEncoder, start_encoder
from pipelines.encode.stored import StoredClips
from pipelines.gazing.gazers import Gazer, ResolvedGaze
from pipelines.preprocess.decoding import ClipDecoders, Decoding
from pipelines.preprocess.gaze_threads import GazeThreads, one_thread
from pipelines.preprocess.progress import Reporter
from pipelines.preprocess.rows import CommittedShard, DecodedClip, Effort
from pipelines.preprocess.stopwatch import Stopwatch
from pipelines.preprocess.streams import OwnThreads, clip_array, take_short_turns
from pipelines.storage import store


class Storing(NamedTuple):
    """What is stored of each clip: `pooled` features of clip or frame, the type of all, and tokens of one pass."""

    pooled: list[str]
    dtype: str
    batch: int


class ClipSource(Protocol):
    """What says how an actor comes by its clips."""

    def open(self) -> Clips: ...


class Clips(Protocol):
    """Clips of shards, decoded: see ClipDecoders and StoredClips."""

    def clips(self, shard: int, effort: Effort) -> Iterator[DecodedClip]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class FromVideos:
    """Clips of the videos of a plan."""

    plan: DatasetPlan
    decoding: Decoding

    def open(self) -> ClipDecoders:
        return ClipDecoders(self.plan, self.decoding)


@dataclass(frozen=True)
class FromDataset:
    """Clips of the gaze dataset at `url`."""

    url: str
    decoding: Decoding

    def open(self) -> StoredClips:
        return StoredClips(self.url, self.decoding)


@dataclass(frozen=True, eq=False)
class GazedClip:
    """A clip with its gaze, and that of it which the encoder reads (`own`); or with what became of it."""

    decoded: DecodedClip
    gaze: Gaze | None
    own: Gaze | None
    outcome: FeatureOutcome | None


class EncodeStage:
    """Ray Data actor: a shard's number -> CommittedShard, as a row. For two threads.

    Args:
        output: URL of the dataset of features.
        source: of the clips, which come with their gazes, or are still to be gazed at.
        encoder: what encodes, and which layers are stored.
        storing: what else is stored, and how.
        gaze: what gazes; or the vocabulary of the gazes that come with the frames.
        device: cpu, cuda or mps.
        encoders: threads that encode, and as many that gaze.
        report: told how many clips of a shard are done.
    """

    def __init__(
        self,
        output: str,
        source: ClipSource,
        encoder: ResolvedEncoder,
        storing: Storing,
        gaze: ResolvedGaze | PatchVocabulary,
        device: str,
        encoders: int = 1,
        report: Reporter | None = None,
    ) -> None:
        one_thread()
        take_short_turns()
        self.output, self.resolved, self.storing, self.report = output, encoder, storing, report or Reporter()
        store.clear_spools(output)
        self.encoders = OwnThreads(lambda: start_encoder(encoder, device), encoders, one_thread)
        self.encoder = self.encoders.first
        self.gazers = GazeThreads(gaze, device, encoders, "none") if isinstance(gaze, ResolvedGaze) else None
        self.gazed = gaze.vocabulary if isinstance(gaze, ResolvedGaze) else gaze
        self.source = source.open()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.make(int(row["shard"])).to_row()

    def close(self) -> None:
        """End its threads and children."""
        for each in (self.gazers, self.encoders, self.source):
            if each is not None:
                each.close()

    def make(self, shard: int) -> CommittedShard:
        """Encode a shard's clips, pack and commit it. Raises PipelineError, StoreError."""
        done, effort, size = CommittedShard(shard), Effort(), self.encoder.vocabulary.size
        seconds = effort.seconds
        with ExitStack() as stack:
            made = stack.enter_context(writing_shard(self.output, shard, FEATURE_INDEX_SCHEMA))
            clips = self._gazes(self.source.clips(shard, effort), seconds)
            for outcomes, forward in self.encoders.in_order(self._encoded, _passes(clips, self.storing.batch)):
                seconds["forward"] += forward
                with seconds.time("packing"):
                    for clip, outcome in outcomes:
                        row = clip.decoded.row
                        made.writer.add(row, packed_features(outcome, int(row["frames"]), self.storing.dtype, size))
                        self._count(done, clip, outcome)
                self.report(shard, done.clips)
            with seconds.time("packing"):
                stack.close()
        # They work on different clips at the same time.
        seconds["features"] = max(seconds[part] for part in ("gazing", "forward", "packing"))
        return done.committed(made.bytes, effort)

    def _gazes(self, clips: Iterator[DecodedClip], seconds: Stopwatch) -> Iterator[GazedClip]:
        """Each clip with its gaze, or with what became of it."""
        if self.gazers is not None:
            for group, spent in self.gazers.gazed(clips, _with_gazes):
                seconds["gazing"] += spent
                yield from (self._ready(*each) for each in group)
            return
        for clip in clips:
            with seconds.time("gazing"):
                ready = self._read_gaze(clip)
            yield ready

    def _read_gaze(self, clip: DecodedClip) -> GazedClip:
        if clip.frames is None:
            return self._ready(clip, None)
        try:
            return self._ready(clip, _checked(Gaze.from_npz(clip.gaze, self.gazed), len(clip.frames)))
        except ValueError as error:
            outcome = FeatureOutcome(reason="damaged", detail=f"its gaze cannot be read: {error}")
            return GazedClip(clip, None, None, outcome)

    def _ready(self, clip: DecodedClip, gaze: Gaze | None) -> GazedClip:
        if gaze is None:
            assert clip.failure is not None
            reason, detail, filtered = clip.failure
            return GazedClip(clip, None, None, FeatureOutcome(reason=reason, detail=detail, filtered=filtered))
        return GazedClip(clip, gaze, _in_vocabulary(gaze, self.encoder), None)

    def _encoded(self, encoder: GazedEncoder, part: list[GazedClip]) -> list[tuple[GazedClip, FeatureOutcome]]:
        """What becomes of each clip of a pass."""
        own = [(clip.decoded.frames, clip.own) for clip in part if clip.own is not None]
        stored: Iterator[ClipFeatures | None] = iter(())
        if own:
            with torch.inference_mode():
                frames = clip_array([frames for frames, _ in own if frames is not None])
                out = encoder.encode(frames, Gaze.cat([gaze for _, gaze in own]), hidden_states=self.resolved.hidden)
                stored = iter(list(self._stored(out)))
        found = []
        for clip in part:
            outcome = clip.outcome
            if outcome is None:
                features = next(stored)
                outcome = FeatureOutcome(features, clip.decoded.source)
                if features is None:
                    detail = f"a feature is NaN, infinite or too large for {self.storing.dtype}"
                    outcome = FeatureOutcome(reason="not_finite", detail=detail)
            found.append((replace(clip, decoded=replace(clip.decoded, frames=None)), outcome))
        return found

    def _count(self, done: CommittedShard, clip: GazedClip, outcome: FeatureOutcome) -> None:
        if outcome.features is None:
            done.count_failure(str(outcome.reason), outcome.filtered)
            return
        done.count(int(clip.decoded.row["frames"]), len(outcome.features.id))
        if self.gazers is not None and clip.gaze is not None:
            done.loss += float(clip.gaze.final().mean())
            done.met += float(clip.gaze.met(self.gazers.gazer.stops).float().mean())

    def _stored(self, out: TokenFeatures) -> Iterator[ClipFeatures | None]:
        """The features of each clip as they are stored; None where they are no numbers there."""
        hidden = iter(out.hidden_states)
        layers = {name: out.tokens if name == FINAL else next(hidden) for name in self.resolved.layers}
        pooled = {}
        if self.storing.pooled:
            of_clips, of_frames = out.pool()
            pooled = {name: {"clip": of_clips, "frame": of_frames}[name] for name in self.storing.pooled}
        kind = getattr(torch, self.storing.dtype)
        layers, pooled = ({name: x.to(kind) for name, x in each.items()} for each in (layers, pooled))
        level = out.plan.located[0]
        ends = out.plan.lengths.sum(dim=1).cumsum(0).tolist()
        for clip, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            part = slice(begin, end)
            tensors = [x[part] for x in layers.values()] + [x[clip] for x in pooled.values()]
            if not all(bool(x.isfinite().all()) for x in tensors):
                yield None
                continue
            yield ClipFeatures(
                frame=out.plan.frame[part].numpy().astype("<i4"),
                id=out.plan.id[part].numpy().astype("<i4"),
                scale=level[part].numpy().astype(np.uint8),
                layers={name: _to_numpy(x[part]) for name, x in layers.items()},
                pooled={name: _to_numpy(x[clip]) for name, x in pooled.items()},
            )


def _checked(gaze: Gaze, frames: int) -> Gaze:
    if gaze.num_frames != frames:
        raise ValueError(f"it is of {gaze.num_frames} frames, not {frames}")
    return gaze


def _in_vocabulary(gaze: Gaze, encoder: GazedEncoder) -> Gaze:
    """The patches of a gaze alone, in the encoder's vocabulary; that this may be has been checked before."""
    if gaze.vocabulary != encoder.vocabulary:
        return by_coverage(gaze, encoder.vocabulary)
    return Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary)


def _with_gazes(group: list[DecodedClip], gazes: list[Gaze], gazer: Gazer) -> list[tuple[DecodedClip, Gaze | None]]:
    found = iter(gazes)
    return [(clip, None if clip.frames is None else next(found)) for clip in group]


def _passes(clips: Iterable[GazedClip], most: int) -> Iterator[list[GazedClip]]:
    """Clips that are encoded together: in order, at most so many tokens, at least one clip; others in their places."""
    together: list[GazedClip] = []
    held = count = 0
    for clip in clips:
        tokens = 0 if clip.own is None else len(clip.own.tokens)
        if count and clip.own is not None and held + tokens > most:
            yield together
            together, held, count = [], 0, 0
        together.append(clip)
        held, count = held + tokens, count + (clip.own is not None)
    if together:
        yield together


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    """float16 as it is, bfloat16 as its bits, uint16."""
    if values.dtype == torch.bfloat16:
        return values.cpu().view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray = values.cpu().numpy()
    return array
