"""DINOv2, without and with registers: a class token, layer scale, learned positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autogaze.vision.families.base import IMAGENET, Family, TransformerLayer, convolution, layers_of, resized, stacked


class Dinov2(Family):
    name = "DINOv2"
    model_types = ("dinov2",)
    model_class = "Dinov2Model"
    normalisation = IMAGENET
    unused = ("embeddings.mask_token",)
    antialias = False

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        return convolution(model.embeddings.patch_embeddings.projection)

    def layers(self, model: Any) -> list[TransformerLayer]:
        scales = ("layer_scale1", "layer_scale2")
        return layers_of(model.encoder.layer, ("norm1", "norm2"), "attention", "o_proj", scales)

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return resized(model.embeddings.position_embeddings[0, 1:], grid, antialias=self.antialias)

    def prefix(self, model: Any) -> Tensor | None:
        return stacked(model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1])

    def final_norm(self, model: Any) -> nn.Module | None:
        norm: nn.Module = model.layernorm
        return norm


class Dinov2WithRegisters(Dinov2):
    name = "DINOv2 with registers"
    model_types = ("dinov2_with_registers",)
    model_class = "Dinov2WithRegistersModel"
    antialias = True

    def prefix(self, model: Any) -> Tensor | None:
        token = super().prefix(model)
        assert token is not None
        return stacked(token, model.embeddings.register_tokens)
