"""The refiner: a learned reconstructor that corrects the canvas.

It rebuilds each frame by itself, from the canvas and what was painted beneath it up to that frame's end. So a frame is
the same alone or with others, in any batch; on a CPU bit for bit. Its error is of the pixels it gives, 8 bits each: l1
is that of the canvas, a share of 255, exact; what teachers measure is that of autogaze/reconstruction/losses.py.

An untrained refiner gives the canvas' pixels and errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import require_gaze
from autogaze.reconstruction.checkpoints import LearnedReconstructor, require_weights
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.refiner.config import read_refiner
from autogaze.reconstruction.refiner.network import RefinerNetwork
from autogaze.reconstruction.refiner.search import RefinerSearch
from autogaze.reconstruction.refiner.steps import RefinerSteps

REBUILT_AT_ONCE = 128
"""Rebuilt together where wide steps are fast; what is known of a frame takes about a megabyte."""


class Refiner(RefinerSteps, LearnedReconstructor):
    """A learned reconstructor (see autogaze/reconstruction/base.py)."""

    name = "refiner"

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        teachers: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, float] | None = None,
    ) -> Refiner:
        """A folder that `save_pretrained` wrote.

        teachers: the models of the feature losses it was trained with, as {"dinov2": path or hub id}. weights: to go on
        with another loss, see autogaze.reconstruction.losses.reweighted. dtype: of the teachers; the refiner itself
        computes in float32.
        Raises ReconstructorError or TeacherError, in one line.
        """
        config, tensors = read_refiner(path)
        if weights is not None:
            config = reweighted(config, teachers or {}, weights)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in RefinerNetwork(config).state_dict().items()}
        require_weights(path, tensors, expected)
        loss = FrameLoss.from_config(config.loss_type, config.loss_weights, teachers or {}, device=device, dtype=dtype)
        model = cls(config, loss)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return model.to(device).eval()

    @property
    def max_frames(self) -> int | None:
        """Frames of the longest clip it takes: any."""
        return None

    # -- the interface of all reconstructors ------------------------------------------------------------------------

    @property
    def units(self) -> str:
        """What errors measure, in words."""
        if self.config.loss_type == "l1" and self.frame_loss.l1 == 1:
            return f"{self.canvas.units}, after the refiner"
        return f"loss of the refiner ({self.config.loss_type}, weights {self.config.loss_weights}, l1 a share of 255)"

    def _measured_by(self) -> list[str]:
        return [*super()._measured_by(), self.canvas.fingerprint]

    def _rebuilt(
        self,
        clips: Tensor,
        gaze: Gaze,
        of: Sequence[int],
        at: Sequence[Sequence[int]],
        targets: Sequence[Tensor] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames uint8 [n, F, S, S, 3] and errors [n, F] of some rows at a time. Arguments: see `group_errors`."""
        for numbers in at:
            require_gaze(gaze, self.vocabulary, len(of), clips.shape[1], numbers)
        together = max(1, REBUILT_AT_ONCE // len(at[0])) if self.wide else 1
        for first in range(0, len(of), together):
            rows = range(first, min(first + together, len(of)))
            low, high = min(of[row] for row in rows), max(of[row] for row in rows)
            place, wanted = [of[row] - low for row in rows], [at[of[row]] for row in rows]
            seen = clips[low : high + 1]
            memory = self.memories(seen, Gaze.cat([gaze[row] for row in rows]), place, wanted)
            rebuilt = self.pixels(memory)
            original = seen[np.repeat(place, [len(numbers) for numbers in wanted]), np.concatenate(wanted)]
            if targets is None:
                of_each = self.targets(original)
            else:
                of_each = [features[[of[row] for row in rows]].flatten(0, 1) for features in targets]
            error = self.errors_of(rebuilt, original, of_each)
            yield rebuilt.unflatten(0, (len(rows), -1)), self.loss(error).unflatten(0, (len(rows), -1))

    def search(self, frames: Tensor | np.ndarray) -> RefinerSearch:
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3]. Raises ValueError if they are on another device."""
        return RefinerSearch(self, self.as_own_clips(frames))

    def loss(self, errors: Tensor) -> Tensor:
        """Errors of a search, float32 on the CPU."""
        return errors.cpu().to(torch.float32)

    def limit(self, threshold: float) -> float:
        """The largest float64 that is the threshold, or less, as float32."""
        bound = np.float32(threshold)
        above = np.nextafter(bound, np.float32(np.inf))
        if not np.isfinite(above):
            return float(bound)
        middle = (bound.astype(np.float64) + above.astype(np.float64)) / 2  # rounds to the even one of the two
        return float(middle if np.float32(middle) <= bound else np.nextafter(middle, -np.inf))
