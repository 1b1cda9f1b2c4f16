"""Small random vision transformers, saved as transformers saves them, for tests of jobs that take an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_WIDTH = {"intermediate_size": 24}


def write_encoder(
    folder: Path, family: Literal["siglip", "dinov2"] = "siglip", seed: int = 0, patch: int = 16, size: int = 224
) -> Path:
    """Write one for frames of `size` pixels into `folder`; its path. DINOv2 has a class token, SigLIP a head."""
    import transformers

    torch.manual_seed(seed)
    given: dict[str, Any] = {**_SMALL, "patch_size": patch, "image_size": size}
    model: Any
    if family == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**given, **_WIDTH))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**given))
    model.save_pretrained(folder)
    return folder
