"""The learned reconstructor: a multi-scale, frame-causal masked autoencoder.

See docs/method.md, section 'VideoMAE reconstructor'.

It encodes the gazed patches of a clip and decodes whole frames from them. A frame depends on its own gaze and that of
earlier frames. Attention is computed frame by frame: the tokens of a frame see all tokens up to the frame's end, which
is a slice and needs no mask. Results and parameter names are the reference's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import as_clips
from autogaze.reconstruction.checkpoints import LearnedReconstructor, require_weights
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.videomae.config import VideoMAEConfig, read_checkpoint
from autogaze.reconstruction.videomae.network import VideoMAENetwork, to_pixels
from autogaze.reconstruction.videomae.packed import Packed
from autogaze.reconstruction.videomae.search import VideoMAESearch
from autogaze.reconstruction.videomae.vit_mae import read_vit_mae
from autogaze.reconstruction.videomae.wide_search import WideSearch

ROWS_AT_ONCE = 64
"""Rebuilt together where wide steps are fast; 64 rows of two frames of the released size with teachers take some GB."""
PAIRS_AT_ONCE = 1 << 28
"""The same limit where rows are long, in pairs of tokens: a number each in the mask of an attention."""


class VideoMAE(VideoMAENetwork, LearnedReconstructor):
    """A learned reconstructor (see autogaze/reconstruction/base.py).

    As in the reference, frames also see earlier frames that are rebuilt with them. Errors of several frames at once
    therefore differ a little from those of each frame alone, which greedy labels hold.
    """

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
        require_weights(path, tensors, expected)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        loss = FrameLoss.from_config(config.loss_type, config.loss_weights, teachers or {}, device=device, dtype=dtype)
        model._loss = [loss]
        model.requires_grad_()
        for fixed in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            fixed.requires_grad_(False)
        return model.to(device, dtype).eval()

    # -- the interface of all reconstructors ------------------------------------------------------------------------

    @property
    def max_frames(self) -> int | None:
        """Frames of the longest clip it takes."""
        return self.config.max_num_frames

    @property
    def units(self) -> str:
        """What errors measure, in words."""
        return f"training loss of the reconstructor ({self.config.loss_type}, weights {self.config.loss_weights})"

    def _as_pixels(self, rebuilt: Tensor) -> Tensor:
        return to_pixels(rebuilt)

    def _rebuilt(
        self,
        clips: Tensor,
        gaze: Gaze,
        of: Sequence[int],
        at: Sequence[Sequence[int]],
        targets: Sequence[Tensor] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised frames [n, F, 3, S, S] and errors [n, F] of some rows at a time. Arguments: see `group_errors`."""
        for numbers in at:
            self.check_gaze(gaze, len(of), clips.shape[1], numbers)
        for rows in self._parts(gaze, of, at):
            shown, low, high = [gaze[row] for row in rows], min(of[row] for row in rows), max(of[row] for row in rows)
            with self.own_precision():
                video = self.normalised(clips[low : high + 1])
                if self.wide:
                    wanted = [at[of[row]] for row in rows]
                    place = [of[row] - low for row in rows]
                    packed = Packed.of(shown, place, wanted, self.vocabulary, video.device)
                    rebuilt = self.rebuild(video, packed)
                    original = video[np.repeat(place, [len(numbers) for numbers in wanted]), np.concatenate(wanted)]
                else:
                    rebuilt, original = self(video, shown[0], at[low])[0], video[0, at[low]]
                of_each = None
                if targets is not None:
                    of_each = [features[[of[row] for row in rows]].flatten(0, 1) for features in targets]
                error = self.frame_loss(rebuilt.float(), original.float(), of_each)
            yield rebuilt.unflatten(0, (len(rows), -1)), error.unflatten(0, (len(rows), -1))

    def _parts(self, gaze: Gaze, of: Sequence[int], at: Sequence[Sequence[int]]) -> Iterator[range]:
        """The rows that are computed at once: each alone on a CPU, so that results do not depend on the others."""
        most = 1
        if self.wide:
            tokens = gaze.counts().numpy() + [len(at[clip]) * self.vocabulary.size for clip in of]
            most = max(1, min(ROWS_AT_ONCE, int(PAIRS_AT_ONCE // max(int(tokens.max()), 1) ** 2)))
        return (range(first, min(first + most, len(of))) for first in range(0, len(of), most))

    def search(self, frames: Tensor | np.ndarray) -> VideoMAESearch | WideSearch:
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3]. Raises ValueError if they are on another device."""
        clips, device = as_clips(frames, self.vocabulary), self.decoder.mask_token.device
        self.check_length(clips.shape[1])
        if clips.device != device:
            raise ValueError(
                f"frames on {clips.device}, the reconstructor on {device}: give frames.to({str(device)!r})"
            )
        return WideSearch(self, clips) if self.wide else VideoMAESearch(self, clips)

    def loss(self, errors: Tensor) -> Tensor:
        """Errors of a search, float32 on the CPU."""
        return errors.float().cpu()

    def limit(self, threshold: float) -> float:
        """The threshold as float32."""
        return float(np.float32(threshold))
