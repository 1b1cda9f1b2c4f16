"""The second actor of encode: a shard's frames -> gazed at if need be, encoded, packed and committed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.vision import GazedEncoder, TokenFeatures, by_coverage
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset import shards
from pipelines.dataset.features import FINAL, ClipFeatures, FeatureOutcome, build_feature_shard
from pipelines.encode.encoders import ResolvedEncoder, start_encoder
from pipelines.gazing import gazers
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.preprocess.gaze_stage import gaze_each
from pipelines.preprocess.rows import CommittedShard, DecodedShard
from pipelines.preprocess.stopwatch import Stopwatch


class Storing(NamedTuple):
    """What is stored of each clip: `pooled` features of clip or frame, the type of all, and tokens of one pass."""

    pooled: list[str]
    dtype: str
    batch: int


class EncodeStage:
    """Ray Data actor: a shard's frames -> encoded, packed and committed; CommittedShard is left, as a row.

    Args:
        output: URL of the dataset of features.
        plan: its plan.
        encoder: what encodes, and which layers are stored.
        storing: what else is stored, and how.
        gaze: what gazes; or the vocabulary of the gazes that come with the frames.
        device: cpu, cuda or mps.
    """

    def __init__(
        self,
        output: str,
        plan: DatasetPlan,
        encoder: ResolvedEncoder,
        storing: Storing,
        gaze: ResolvedGaze | PatchVocabulary,
        device: str,
    ) -> None:
        torch.set_num_threads(1)  # this actor asks Ray for at most one CPU
        self.output, self.plan, self.resolved, self.storing = output, plan, encoder, storing
        self.encoder = start_encoder(encoder, device)
        self.gazer = gazers.start(gaze, device) if isinstance(gaze, ResolvedGaze) else None
        self.gazed = gaze.vocabulary if isinstance(gaze, ResolvedGaze) else gaze

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.commit(DecodedShard.from_row(row)).to_row()

    def commit(self, decoded: DecodedShard) -> CommittedShard:
        """Encode a shard's clips, pack it and commit it."""
        watch = Stopwatch(decoded.seconds)
        with watch.time("features"):
            rows = self.plan.clips_of(decoded.shard)
            with watch.time("gazing"):
                outcomes, gazes = self._gazes(decoded, rows["clip"].tolist())
            with watch.time("forward"):
                self._encode(decoded, gazes, outcomes)
            with watch.time("packing"):
                each = [outcomes[position] for position in range(len(rows))]
                size = self.encoder.vocabulary.size
                tar, index = build_feature_shard(rows, each, self.storing.dtype, size)
                shards.commit_shard(self.output, decoded.shard, tar, index)
        ok = {position: outcome.features for position, outcome in outcomes.items() if outcome.features is not None}
        seen = [gazes[position] for position in ok] if self.gazer is not None else []
        stops = 0.0 if self.gazer is None else self.gazer.stops
        failed = [outcome for outcome in each if outcome.features is None and not outcome.filtered]
        return CommittedShard(
            shard=decoded.shard,
            clips=len(rows),
            bytes=len(tar) + len(index),
            ok=len(ok),
            frames=len(ok) * decoded.frames.shape[1],
            tokens=sum(len(features.id) for features in ok.values()),
            loss=float(sum(float(gaze.final().mean()) for gaze in seen)),
            met=float(sum(float(gaze.met(stops).float().mean()) for gaze in seen)),
            failed=Counter(str(outcome.reason) for outcome in failed),
            restarts=decoded.restarts,
            fallbacks=decoded.fallbacks,
            seconds=watch,
            began=decoded.began,
            ended=time.time(),
            filtered=len(rows) - len(ok) - len(failed),
        )

    def _gazes(self, decoded: DecodedShard, clips: list[str]) -> tuple[dict[int, FeatureOutcome], dict[int, Gaze]]:
        """The gaze of each clip that can be encoded, by position; and what became of the others."""
        outcomes = {
            position: FeatureOutcome(reason=failure.reason, detail=failure.detail, filtered=failure.filtered)
            for position, failure in decoded.failures.items()
        }
        ok = decoded.ok
        good = np.flatnonzero(ok).tolist()
        if self.gazer is not None:
            frames = decoded.frames if ok.all() else decoded.frames[ok]
            gazed = gaze_each(self.gazer, frames, [clips[position] for position in good])
            return outcomes, dict(zip(good, gazed, strict=True))
        gazes = {}
        for position, data in zip(good, decoded.gazes, strict=True):
            try:
                gazes[position] = _checked(Gaze.from_npz(data, self.gazed), decoded.frames.shape[1])
            except ValueError as error:
                outcomes[position] = FeatureOutcome(reason="damaged", detail=f"its gaze cannot be read: {error}")
        return outcomes, gazes

    def _encode(self, decoded: DecodedShard, gazes: dict[int, Gaze], outcomes: dict[int, FeatureOutcome]) -> None:
        """Add what becomes of the clips that have a gaze."""
        own = {position: _in_vocabulary(gaze, self.encoder) for position, gaze in gazes.items()}
        sources = dict(zip(np.flatnonzero(decoded.ok).tolist(), decoded.sources, strict=bool(decoded.sources)))
        for positions in _passes({position: len(gaze.tokens) for position, gaze in own.items()}, self.storing.batch):
            with torch.inference_mode():
                gaze = Gaze.cat([own[position] for position in positions])
                out = self.encoder.encode(decoded.frames[positions], gaze, hidden_states=self.resolved.hidden)
                stored = self._stored(out)
            for position, features in zip(positions, stored, strict=True):
                if features is None:
                    detail = f"a feature is NaN, infinite or too large for {self.storing.dtype}"
                    outcomes[position] = FeatureOutcome(reason="not_finite", detail=detail)
                else:
                    outcomes[position] = FeatureOutcome(features, sources.get(position, ""))

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


def _passes(tokens: dict[int, int], most: int) -> Iterator[list[int]]:
    """Clips by position that are encoded together: in order, at most so many tokens, at least one clip."""
    together: list[int] = []
    held = 0
    for position in sorted(tokens):
        if together and held + tokens[position] > most:
            yield together
            together, held = [], 0
        together.append(position)
        held += tokens[position]
    if together:
        yield together


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    """float16 as it is, bfloat16 as its bits, uint16."""
    if values.dtype == torch.bfloat16:
        return values.cpu().view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray = values.cpu().numpy()
    return array
