"""A policy beside the gaze of a dataset: at the lengths of other methods, and as long as it gazes by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.reconstruction.base import Reconstructor, as_clips
from pipelines.dataset.shards import Dataset
from pipelines.inspection.reading import read_clip


@dataclass(frozen=True)
class OwnLimits:
    """What a policy's gaze leaves where the policy itself ends each frame. Means over frames and clips.

    Attributes:
        threshold: predicted error at which a frame ends; None: no such limit.
        ratio: gazed patches over all patches.
        error: as the reconstructor measures it. predicted: as the policy predicts it.
        met: share of frames whose measured error is at or under the threshold; None without one, or where the two
            may be in different units.
    """

    threshold: float | None
    ratio: float
    error: float
    predicted: float
    met: float | None


def gaze_of_lengths(policy: AutoGaze, frames: torch.Tensor, lengths: torch.Tensor) -> Gaze:
    """The policy's gaze of clips [B, T, S, S, 3], with as many patches of each frame as lengths, int64 [B, T], says.

    A policy gazes at every frame at least once. Where a frame is to get none, that patch is left out afterwards.
    """
    rows = [frames] if bool((lengths == lengths[:1]).all()) else list(frames.split(1))
    gazes, first = [], 0
    for part in rows:
        ratios = [(max(count, 1) + 0.5) / policy.vocabulary.size for count in lengths[first].tolist()]
        gazes.append(policy.gaze(part, max_ratio=[min(ratio, 1.0) for ratio in ratios]))
        first += len(part)
    return Gaze.cat(gazes)


def measure_own_limits(
    dataset: Dataset,
    rows: Sequence[dict[str, Any]],
    policy: AutoGaze,
    reconstructor: Reconstructor,
    threshold: float | None,
    *,
    comparable: bool = True,
    batch: int = 8,
    device: str = "cpu",
    on_clips: Callable[[int], None] | None = None,
) -> OwnLimits:
    """Gaze at some clips until the policy predicts that the threshold is met, or has its checkpoint's most patches.

    rows: index rows of the clips. comparable: whether the threshold is in the reconstructor's units.
    Raises PipelineError: a clip cannot be read, or holds no frames.
    """
    sums = np.zeros(4)
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        clips = np.stack([read_clip(dataset, row)[0] for row in part])
        frames = as_clips(clips, reconstructor.vocabulary).to(device)
        gaze = policy.gaze(frames, max_ratio=policy.config.max_ratio or 1.0, loss_threshold=threshold)
        error = reconstructor.reconstruct(frames, gaze).error.double()
        met = (error <= threshold).double() if threshold is not None else torch.zeros_like(error)
        parts = (gaze.ratio().double(), *(each.double().mean(dim=1) for each in (error, gaze.final(), met)))
        sums += [float(each.sum()) for each in parts]
        if on_clips is not None:
            on_clips(len(part))
    ratio, measured, predicted, share = (sums / len(rows)).tolist()
    return OwnLimits(threshold, ratio, measured, predicted, share if threshold is not None and comparable else None)
