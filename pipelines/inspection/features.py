"""What a vision transformer loses by each way of gazing: its features of gazed patches beside those of full frames."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from autogaze.vision import GazedEncoder, TokenFeatures
from autogaze.vision.agreement import Retrieval, agreement, retrieval
from autogaze.vision.merging import merge, within_reach
from pipelines.errors import PipelineError
from pipelines.inspection.evaluate import standard_error
from pipelines.inspection.gazes import Chooser, DeviceClock
from pipelines.inspection.methods import EVERY_NTH, MERGING
from pipelines.inspection.reading import ClipBatch


@dataclass(frozen=True)
class Cosine:
    """A mean over clips, in [-1, 1], and its standard error; None for a single clip."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class FeaturePoint:
    """One method at one ratio. Means over clips.

    Attributes:
        asked: the ratio asked for; None: each frame has as many patches as in the stored gaze.
        tokens: patches of a clip that the network sees. Of token merging, the mean over its layers.
        ratio: the same as a share of all patches of all scales.
        own: cosine of gazed patches of the finest scale with their places in the full frame. None: there are none.
        dense: of the dense maps. pooled: of the clips' pooled features.
        found: retrieval of a clip among all by its pooled feature. None: there is one clip.
        choosing, encoding: seconds a clip, as `DeviceClock` counts them.
    """

    asked: float | None
    tokens: float
    ratio: float
    own: Cosine | None
    dense: Cosine
    pooled: Cosine
    found: Retrieval | None
    choosing: float
    encoding: float


@dataclass(frozen=True)
class FeatureCurve:
    """One method: its points by rising ratio, and `as_stored`. None: token merging cannot reach so few tokens."""

    method: str
    points: list[FeaturePoint]
    as_stored: FeaturePoint | None


@dataclass(frozen=True)
class FullFrames:
    """What full frames take: tokens of a clip, and seconds of a clip."""

    tokens: int
    encoding: float


@dataclass
class _Sums:
    """What was measured of one method at one ratio, clip by clip."""

    tokens: list[float] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)  # [B, 3]: own, dense, pooled
    pooled: list[torch.Tensor] = field(default_factory=list)  # [B, D]
    choosing: float = 0.0
    encoding: float = 0.0
    unreached: bool = False  # token merging cannot come down to so few tokens in some clip


