"""The learned reconstructor's hyper-parameters, from the reference's config.json, and its checkpoints on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from autogaze.patches import PatchVocabulary

# What the wrappers around the network put before its names: DistributedDataParallel and the reference's task.
_PREFIXES = ("module.", "mae.")
_ELSEWHERE = ("dinov2_reg.", "siglip2.")  # frozen teachers, which are loaded from their own checkpoints
_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "decoder_hidden_size": "decoder_hidden_size",
    "decoder_num_layers": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "decoder_intermediate_size": "decoder_intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "patch_size": "patch_size",
    "max_num_frames": "max_num_frames",
    "loss_type": "loss_type",
    "loss_weights": "loss_weights",
}
_ALWAYS = {
    "model_type": "vit_mae",
    "hidden_act": "gelu",
    "qkv_bias": True,
    "causal": True,
    "scale_embed": True,
    "time_embed": True,
    "norm_pix_loss": False,
    "num_channels": 3,
}


class ReconstructorError(ValueError):
    """A reconstructor's checkpoint that cannot be used, in one line."""


@dataclass(frozen=True)
class VideoMAEConfig:
    """Hyper-parameters of a released size (ViT-MAE-large), and what the error is made of (spec 9).

    loss_type, loss_weights: the reference's, as "l1+dinov2_reg+siglip2" and "1+0.3+0.3".
    """

    scales: tuple[int, ...] = (32, 64, 112, 224)
    patch_size: int = 16
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    intermediate_size: int = 4096
    decoder_hidden_size: int = 512
    decoder_num_layers: int = 8
    decoder_num_heads: int = 16
    decoder_intermediate_size: int = 2048
    layer_norm_eps: float = 1e-12
    max_num_frames: int = 256
    loss_type: str = "l1"
    loss_weights: str = "1"

    @property
    def vocabulary(self) -> PatchVocabulary:
        return PatchVocabulary(self.scales, self.patch_size)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> VideoMAEConfig:
        """Of a parsed config.json. Raises ReconstructorError for a network this is not, naming the key."""
        for name, wanted in _ALWAYS.items():
            if document.get(name, wanted) != wanted:
                raise ReconstructorError(f"config.json: {name} is {document[name]!r}, wanted {wanted!r}")
        missing = [key for key in ("scales", *_KEYS.values()) if key not in document]
        if missing:
            raise ReconstructorError(f"config.json: no {', '.join(missing)}: not a multi-scale VideoMAE's")
        values = {name: document[key] for name, key in _KEYS.items()}
        return cls(scales=tuple(sorted(int(scale) for scale in str(document["scales"]).split("+"))), **values)

    def to_json(self) -> dict[str, Any]:
        """A config.json that the reference's loader takes."""
        document = {key: getattr(self, name) for name, key in _KEYS.items()} | dict(_ALWAYS)
        return document | {
            "architectures": ["ViTMAEForPreTraining"],
            "scales": "+".join(map(str, self.scales)),
            "image_size": self.scales[-1],
            "mask_ratio": 0.75,
            "attention_probs_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            "initializer_range": 0.02,
        }


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[VideoMAEConfig, dict[str, Tensor]]:
    """A folder with config.json and model.safetensors (or videomae.pt), or such a file with its config beside it.

    A file without a config.json beside it is taken for the released size, and refused if its tensors are not.
    Raises ReconstructorError. Pickles are read with weights only.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "videomae.safetensors", "videomae.pt")]
        files = [file for file in found if file.is_file()]
        if not files:
            raise ReconstructorError(f"{path}: holds no model.safetensors, videomae.safetensors or videomae.pt")
        file = files[0]
    else:
        file = path
    if not file.is_file():
        raise ReconstructorError(f"{path}: no such checkpoint: give its folder, or a .safetensors or .pt file")
    config_file = file.parent / "config.json"
    try:
        config = VideoMAEConfig.from_json(json.loads(config_file.read_text())) if config_file.is_file() else None
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, json.JSONDecodeError, OSError, RuntimeError, EOFError, KeyError) as error:
        raise ReconstructorError(f"{file}: damaged or no checkpoint: {str(error).splitlines()[0]}") from error
    except Exception as error:  # torch.load raises pickle's whole family for what is not plain weights
        raise ReconstructorError(f"{file}: not plain weights: {str(error).splitlines()[0]}") from error
    return config or VideoMAEConfig(), _own(weights)


def _own(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors under its own names, without its wrappers' prefixes and without the teachers."""
    own = {}
    for name, tensor in weights.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(_ELSEWHERE):
            own[name] = tensor
    return own
