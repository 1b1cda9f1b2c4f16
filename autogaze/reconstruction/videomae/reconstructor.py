"""The learned reconstructor: a multi-scale, frame-causal masked autoencoder.

See docs/method.md, section 'VideoMAE reconstructor'.

It encodes the gazed patches of a clip and decodes whole frames from them. A frame depends on its own gaze and that of
earlier frames. Attention is computed frame by frame: the tokens of a frame see all tokens up to the frame's end, which
is a slice and needs no mask. Results and parameter names are the reference's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import Reconstruction, ReconstructorError, as_clips
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.videomae.config import VideoMAEConfig, read_checkpoint
from autogaze.reconstruction.videomae.network import VideoMAENetwork, to_pixels
from autogaze.reconstruction.videomae.search import VideoMAESearch
from autogaze.reconstruction.videomae.vit_mae import read_vit_mae

CLIPS_AT_ONCE = 16
"""Rebuilt together where wide steps are fast; 12 of the released size with teachers take some GB."""


class VideoMAE(VideoMAENetwork):
    """A learned reconstructor (see autogaze/reconstruction/base.py)."""

    name = "videomae"

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        teachers: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, float] | None = None,
    ) -> VideoMAE:
        """A checkpoint of the reference: a folder, a .safetensors or a .pt file.

        teachers: the models of the feature losses it was trained with, as {"dinov2_reg": path or hub id}. weights: to
        go on with another loss, see autogaze.reconstruction.losses.reweighted.
        Raises ReconstructorError or TeacherError, in one line.
        """
        config, tensors = read_checkpoint(path)
        return cls._of(path, config, tensors, teachers, device, dtype, weights)

    @classmethod
    def from_vit_mae(
        cls,
        path: str | os.PathLike[str],
        teachers: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
        weights: Mapping[str, float] | None = None,
    ) -> VideoMAE:
        """One to train, begun from transformers' ViT-MAE of images (autogaze/reconstruction/videomae/vit_mae.py)."""
        config, tensors = read_vit_mae(path)
        return cls._of(path, config, tensors, teachers, device, torch.float32, weights)

    @classmethod
    def _of(
        cls,
        path: str | os.PathLike[str],
        config: VideoMAEConfig,
        tensors: Mapping[str, Tensor],
        teachers: Mapping[str, str] | None,
        device: torch.device | str,
        dtype: torch.dtype,
        weights: Mapping[str, float] | None,
    ) -> VideoMAE:
        if weights is not None:
            config = reweighted(config, teachers or {}, weights)
        with torch.device("meta"):
            model = cls(config)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        wrong = [name for name in expected if name not in tensors or tensors[name].shape != expected[name]]
        if wrong or set(tensors) - set(expected):
            names = ", ".join((wrong + sorted(set(tensors) - set(expected)))[:3])
            raise ReconstructorError(f"{path}: tensors that are missing, of another shape or not known: {names}")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ReconstructorError(f"{path}: holds NaN or infinite weights")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        loss = FrameLoss.from_config(config.loss_type, config.loss_weights, teachers or {}, device=device, dtype=dtype)
        model._loss = [loss]
        model.requires_grad_()
        for fixed in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            fixed.requires_grad_(False)
        return model.to(device, dtype).eval()

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that the reference and `from_pretrained` read, weights as float32. Teachers are left out."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / ".model.safetensors.part", metadata={"format": "pt"})
        (folder / ".config.json.part").write_text(json.dumps(self.config.to_json(), indent=1) + "\n")
        for name in ("model.safetensors", "config.json"):
            (folder / f".{name}.part").replace(folder / name)

    # -- the interface of all reconstructors ------------------------------------------------------------------------

    @property
    def max_frames(self) -> int | None:
        """Frames of the longest clip it takes."""
        return self.config.max_num_frames

    @property
    def units(self) -> str:
        """What errors measure, in words."""
        return f"training loss of the reconstructor ({self.config.loss_type}, weights {self.config.loss_weights})"

    @property
    def fingerprint(self) -> str:
        """Changes with everything that errors depend on."""
        digest = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        digest.update(self.frame_loss.fingerprint.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return f"videomae-{digest.hexdigest()}"

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

        As in the reference, frames also see earlier frames that are rebuilt with them. Errors of several frames at once
        therefore differ a little from those of each frame alone, which greedy labels hold.
        """
        parts = list(self._rebuilt(frames, gaze, at, targets))
        pixels = torch.cat([to_pixels(rebuilt) for rebuilt, _ in parts])
        return Reconstruction(pixels, torch.cat([error for _, error in parts]).cpu())

    @torch.no_grad()
    def errors(
        self,
        frames: Tensor | np.ndarray,
        gaze: Gaze,
        at: Sequence[int] | None = None,
        targets: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The errors of `reconstruct`, float32 [B, F] on the CPU; no pixels leave the device."""
        return torch.cat([error for _, error in self._rebuilt(frames, gaze, at, targets)]).cpu()

    def _rebuilt(
        self, frames: Tensor | np.ndarray, gaze: Gaze, at: Sequence[int] | None, targets: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised frames [n, F, 3, S, S] and errors [n, F] of some clips at a time."""
        clips = as_clips(frames, self.vocabulary)
        at = list(range(clips.shape[1])) if at is None else list(at)
        self.check_gaze(gaze, clips.shape[0], clips.shape[1], at)
        # One by one on a CPU, so that results do not depend on the batch.
        at_once = CLIPS_AT_ONCE if self.wide else 1
        for first in range(0, len(clips), at_once):
            part = clips[first : first + at_once]
            one = part.stride(0) == 0  # a group: the same clip again and again
            with self.own_precision():
                video = self.normalised(part[:1] if one else part).expand(len(part), -1, -1, -1, -1)
                rebuilt = self(video, Gaze.cat([gaze[first + b] for b in range(len(part))]), at)
                of_each = None if targets is None else [features.repeat(len(part), 1, 1) for features in targets]
                error = self.frame_loss(rebuilt.float().flatten(0, 1), video[:, at].float().flatten(0, 1), of_each)
            yield rebuilt, error.unflatten(0, (len(part), len(at)))

    def search(self, frames: Tensor | np.ndarray) -> VideoMAESearch:
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3]. Raises ValueError if they are on another device."""
        clips, device = as_clips(frames, self.vocabulary), self.decoder.mask_token.device
        self.check_length(clips.shape[1])
        if clips.device != device:
            raise ValueError(
                f"frames on {clips.device}, the reconstructor on {device}: give frames.to({str(device)!r})"
            )
        return VideoMAESearch(self, clips)

    def loss(self, errors: Tensor) -> Tensor:
        """Errors of a search, float32 on the CPU."""
        return errors.float().cpu()

    def limit(self, threshold: float) -> float:
        """The threshold as float32."""
        return float(np.float32(threshold))
