"""SigLIP, and SigLIP 2 of a fixed resolution, which is the same network. No class token; an attention pool."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autogaze.vision.families.base import HALF, Family, TransformerLayer, convolution, layers_of, resized


class Siglip(Family):
    name = "SigLIP"
    model_types = ("siglip", "siglip_vision_model")
    model_class = "SiglipVisionModel"
    normalisation = HALF
    unused = ("head.",)

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        return convolution(model.embeddings.patch_embedding)

    def layers(self, model: Any) -> list[TransformerLayer]:
        return layers_of(model.encoder.layers, ("layer_norm1", "layer_norm2"), "self_attn", "out_proj")

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return resized(model.embeddings.position_embedding.weight, grid)

    def final_norm(self, model: Any) -> nn.Module | None:
        norm: nn.Module = model.post_layernorm
        return norm

    def pooling_head(self, model: Any) -> Any | None:
        return getattr(model, "head", None)
