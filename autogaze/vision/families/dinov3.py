"""DINOv3: rotary positions of patch centres, which patches of every scale have exactly; registers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from autogaze.vision.families.base import IMAGENET, Family, TransformerLayer, convolution, layers_of, stacked


class Dinov3(Family):
    name = "DINOv3"
    model_types = ("dinov3_vit",)
    model_class = "DINOv3ViTModel"
    normalisation = IMAGENET
    unused = ("embeddings.mask_token",)

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        return convolution(model.embeddings.patch_embeddings)

    def layers(self, model: Any) -> list[TransformerLayer]:
        scales = ("layer_scale1", "layer_scale2")
        return layers_of(model.model.layer, ("norm1", "norm2"), "attention", "o_proj", scales)

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return None

    def rotation(self, model: Any, grid: int) -> tuple[Tensor, Tensor] | None:
        centres = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid * 2 - 1
        places = torch.cartesian_prod(centres, centres)  # (y, x), row by row
        width = model.config.hidden_size // model.config.num_attention_heads
        # The frequencies are not in the checkpoint. Of a model made in float16 its own would be too coarse.
        frequencies = model.config.rope_theta ** -torch.arange(0, 1, 4 / width, dtype=torch.float32)
        angles = (2 * math.pi * places[:, :, None] * frequencies).flatten(1).tile(2)
        return angles.cos(), angles.sin()

    def prefix(self, model: Any) -> Tensor | None:
        return stacked(model.embeddings.cls_token, model.embeddings.register_tokens)

    def final_norm(self, model: Any) -> nn.Module | None:
        norm: nn.Module = model.norm
        return norm
