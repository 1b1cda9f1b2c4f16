"""SigLIP 2 of any resolution (NaFlex): its rows are (y, x, channel), its positions antialiased when resized."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autogaze.vision.families.base import resized
from autogaze.vision.families.siglip import Siglip


class Siglip2NaFlex(Siglip):
    name = "SigLIP 2 NaFlex"
    model_types = ("siglip2", "siglip2_vision_model")
    model_class = "Siglip2VisionModel"

    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        module, side = model.embeddings.patch_embedding, model.config.patch_size
        # Columns of the matrix are put in our order of pixels, which costs nothing for each row.
        return module.weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).flatten(1), module.bias

    def positions(self, model: Any, grid: int) -> Tensor | None:
        return resized(model.embeddings.position_embedding.weight, grid, "bilinear", antialias=True)
