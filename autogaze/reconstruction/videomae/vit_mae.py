"""Weights of an image's masked autoencoder, such as facebook/vit-mae-large, to begin training a VideoMAE with.

The paper begins so. A folder that transformers wrote (ViTMAEForPreTraining) becomes our tensors:

- names are carried over; layers of the decoder are decoder.decoder_layers.N on the hub, and
  decoder.decoder_encoder.layer.N in what transformers 5 saves;
- position tables are kept, and resized (bicubic) where its images have another grid of patches;
- embeddings of scale and time, which it lacks, are zero;
- it was trained on other pixel values, a linear function of ours: the patch projection takes that up, and so does the
  prediction, unless it predicts patches normalised each by itself (norm_pix_loss), which cannot be undone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.hub import CONFIG, PREPROCESSOR
from autogaze.images import MEAN, STD
from autogaze.reconstruction.base import ReconstructorError
from autogaze.reconstruction.videomae.config import VideoMAEConfig, read_tensors

_FILES = ("model.safetensors", "pytorch_model.bin")
_POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def is_vit_mae(place: str | os.PathLike[str]) -> bool:
    """Whether a folder is transformers' ViT-MAE of images, and not one of ours, whose config has scales."""
    try:
        document = json.loads((Path(place) / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("model_type") == "vit_mae" and "scales" not in document


def read_vit_mae(place: str | os.PathLike[str]) -> tuple[VideoMAEConfig, dict[str, Tensor]]:
    """The VideoMAE that a ViT-MAE's folder begins, with l1 as its loss. Raises ReconstructorError, in one line."""
    folder, defaults = Path(place), VideoMAEConfig().to_json()
    document = json.loads((folder / CONFIG).read_bytes())
    patch = document.get("patch_size")
    if patch != defaults["patch_size"]:
        raise ReconstructorError(
            f"{folder}: its patches have {patch} pixels, ours {defaults['patch_size']}: take one of patch16"
        )
    own = ("scales", "max_num_frames", "loss_type", "loss_weights")
    try:
        config = VideoMAEConfig.from_json(document | {key: defaults[key] for key in own} | {"norm_pix_loss": False})
    except ReconstructorError as error:
        raise ReconstructorError(f"{folder / CONFIG}: {error}") from error
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise ReconstructorError(f"{folder}: holds no {' and no '.join(_FILES)}")
    weights = {_own_name(name): tensor.float() for name, tensor in read_tensors(file).items()}
    try:
        _fit_positions(weights, config)
        _fit_pixels(weights, folder, predicts_pixels=not document.get("norm_pix_loss", False))
    except (KeyError, RuntimeError, ValueError) as error:
        raise ReconstructorError(f"{file}: is no whole ViT-MAE with its decoder: {error}") from error
    for name, count, width in (
        ("vit.embeddings.scale_embed", len(config.scales), config.hidden_size),
        ("vit.embeddings.time_embed", config.max_num_frames, config.hidden_size),
        ("decoder.decoder_scale_embed", len(config.scales), config.decoder_hidden_size),
        ("decoder.time_embed", config.max_num_frames, config.decoder_hidden_size),
    ):
        weights[name] = torch.zeros(count, width)
    return config, weights


def _own_name(name: str) -> str:
    return re.sub(r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers.", name)


def _fit_positions(weights: dict[str, Tensor], config: VideoMAEConfig) -> None:
    grid = config.vocabulary.grids[-1]
    for name in _POSITIONS:
        table = weights[name]
        side = round((table.shape[1] - 1) ** 0.5)
        if side == grid:
            continue
        places = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        places = F.interpolate(places, size=(grid, grid), mode="bicubic", align_corners=False)
        weights[name] = torch.cat((table[:, :1], places.flatten(2).transpose(1, 2)), dim=1)


def _fit_pixels(weights: dict[str, Tensor], folder: Path, *, predicts_pixels: bool) -> None:
    """Make the network take and predict our pixels: theirs are scale * ours + shift, for each colour."""
    mean, std = _statistics(folder)
    scale = torch.tensor([ours / (2 * theirs) for ours, theirs in zip(STD, std, strict=True)])
    shift = torch.tensor([((1 + ours) / 2 - m) / s for ours, m, s in zip(MEAN, mean, std, strict=True)])
    projection = "vit.embeddings.patch_embeddings.projection"
    kernel = weights[f"{projection}.weight"]
    weights[f"{projection}.bias"] = weights[f"{projection}.bias"] + (kernel.sum(dim=(2, 3)) * shift).sum(dim=1)
    weights[f"{projection}.weight"] = kernel * scale[:, None, None]
    if predicts_pixels:  # [pixels * 3], the colour last
        rows = weights["decoder.decoder_pred.weight"]
        scales, shifts = (values.repeat(len(rows) // 3) for values in (scale, shift))
        weights["decoder.decoder_pred.weight"] = rows / scales[:, None]
        weights["decoder.decoder_pred.bias"] = (weights["decoder.decoder_pred.bias"] - shifts) / scales


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation that its pixels, in [0, 1], were normalised by; ImageNet's where the folder does not say."""
    try:
        found: Mapping[str, Any] = json.loads((folder / PREPROCESSOR).read_bytes())
    except OSError:
        found = {}
    return list(found.get("image_mean", MEAN)), list(found.get("image_std", STD))
