"""The limits of a frame's gaze: the most slots it may take, and the predicted loss at which it ends.

See docs/method.md, section 'Limits of a frame'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autogaze.patches import PatchVocabulary


def frame_caps(
    max_ratio: float | Sequence[float] | Tensor | None, frames: int, vocabulary: PatchVocabulary
) -> list[int]:
    """The most slots of each frame, from a ratio in (0, 1], or one for each frame; None: all patches.

    Raises ValueError.
    """
    if max_ratio is None:
        return [vocabulary.size] * frames
    ratios = torch.as_tensor(max_ratio, dtype=torch.float64)
    if ratios.dim() > 1 or (ratios.dim() == 1 and len(ratios) != frames):
        raise ValueError(f"max_ratio has shape {list(ratios.shape)}: wanted a number, or {frames}, one for each frame")
    return [vocabulary.cap(ratio) for ratio in ratios.expand(frames).tolist()]


def frame_slots(
    slots: Sequence[int] | Tensor, rows: int, frames: int, vocabulary: PatchVocabulary
) -> list[int] | list[list[int]]:
    """The most slots of each frame: T numbers, or for each frame one of each row, from int64 [B, T].

    Raises ValueError.
    """
    given = torch.as_tensor(slots).cpu()
    by_row = given.dim() == 2
    shape = (rows, frames) if by_row else (frames,)
    if given.shape != shape or bool(((given < (0 if by_row else 1)) | (given > vocabulary.size)).any()):
        raise ValueError(
            f"slots {given.tolist()}: {frames} numbers from 1 to {vocabulary.size}, or [{rows}, {frames}] from 0"
        )
    return (given.T if by_row else given).tolist()


def frame_thresholds(loss_threshold: Any, rows: int, frames: int) -> Tensor | None:
    """Thresholds float32 [rows, frames] from a number, T numbers, [B, 1] or [B, T]; None from None.

    Raises ValueError.
    """
    if loss_threshold is None:
        return None
    thresholds = torch.as_tensor(loss_threshold, dtype=torch.float32).cpu()
    if thresholds.dim() > 2 or (thresholds.dim() == 1 and len(thresholds) not in (1, frames)):
        raise ValueError(_wanted(thresholds, rows, frames))
    if thresholds.dim() == 2 and (thresholds.shape[0] not in (1, rows) or thresholds.shape[1] not in (1, frames)):
        raise ValueError(_wanted(thresholds, rows, frames))
    low = float(thresholds.min()) if thresholds.numel() else math.nan
    if not (low >= 0 and math.isfinite(float(thresholds.max()))):
        raise ValueError(f"loss_threshold {loss_threshold}: a loss is a number from 0 up")
    return thresholds.expand(rows, frames)


def _wanted(thresholds: Tensor, rows: int, frames: int) -> str:
    return (
        f"loss_threshold has shape {list(thresholds.shape)}: wanted a number, {frames} (one for each frame),"
        f" [{rows}, 1] or [{rows}, {frames}]"
    )
