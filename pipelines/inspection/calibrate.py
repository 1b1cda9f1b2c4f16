"""Calibration of a policy: held-out videos gazed at with stops from strict to loose, their errors measured.

A later frame is gazed at, and rebuilt, from what was kept of earlier ones. So how often frames miss a threshold at a
stop can only be seen by gazing with that stop: cutting one long gaze shorter would measure another policy's frames
(docs/decisions.md). What the statistics do with the losses is in autogaze/calibration.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from autogaze.calibration import QuantileCurve, conformal_bounds, loosest_stop, p_values
from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from autogaze.model import AutoGaze
from autogaze.reconstruction.base import Reconstructor, as_clips
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.inspection.reading import read_clip

FITTED_AT = (1.0, 0.5, 0.25)
"""Parts of the threshold that half A is gazed at with: pairs of predicted and measured error come from these gazes."""
STRICTEST, LOOSEST = 1 / 8, 2.0
"""Parts of the threshold that the curve's error may have at a stop: ends of the scale that is tried."""


@dataclass(frozen=True)
class CalibrationVideo:
    """A video, the unit of calibration. clips: index rows of its ok clips. fingerprint: of its bytes."""

    name: str
    fingerprint: str
    clips: list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What gazing at videos with one stop gave.

    Attributes:
        losses: float64 [videos], of each video the risk: see `Meter`.
        patches: gazed, mean over frames.
        missed: share of all frames that are over the threshold.
        pairs: of frame 0 and of later frames: predicted and measured errors after each token, float32 [2, N].
    """

    losses: np.ndarray
    patches: float
    missed: float
    pairs: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Tried:
    """A stop that was tried on half B. scale: of the threshold. stops: in frame 0 and later. bound, p: see Promise."""

    scale: float
    stops: tuple[float, float]
    risk: float
    missed: float
    patches: float
    bound: float
    p: float
    keeps: bool


def videos_of(dataset: Dataset, rows: pd.DataFrame, clips: int, seed: int) -> list[CalibrationVideo]:
    """The videos of ok index rows, in a random order that depends on seed and their names alone.

    clips: of each video at most, drawn at random; 0: all.
    """
    plan = dataset.plan.set_index("clip")["fingerprint"]
    videos = []
    for name, part in sorted(rows.groupby("video", sort=True)):
        taken = part.to_dict("records")
        random = np.random.default_rng([seed, *str(name).encode()])
        if clips and len(taken) > clips:
            taken = [taken[place] for place in sorted(random.choice(len(taken), clips, replace=False))]
        videos.append((random.random(), CalibrationVideo(str(name), str(plan.loc[taken[0]["clip"]]), taken)))
    return [video for _, video in sorted(videos, key=lambda each: (each[0], each[1].name))]


@dataclass(frozen=True)
class Meter:
    """Gazes at videos with a policy, and measures what it leaves.

    risk: what a video's loss is: the share of its frames whose error is over the threshold; or the excess, the mean
        over frames of how far they are over it, in thresholds, counted as 1 at most.
    batch: clips at once, as gaze=policy takes them. on_clips: is told of clips that are done.
    """

    dataset: Dataset
    policy: AutoGaze
    reconstructor: Reconstructor
    threshold: float
    risk: Literal["share", "excess"]
    max_ratio: float | None
    batch: int
    device: str
    on_clips: Callable[[int], None] = lambda count: None

    def measure(self, videos: Sequence[CalibrationVideo], stops: Sequence[float], pairs: bool = False) -> Measured:
        """Gaze with these stops, one for each frame of a clip.

        pairs: measure the error after every token, not only after a frame's last.
        Raises PipelineError: a clip cannot be read, or an error is not a number.
        """
        errors, gazes = [], []
        for clips in self._batches(videos):
            gaze = self.policy.gaze(clips, max_ratio=self.max_ratio, loss_threshold=list(stops))
            frames = as_clips(clips, self.reconstructor.vocabulary).to(self.device)
            plain = Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary)
            if pairs:
                plain = measure_errors(frames, plain, self.reconstructor)
            errors.append(plain.final() if pairs else self._final(frames, plain))
            gazes.append((gaze, plain))
            self.on_clips(len(clips))
        return self._summed(videos, torch.cat(errors).double().numpy(), gazes)

    def _batches(self, videos: Sequence[CalibrationVideo]) -> Iterator[np.ndarray]:
        rows = [row for video in videos for row in video.clips]
        for begin in range(0, len(rows), self.batch):
            yield np.stack([read_clip(self.dataset, row)[0] for row in rows[begin : begin + self.batch]])

    def _final(self, frames: torch.Tensor, gaze: Gaze) -> torch.Tensor:
        """The error of each frame, rebuilt alone, clip by clip, as labels measure it: float32 [B, T]."""
        rebuild = self.reconstructor.reconstruct
        if self.reconstructor.name == "canvas":  # which rebuilds a frame from its past alone
            return rebuild(frames, gaze).error.cpu()
        return torch.stack(
            [
                torch.cat([rebuild(frames[b : b + 1], gaze[b], [t]).error[0].cpu() for t in range(gaze.num_frames)])
                for b in range(gaze.clips)
            ]
        )

    def _summed(
        self, videos: Sequence[CalibrationVideo], errors: np.ndarray, gazes: Sequence[tuple[Gaze, Gaze]]
    ) -> Measured:
        if not np.isfinite(errors).all():
            raise PipelineError(
                f"a frame has an error that is not a number, measured by {self.reconstructor.name}; give a "
                "reconstructor that trained to an end"
            )
        limit = float(np.float32(self.threshold))
        over = errors > limit
        excess = np.clip((errors - limit) / limit, 0, 1)
        each = (over if self.risk == "share" else excess).mean(axis=1)
        ends = np.cumsum([len(video.clips) for video in videos])[:-1]
        losses = np.array([part.mean() for part in np.split(each, ends)])
        patches = float(sum(float(gaze.counts().sum()) for gaze, _ in gazes)) / over.size
        return Measured(losses, patches, float(over.mean()), _pairs(gazes))


def _pairs(gazes: Sequence[tuple[Gaze, Gaze]]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured error after each token, of frame 0 and of later frames. gazes: predicted, measured."""
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([torch.zeros(2, 0)], [torch.zeros(2, 0)])
    for predicted, measured in gazes:
        if predicted.losses is None or measured.losses is None:
            continue
        later = (
            torch.repeat_interleave(
                torch.arange(predicted.num_frames).repeat(predicted.clips), predicted.lengths.reshape(-1)
            )
            > 0
        )
        both = torch.stack((predicted.losses, measured.losses))
        for part, where in zip(parts, (~later, later), strict=True):
            part.append(both[:, where])
    first, rest = (torch.cat(part, dim=1).numpy() for part in parts)
    return first, rest


