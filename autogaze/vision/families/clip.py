"""CLIP's vision tower: a norm before the stack, and none after it but for the class token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autogaze.vision.families.base import Family, TransformerLayer, convolution, layers_of, resized, stacked


class Clip(Family):
    name = "CLIP"
    model_types = ("clip", "clip_vision_model")
    model_class = "CLIPVisionModel"
    normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        return convolution(model.embeddings.patch_embedding)

    def layers(self, model: Any) -> list[TransformerLayer]:
        return layers_of(model.encoder.layers, ("layer_norm1", "layer_norm2"), "self_attn", "out_proj")

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return resized(model.embeddings.position_embedding.weight[1:], grid)

    def prefix(self, model: Any) -> Tensor | None:
        return stacked(model.embeddings.class_embedding + model.embeddings.position_embedding.weight[0])

    def first_norm(self, model: Any) -> nn.Module | None:
        norm: nn.Module = model.pre_layrnorm  # so spelt in the checkpoints
        return norm

    def final_norm(self, model: Any) -> nn.Module | None:
        return None

    def class_feature(self, model: Any, token: Tensor) -> Tensor:
        feature: Tensor = model.post_layernorm(token)
        return feature
