"""What all learned reconstructors share: checked when read, written whole, told apart by a hash of all that counts."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.hub import CONFIG, WEIGHTS
from autogaze.reconstruction.base import Reconstruction, ReconstructorError
from autogaze.reconstruction.losses import FrameLoss


class LearnedReconstructor(nn.Module):
    """A network that is a reconstructor (autogaze/reconstruction/base.py), with a config and a loss.

    name: before its fingerprint.
    """

    name: str
    config: Any  # with to_json(), what config.json holds

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

    @abstractmethod
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

    @abstractmethod
    def errors(
        self,
        frames: Tensor | np.ndarray,
        gaze: Gaze,
        at: Sequence[int] | None = None,
        targets: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The errors of `reconstruct` alone, float32 [B, F] on the CPU; no pixels leave the device."""


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