def fit_curves(
    meter: Meter, videos: Sequence[CalibrationVideo], frames: int, level: float
) -> tuple[QuantileCurve, QuantileCurve]:
    """Of frame 0 and of later frames, what a predicted loss is worth: fitted on half A.

    Raises PipelineError when the policy predicts what is not a number.
    """
    found = [meter.measure(videos, [part * meter.threshold] * frames, pairs=True).pairs for part in FITTED_AT]
    first = np.concatenate([pairs[0] for pairs in found], axis=1)
    later = np.concatenate([pairs[1] for pairs in found], axis=1)
    try:
        curve = QuantileCurve.fit(first[0], first[1], level)
        return curve, QuantileCurve.fit(later[0], later[1], level) if frames > 1 else curve
    except ValueError as error:
        raise PipelineError(f"the policy cannot be calibrated: {error}; was it trained to an end?") from error


def stops_of(curves: tuple[QuantileCurve, QuantileCurve], error: float, frames: int) -> list[float]:
    """The stop of each frame of a clip, at which the curves have this error."""
    first, later = (float(np.float32(curve.at_most(error))) for curve in curves)
    return [first] + [later] * (frames - 1)


def scales(count: int) -> list[float]:
    """So many parts of the threshold, from the strictest to the loosest, each as much looser than the last."""
    return [float(scale) for scale in np.geomspace(STRICTEST, LOOSEST, count)]


def try_stops(
    meter: Meter,
    videos: Sequence[CalibrationVideo],
    curves: tuple[QuantileCurve, QuantileCurve],
    frames: int,
    tried: Sequence[float],
    risk: float,
    method: Literal["crc", "ltt"],
    delta: float,
) -> list[Tried]:
    """Gaze at half B with ever looser stops, from the strictest to the first that does not keep the promise.

    Whether a stop keeps it depends on stricter ones alone, so those that come after need not be gazed at.
    """
    losses: list[np.ndarray] = []
    found: list[Tried] = []
    measured: dict[tuple[float, ...], Measured] = {}
    for scale in tried:
        stops = tuple(stops_of(curves, scale * meter.threshold, frames))
        if stops not in measured:
            measured = {stops: meter.measure(videos, stops)}
        one = measured[stops]
        losses.append(one.losses)
        so_far = np.stack(losses, axis=1)
        keeps = int(loosest_stop(so_far, risk, method, delta)) == len(losses) - 1
        found.append(
            Tried(
                scale=scale,
                stops=(stops[0], stops[-1]),
                risk=float(one.losses.mean()),
                missed=one.missed,
                patches=one.patches,
                bound=float(conformal_bounds(so_far)[-1]),
                p=float(p_values(so_far, risk)[-1]),
                keeps=keeps,
            )
        )
        if not keeps:
            break
    return found
