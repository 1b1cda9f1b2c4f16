"""The interface of every reconstructor: rebuild frames from gazed patches, and search for the patch that helps most."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` gives for the F frames asked for.

    pixels: uint8 [B, F, S, S, 3], RGB. error: float32 [B, F], in the reconstructor's units.
    """

    pixels: torch.Tensor
    error: torch.Tensor


class Search(Protocol):
    """A batch of clips whose gaze is being chosen, frame by frame. It holds all earlier frames."""

    def open(self, t: int) -> torch.Tensor:
        """Turn to frame t, the next, with all clips. Returns its error [B] with no token of its own."""

    def keep(self, places: torch.Tensor) -> None:
        """Go on with some of the clips held, until the next frame. places: int64 [n], rising, among those held."""

    def errors(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Error [n, V] of the frame of each clip held, for each token as its next; infinite where already taken.

        tokens: int64 [n, M], to try only these: errors [n, M].
        """

    def take(self, tokens: torch.Tensor) -> None:
        """Each clip held takes its token: int64 [n]."""


class Reconstructor(Protocol):
    """What every reconstructor is."""

    name: str
    """Short name, as in configurations."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same gaze could give another error: method, weights, vocabulary."""

    @property
    def units(self) -> str:
        """What `error` and thresholds measure, in words."""

    vocabulary: PatchVocabulary
    """The patches it rebuilds from."""

    def reconstruct(
        self, frames: torch.Tensor | np.ndarray, gaze: Gaze, at: Sequence[int] | None = None
    ) -> Reconstruction:
        """Rebuild frames `at` (None: all) of uint8 clips [B, T, S, S, 3], each from the gaze up to it."""

    def search(self, frames: torch.Tensor | np.ndarray) -> Search:
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3]."""

    def loss(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors of a search in the reconstructor's units: float32 on the CPU, the same on every device."""

    def limit(self, threshold: float) -> float:
        """The largest error of a search whose `loss` is at or under `threshold`."""


def as_clips(frames: torch.Tensor | np.ndarray, vocabulary: PatchVocabulary) -> torch.Tensor:
    """Frames as a uint8 tensor [B, T, S, S, 3] on their device, without a copy.

    Raises ValueError, naming what was found, for any other shape or dtype, and where there is no clip or no frame.
    """
    if isinstance(frames, np.ndarray):
        with warnings.catch_warnings():
            # Frames out of shared memory are read-only. Nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            frames = torch.from_numpy(frames)
    size = vocabulary.frame_size
    if frames.dtype != torch.uint8 or frames.dim() != 5 or tuple(frames.shape[2:]) != (size, size, 3):
        raise ValueError(
            f"frames must be uint8 [B, T, {size}, {size}, 3] (RGB at the vocabulary's frame size),"
            f" not {frames.dtype} {list(frames.shape)}"
        )
    if not (frames.shape[0] and frames.shape[1]):
        raise ValueError(f"frames {list(frames.shape)} hold no clip or no frame")
    return frames
