"""Calibration of a policy: held-out videos gazed at with stops from strict to loose, their errors measured.

A later frame is gazed at, and rebuilt, from what was kept of earlier ones. So how often frames miss a threshold at a
stop can only be seen by gazing with that stop: cutting one long gaze shorter would measure another policy's frames
(docs/decisions.md). What the statistics do with the losses is in autogaze/calibration.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from autogaze.calibration import StopCurve, conformal_bounds, loosest_stop, p_values
from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from autogaze.model import AutoGaze
from autogaze.reconstruction.base import Reconstructor, as_clips
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.inspection.reading import read_clip

FITTED_AT = 0.1
"""Part of the threshold that half A is first gazed at with: deeply, so that stricter stops are seen too."""
LOOSEST = 2.0
"""The most that is aimed at on half A, as a part of the risk that is allowed."""


@dataclass(frozen=True)
class CalibrationVideo:
    """A video, the unit of calibration. clips: index rows of its ok clips. fingerprint: of its bytes."""

    name: str
    fingerprint: str
    clips: list[dict[str, Any]]


class FrameCurve(NamedTuple):
    """Of a frame, after each of its tokens: the predicted loss, and its risk if it ends there. float [n] each."""

    predicted: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What gazing at videos with one stop gave.

    Attributes:
        losses: float64 [videos], of each video the risk: see `Meter`.
        patches: gazed, mean over frames.
        missed: share of all frames that are over the threshold.
        frames: of frame 0 and of later frames: of each, predicted loss and risk after each token.
    """

    losses: np.ndarray
    patches: float
    missed: float
    frames: tuple[list[FrameCurve], list[FrameCurve]]


@dataclass(frozen=True)
class Tried:
    """A stop that was tried on half B. aim: its risk on half A. stops: in frame 0 and later. bound, p: see Promise."""

    aim: float
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
    ends = rows.groupby("video", sort=False)[["shard", "position"]].first().sort_values("shard")
    marks = {
        str(name): str(dataset.plan.clips_of(int(shard))["fingerprint"].iloc[int(position)])
        for name, shard, position in ends.itertuples()
    }
    videos = []
    for name, part in sorted(rows.groupby("video", sort=True)):
        taken = part.to_dict("records")
        random = np.random.default_rng([seed, *str(name).encode()])
        if clips and len(taken) > clips:
            taken = [taken[place] for place in sorted(random.choice(len(taken), clips, replace=False))]
        videos.append((random.random(), CalibrationVideo(str(name), marks[str(name)], taken)))
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

    def measure(self, videos: Sequence[CalibrationVideo], stops: Sequence[float], whole: bool = False) -> Measured:
        """Gaze with these stops, one for each frame of a clip.

        whole: measure the error after every token, not only after a frame's last.
        Raises PipelineError: a clip cannot be read, or an error is not a number.
        """
        errors, gazes = [], []
        for clips in self._batches(videos):
            gaze = self.policy.gaze(clips, max_ratio=self.max_ratio, loss_threshold=list(stops))
            frames = as_clips(clips, self.reconstructor.vocabulary).to(self.device)
            plain = Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary)
            if whole:
                plain = measure_errors(frames, plain, self.reconstructor)
            errors.append(plain.final() if whole else self._final(frames, plain))
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
        each = self.risk_of(errors).mean(axis=1)
        ends = np.cumsum([len(video.clips) for video in videos])[:-1]
        losses = np.array([part.mean() for part in np.split(each, ends)])
        patches = float(sum(float(gaze.counts().sum()) for gaze, _ in gazes)) / errors.size
        missed = float((errors > np.float32(self.threshold)).mean())
        return Measured(losses, patches, missed, self._frames(gazes))

    def risk_of(self, errors: np.ndarray) -> np.ndarray:
        """What frames with these errors lose, each in [0, 1]: see `risk`."""
        limit = float(np.float32(self.threshold))  # as every threshold is compared
        return (errors > limit).astype(np.float64) if self.risk == "share" else np.clip((errors - limit) / limit, 0, 1)

    def _frames(self, gazes: Sequence[tuple[Gaze, Gaze]]) -> tuple[list[FrameCurve], list[FrameCurve]]:
        """The curve of each frame 0, and of each later frame. gazes: with predicted losses, and with measured ones."""
        found: tuple[list[FrameCurve], list[FrameCurve]] = ([], [])
        for predicted, measured in gazes:
            if predicted.losses is None or measured.losses is None:
                continue
            ends = predicted.lengths.reshape(-1).cumsum(0).numpy()[:-1]
            risks = self.risk_of(measured.losses.double().numpy())
            parts = zip(np.split(predicted.losses.numpy(), ends), np.split(risks, ends), strict=True)
            for number, (scores, losses) in enumerate(parts):
                if len(scores):
                    found[bool(number % predicted.num_frames)].append(FrameCurve(scores, losses))
        return found


def fit_curves(
    meter: Meter, videos: Sequence[CalibrationVideo], frames: int, risk: float
) -> tuple[StopCurve, StopCurve]:
    """Of frame 0 and of later frames, what they lose by where they stop: fitted on half A.

    It is gazed at deeply first, and then with half the stop that promises `risk` by that: later frames then begin from
    what is really kept of earlier ones. Raises PipelineError when the policy predicts what is not a number.
    """
    first = meter.measure(videos, [FITTED_AT * meter.threshold] * frames, whole=True).frames
    stops = stops_of(_fitted(first), risk, frames)
    again = meter.measure(videos, [stop / 2 for stop in stops], whole=True).frames
    return _fitted((first[0] + again[0], first[1] + again[1]))


def _fitted(frames: tuple[list[FrameCurve], list[FrameCurve]]) -> tuple[StopCurve, StopCurve]:
    first, later = frames
    try:
        return _curve(first), _curve(later or first)  # a clip of one frame has no later one
    except ValueError as error:
        raise PipelineError(f"the policy cannot be calibrated: {error}; was it trained to an end?") from error


def _curve(frames: list[FrameCurve]) -> StopCurve:
    return StopCurve.fit([frame.predicted for frame in frames], [frame.losses for frame in frames])


def stops_of(curves: tuple[StopCurve, StopCurve], aim: float, frames: int) -> list[float]:
    """The stop of each frame of a clip, at which frames lose `aim` by the curves."""
    first, later = (float(np.float32(curve.at_most(aim))) for curve in curves)
    return [first] + [later] * (frames - 1)


def aims(curves: tuple[StopCurve, StopCurve], frames: int, risk: float, count: int) -> list[float]:
    """So many risks to aim at on half A: evenly from the least that a clip's frames can have there to twice the risk
    that is allowed, or the most that they have.
    """
    first, later = curves
    least, most = ((first.losses[end] + (frames - 1) * later.losses[end]) / frames for end in (0, -1))
    return [float(aim) for aim in np.linspace(least, max(least, min(most, LOOSEST * risk)), count)]


def try_stops(
    meter: Meter,
    videos: Sequence[CalibrationVideo],
    curves: tuple[StopCurve, StopCurve],
    frames: int,
    aimed: Sequence[float],
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
    for aim in aimed:
        stops = tuple(stops_of(curves, aim, frames))
        if stops not in measured:
            measured = {stops: meter.measure(videos, stops)}
        one = measured[stops]
        losses.append(one.losses)
        so_far = np.stack(losses, axis=1)
        keeps = int(loosest_stop(so_far, risk, method, delta)) == len(losses) - 1
        found.append(
            Tried(
                aim=aim,
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
