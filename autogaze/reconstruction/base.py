"""The interface of all reconstructors: rebuild frames from gazed patches, and search for the patch that helps most."""

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
    """F rebuilt frames of each of B clips.

    pixels: uint8 [B, F, S, S, 3], RGB. error: float32 [B, F], in the reconstructor's units.
    """

    pixels: torch.Tensor
    error: torch.Tensor


class Search(Protocol):
    """A batch of clips whose gaze is being chosen, frame by frame. See autogaze/reconstruction/__init__.py."""

    def open(self, t: int) -> torch.Tensor:
        """Open frame t, the next one, with all clips. Returns its error [B] without a token of its own."""

    def keep(self, places: torch.Tensor) -> None:
        """Until the next frame, go on with some of the clips. places: int64 [n], rising, among those held now."""

    def errors(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Errors [n, V] of the open frame of each clip held, for each token as its next; infinite if taken already.

        tokens: int64 [n, M], to try only these; the errors are then [n, M].
        """

    def take(self, tokens: torch.Tensor) -> None:
        """Each clip held takes its token: int64 [n]."""

    def reopen(self, clips: torch.Tensor) -> torch.Tensor:
        """Open the same frame again with some clips, int64 [n] of the batch, rising: they take all of its tokens back.

        Returns their error [n] without a token of the frame. The tokens of the other clips stay as they are.
        """


class Reconstructor(Protocol):
    """Rebuilds frames from gazed patches, and measures the error."""

    name: str
    """Short name, as in configs."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that errors depend on: method, weights, vocabulary."""

    @property
    def units(self) -> str:
        """What `error` and thresholds measure, in words."""

    vocabulary: PatchVocabulary
    """The patches it rebuilds from."""

    def reconstruct(
        self, frames: torch.Tensor | np.ndarray, gaze: Gaze, at: Sequence[int] | None = None
    ) -> Reconstruction:
        """Rebuild the frames `at` (None: all) of uint8 clips [B, T, S, S, 3], each from the gaze up to its end."""

    def search(self, frames: torch.Tensor | np.ndarray) -> Search:
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3]."""

    def loss(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors of a search in the reconstructor's units: float32 on the CPU, the same from every device."""

    def limit(self, threshold: float) -> float:
        """The largest error of a search whose `loss` is at or under `threshold`."""


class ReconstructorError(ValueError):
    """A reconstructor's checkpoint that cannot be used, in one line."""


def require_gaze(gaze: Gaze, vocabulary: PatchVocabulary, clips: int, frames: int, at: Sequence[int]) -> None:
    """Raise ValueError unless the gaze is of such clips and patches, and `at` names frames of them, once each."""
    if gaze.vocabulary != vocabulary:
        raise ValueError(f"the gaze is of {gaze.vocabulary}, the reconstructor of {vocabulary}")
    if (gaze.clips, gaze.num_frames) != (clips, frames):
        raise ValueError(f"{clips} clips of {frames} frames, but a gaze of {gaze.clips} of {gaze.num_frames}")
    if not at or len(set(at)) != len(at) or not all(0 <= t < frames for t in at):
        raise ValueError(f"at={list(at)}: wanted different frame numbers in 0..{frames - 1}")


def as_clips(frames: torch.Tensor | np.ndarray, vocabulary: PatchVocabulary) -> torch.Tensor:
    """Frames as a uint8 tensor [B, T, S, S, 3] on their device, without a copy.

    Raises ValueError for any other shape or dtype, and if there is no clip or no frame.
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
