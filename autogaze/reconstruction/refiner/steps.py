"""The steps of rebuilding and measuring frames that `Refiner.reconstruct`, its search and its training share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.images import preprocess
from autogaze.reconstruction.base import as_clips
from autogaze.reconstruction.canvas import Canvas, painting_order
from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.memory import Memory, Painter
from autogaze.reconstruction.refiner.network import RefinerNetwork


class RefinerSteps(RefinerNetwork):
    """The network with its canvas, its memory of what was shown, and its loss."""

    def __init__(self, config: RefinerConfig, loss: FrameLoss | None = None) -> None:
        """loss: the error of a rebuilt frame, by default l1 alone; its l1 weights the share of 255."""
        super().__init__(config)
        self.vocabulary = config.vocabulary
        self.canvas = Canvas(self.vocabulary)
        self.painter = Painter(self.vocabulary, config.block)
        self._loss = [FrameLoss() if loss is None else loss]  # in a list, so that its teachers are no submodules

    @property
    def frame_loss(self) -> FrameLoss:
        """What the error is made of; its l1 weights the share of 255."""
        return self._loss[0]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.correct.weight.device

    def as_own_clips(self, frames: Tensor | np.ndarray) -> Tensor:
        """Clips uint8 [B, T, S, S, 3]. Raises ValueError for others, or on another device than the refiner's."""
        clips = as_clips(frames, self.vocabulary)
        if clips.device != self.device:
            raise ValueError(
                f"frames on {clips.device}, the reconstructor on {self.device}: give frames.to({str(self.device)!r})"
            )
        return clips

    def memories(self, clips: Tensor, gaze: Gaze, of: Sequence[int], at: Sequence[Sequence[int]]) -> Memory:
        """What the rows of a gaze have shown at the end of their frames, row by row.

        clips: uint8 [C, T, S, S, 3]. of: the clip that each row is at. at: the frames of each row.
        """
        last = 1 + max(max(numbers) for numbers in at)
        views = self.canvas.views(clips[:, :last].flatten(0, 1)).unflatten(0, (len(clips), last))
        return self.painter.after(views, painting_order(gaze), of, at)

    def normalised(self, frames: Tensor) -> Tensor:
        """uint8 [..., S, S, 3] -> [..., 3, S, S], as teachers are given frames, on the refiner's device."""
        return preprocess(frames, self.vocabulary.frame_size, self.device)

    def targets(self, frames: Tensor) -> list[Tensor]:
        """Teacher features of original frames, uint8 [n, S, S, 3]."""
        return self.frame_loss.targets(self.normalised(frames)) if self.frame_loss.names else []

    def errors_of(self, rebuilt: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Errors float64 [n] of rebuilt frames against the originals, both uint8 [n, S, S, 3] on one device."""
        difference = (rebuilt.to(torch.int32) - frames.to(torch.int32)).abs_().flatten(1)
        total = difference.sum(dim=1, dtype=torch.int64).double()
        # By a tensor: a GPU multiplies by the reciprocal of a number, and may differ in the last bit.
        errors = self.frame_loss.l1 * (total / torch.full_like(total, difference.shape[1] * 255))
        if self.frame_loss.names:
            errors = errors + self.frame_loss.of_features(self.normalised(rebuilt), targets).double()
        return errors
