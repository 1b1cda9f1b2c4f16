"""What all learned reconstructors share: checked when read, written whole, told apart by a hash of all that counts."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.hub import CONFIG, WEIGHTS
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.base import Reconstruction, ReconstructorError, as_clips
from autogaze.reconstruction.losses import FrameLoss


class LearnedReconstructor(nn.Module):
    """A network that is a reconstructor (autogaze/reconstruction/base.py), with a config and a loss.

    name: before its fingerprint.
    """

    name: str
    config: Any  # with to_json(), what config.json holds
    vocabulary: PatchVocabulary

    @property
    @abstractmethod
    def frame_loss(self) -> FrameLoss:
        """The error of a rebuilt frame."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that errors depend on."""
        digest = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        digest.update("".join(self._measured_by()).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return f"{self.name}-{digest.hexdigest()}"

    def _measured_by(self) -> list[str]:
        """Fingerprints of what errors depend on beside config and weights."""
        return [self.frame_loss.fingerprint]

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `from_pretrained` reads, weights as float32. Teachers are left out."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / f".{WEIGHTS}.part", metadata={"format": "pt"})
        (folder / f".{CONFIG}.part").write_text(json.dumps(self.config.to_json(), indent=1) + "\n")
        for name in (WEIGHTS, CONFIG):
            (folder / f".{name}.part").replace(folder / name)

    @torch.no_grad()
    def reconstruct(
        self,
        frames: Tensor | np.ndarray,
        gaze: Gaze,
        at: Sequence[int] | None = None,
        targets: Sequence[Tensor] | None = None,
    ) -> Reconstruction:
        """Rebuild the frames `at` (None: all) of uint8 clips [B, T, S, S, 3], each from the gaze up to its end.

        targets: what `frame_loss.targets` gives for the frames `at`, if all B clips are the same; None: computed.
        """
        clips, of, wanted, of_each = self._rows(frames, at, targets)
        parts = list(self._rebuilt(clips, gaze, of, [wanted] * len(clips), of_each))
        pixels = torch.cat([self._as_pixels(rebuilt) for rebuilt, _ in parts])
        return Reconstruction(pixels.cpu(), torch.cat([error for _, error in parts]).cpu())

    @torch.no_grad()
    def errors(
        self,
        frames: Tensor | np.ndarray,
        gaze: Gaze,
        at: Sequence[int] | None = None,
        targets: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The errors of `reconstruct` alone, float32 [B, F] on the CPU; no pixels leave the device."""
        clips, of, wanted, of_each = self._rows(frames, at, targets)
        return self.group_errors(clips, gaze, of, [wanted] * len(clips), of_each)

    @torch.no_grad()
    def group_errors(
        self,
        clips: Tensor | np.ndarray,
        gaze: Gaze,
        of: Sequence[int],
        at: Sequence[Sequence[int]],
        targets: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Errors float32 [R, F], on the CPU, of R gazes at C clips, uint8 [C, T, S, S, 3].

        of: the clip that each row of the gaze is at. at: of each clip, the F frames to rebuild. targets: of each
        teacher, [C, F, tokens, channels], what `frame_loss.targets` gives for these frames; None: computed.

        On a GPU many rows are one pass. On a CPU it is row by row, so that errors do not depend on the other rows.
        """
        clips = self.as_own_clips(clips)
        return torch.cat([error for _, error in self._rebuilt(clips, gaze, of, at, targets)]).cpu()

    def as_own_clips(self, frames: Tensor | np.ndarray) -> Tensor:
        """Clips uint8 [B, T, S, S, 3] as it takes them. Raises ValueError for others."""
        return as_clips(frames, self.vocabulary)

    def _rows(
        self, frames: Tensor | np.ndarray, at: Sequence[int] | None, targets: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[int], list[int], list[Tensor] | None]:
        """The clips, a group's clip once; which of them each row is at; the frames to rebuild; the targets of each."""
        clips = self.as_own_clips(frames)
        wanted, of = list(range(clips.shape[1])) if at is None else list(at), list(range(len(clips)))
        if clips.stride(0) == 0:  # a group: the same clip again and again
            clips, of = clips[:1], [0] * len(of)
        of_each = None if targets is None else [features.expand(len(clips), *features.shape) for features in targets]
        return clips, of, wanted, of_each

    @abstractmethod
    def _rebuilt(
        self,
        clips: Tensor,
        gaze: Gaze,
        of: Sequence[int],
        at: Sequence[Sequence[int]],
        targets: Sequence[Tensor] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames and errors [n, F] of some rows at a time. Arguments: see `group_errors`."""

    def _as_pixels(self, rebuilt: Tensor) -> Tensor:
        """Rebuilt frames as uint8 [n, F, S, S, 3]."""
        return rebuilt


def require_weights(
    place: str | os.PathLike[str], found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> None:
    """Raise ReconstructorError, in one line, unless the tensors of a checkpoint are those expected, and finite."""
    wrong = [name for name in expected if name not in found or found[name].shape != expected[name]]
    if wrong or set(found) - set(expected):
        names = ", ".join((wrong + sorted(set(found) - set(expected)))[:3])
        raise ReconstructorError(f"{place}: tensors that are missing, of another shape or not known: {names}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise ReconstructorError(f"{place}: holds NaN or infinite weights")
