"""The plain vision transformer (ViT, DeiT, DINO): a class token, learned positions, a final norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autogaze.vision.families.base import HALF, Family, TransformerLayer, convolution, layers_of, resized, stacked


class Vit(Family):
    name = "ViT"
    model_types = ("vit",)
    model_class = "ViTModel"
    normalisation = HALF
    options = {"add_pooling_layer": False}  # noqa: RUF012  its own pooler is of classification: not used here

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        return convolution(model.embeddings.patch_embeddings.projection)

    def layers(self, model: Any) -> list[TransformerLayer]:
        return layers_of(model.layers, ("layernorm_before", "layernorm_after"), "attention", "o_proj")

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return resized(model.embeddings.position_embeddings[0, 1:], grid)

    def prefix(self, model: Any) -> Tensor | None:
        return stacked(model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1])

    def final_norm(self, model: Any) -> nn.Module | None:
        norm: nn.Module = model.layernorm
        return norm