class FeatureMeasure:
    """Compares features of methods at ratios with those of full frames, batch after batch.

    Frames are full where every patch of the finest scale is seen, each frame alone, as the network was trained. Gazed
    patches attend as the encoder is set to. Methods that see whole frames see each alone, too, by the teacher.
    """

    def __init__(
        self,
        chooser: Chooser,
        encoder: GazedEncoder,
        teacher: GazedEncoder,
        ratios: Sequence[float],
        methods: Sequence[str],
        key: str,
    ) -> None:
        """chooser: of the encoder's vocabulary. ratios: in (0, 1]. methods: names of pipelines.inspection.methods.

        teacher: whose features of full frames are compared with: the encoder, or what it was trained from, of as many
        places and numbers. key: the encoder's setting, for messages.
        """
        self._chooser, self._gazed, self._alone = chooser, encoder, teacher.sharing(attention="frame")
        self._ratios, self._methods, self._key = sorted(set(ratios)), list(methods), key
        asked = itertools.product(self._methods, [*self._ratios, None])
        self._sums: dict[tuple[str, float | None], _Sums] = {each: _Sums() for each in asked}
        self._full: list[torch.Tensor] = []
        self._seconds = 0.0
        self._frames = 0

    def add(self, batch: ClipBatch) -> None:
        """Measure some clips. Raises PipelineError for features that are no numbers."""
        chooser = self._chooser
        chooser.begin(batch)
        if not self._full:
            self._alone.encode(chooser.given[:1, :1])  # the first call takes longer than any other
        clock = DeviceClock(self._device)
        full = self._alone.encode(chooser.given)
        self._seconds += clock.seconds()
        self._require_finite(full)
        self._full.append(full.pool().clips)
        self._frames = chooser.given.shape[1]
        for (method, ratio), sums in self._sums.items():
            if method == MERGING:
                self._add_merged(full, chooser.lengths(method, ratio), sums)
                continue
            chosen = chooser.gaze(method, ratio)
            encoder = self._alone if method == EVERY_NTH else self._gazed
            clock = DeviceClock(self._device)
            out = encoder.encode(chooser.given, chosen.gaze)
            sums.encoding += clock.seconds()
            sums.choosing += chosen.seconds
            sums.tokens += chosen.gaze.counts().tolist()
            self._add_features(full, out, sums)

    @property
    def full_frames(self) -> FullFrames:
        """What the clips so far took in full."""
        return FullFrames(self._frames * self._gazed.vocabulary.counts[-1], self._seconds / self._clips)

    def curves(self) -> list[FeatureCurve]:
        """The curve of each method over the clips so far."""
        full = torch.cat(self._full)
        curves = []
        for name in self._methods:
            points = {ratio: self._point(ratio, self._sums[name, ratio], full) for ratio in [*self._ratios, None]}
            whole = points[None]
            kept = [point for ratio, point in points.items() if point is not None and ratio is not None]
            if name == "stored" and whole is not None:
                # A ratio at which no stored gaze was cut is the point of the whole gaze once more.
                kept = [point for point in kept if point.tokens != whole.tokens] + [whole]
            curves.append(FeatureCurve(name, kept, whole))
        return curves

    @property
    def _device(self) -> str:
        return self._gazed.device.type

    @property
    def _clips(self) -> int:
        return sum(len(part) for part in self._full)

    def _add_merged(self, full: TokenFeatures, lengths: torch.Tensor, sums: _Sums) -> None:
        """Token merging of each clip to as many tokens as it has of `lengths`."""
        patches = lengths.shape[1] * self._gazed.vocabulary.counts[-1]
        shares = [min(total / patches, 1.0) for total in lengths.sum(dim=1).tolist()]
        if sums.unreached or not all(within_reach(self._alone, share) for share in shares):
            sums.unreached = True
            return
        clock = DeviceClock(self._device)
        merged = [merge(self._alone, self._chooser.given[b : b + 1], share) for b, share in enumerate(shares)]
        sums.encoding += clock.seconds()
        sums.tokens += [lengths.shape[1] * one.tokens_per_frame for one in merged]
        self._add_features(full, TokenFeatures.cat([one.features for one in merged]), sums, own=False)

    def _add_features(self, full: TokenFeatures, out: TokenFeatures, sums: _Sums, own: bool = True) -> None:
        self._require_finite(out)
        found = agreement(full, out)
        tokens = found.tokens if own else torch.full_like(found.dense, torch.nan)
        sums.rows.append(torch.stack((tokens, found.dense, found.pooled), dim=1))
        sums.pooled.append(out.pool().clips)

    def _require_finite(self, out: TokenFeatures) -> None:
        if not bool(out.tokens.isfinite().all()):
            raise PipelineError(f"{self._key}: {not_finite(self._gazed)}")

    def _point(self, asked: float | None, sums: _Sums, full: torch.Tensor) -> FeaturePoint | None:
        if sums.unreached:
            return None
        own, dense, pooled = torch.cat(sums.rows).double().cpu().numpy().T
        own = own[~np.isnan(own)]
        tokens, clips = float(np.mean(sums.tokens)), len(full)
        return FeaturePoint(
            asked=asked,
            tokens=tokens,
            ratio=tokens / (self._frames * self._gazed.vocabulary.size),
            own=_cosine(own) if len(own) else None,
            dense=_cosine(dense),
            pooled=_cosine(pooled),
            found=retrieval(torch.cat(sums.pooled), full) if clips > 1 else None,
            choosing=sums.choosing / clips,
            encoding=sums.encoding / clips,
        )


def not_finite(encoder: GazedEncoder) -> str:
    """What to say of an encoder whose features are no numbers."""
    dtype = str(encoder.dtype).removeprefix("torch.")
    remedy = "use another checkpoint" if dtype == "float32" else "use encoder.dtype=float32"
    return f"its features of these frames are NaN or infinite in {dtype}; {remedy}"


def _cosine(values: np.ndarray) -> Cosine:
    return Cosine(float(values.mean()), standard_error(values))
