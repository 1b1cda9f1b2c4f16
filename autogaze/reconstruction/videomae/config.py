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
from autogaze.reconstruction.base import ReconstructorError

# What the wrappers around the network put before its names: DistributedDataParallel and the reference's task.
_PREFIXES = ("module.", "mae.")
_TEACHERS = ("dinov2_reg", "siglip2")  # frozen, and loaded from their own checkpoints
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
_WHOLE = [key for name, key in _KEYS.items() if name not in ("layer_norm_eps", "loss_type", "loss_weights")]
_HEADS = {"num_attention_heads": "hidden_size", "decoder_num_attention_heads": "decoder_hidden_size"}
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


@dataclass(frozen=True)
class VideoMAEConfig:
    """Hyper-parameters of a released size (ViT-MAE-large), and what the error is made of.

    See docs/method.md, section 'VideoMAE reconstructor'.

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
                raise ReconstructorError(f"{name} is {document[name]!r}, wanted {wanted!r}")
        missing = [key for key in ("scales", *_KEYS.values()) if key not in document]
        if missing:
            hint = (
                "; autogaze train reconstructor init= begins from a ViT-MAE of images" if missing[0] == "scales" else ""
            )
            raise ReconstructorError(f"no {', '.join(missing)}: not a multi-scale VideoMAE's{hint}")
        for key in _WHOLE:
            if type(document[key]) is not int or document[key] < 1:
                raise ReconstructorError(f"{key} is {document[key]!r}, wanted a positive integer")
        for key, width in _HEADS.items():
            if document[width] % 4:  # sine and cosine of row and column
                raise ReconstructorError(f"{width} is {document[width]}, wanted a multiple of 4")
            if document[width] % document[key]:
                raise ReconstructorError(f"{key} is {document[key]}, wanted a divisor of {width} {document[width]}")
        eps = document["layer_norm_eps"]
        if type(eps) not in (int, float) or not 0 < eps < 1:
            raise ReconstructorError(f"layer_norm_eps is {eps!r}, wanted a number between 0 and 1")
        values = {name: document[key] for name, key in _KEYS.items()}
        try:
            config = cls(scales=tuple(sorted(int(scale) for scale in str(document["scales"]).split("+"))), **values)
            config.vocabulary.require_whole("frames are rebuilt of whole patches")
        except ValueError as error:
            raise ReconstructorError(f"scales is {document['scales']!r}: {error}") from error
        return config

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

    A file without a config.json beside it is taken for the released size, and refused if its tensors are not; its loss
    then has the teachers that lie in the file, weighted as the reference's. Raises ReconstructorError. Pickles are read
    with weights only.
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
    config = _read_config(config_file) if config_file.is_file() else None
    weights = {_own_name(name): tensor for name, tensor in read_tensors(file).items()}
    teachers = [name for name in _TEACHERS if any(key.startswith(f"{name}.") for key in weights)]
    if config is None:
        config = VideoMAEConfig(
            loss_type="+".join(["l1", *teachers]), loss_weights="+".join(["1", *["0.3"] * len(teachers)])
        )
    return config, {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in _TEACHERS}


def _read_config(file: Path) -> VideoMAEConfig:
    try:
        document = json.loads(file.read_bytes())
        if not isinstance(document, dict):
            raise ReconstructorError("no JSON object")
        return VideoMAEConfig.from_json(document)
    except (OSError, ValueError) as error:
        raise ReconstructorError(f"{file}: {error}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a pickle, read with weights only. Raises ReconstructorError."""
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError) as error:
        raise ReconstructorError(f"{file}: damaged or no checkpoint: {_first_line(error)}") from error
    except Exception as error:  # torch.load raises pickle's whole family for what is not plain weights
        raise ReconstructorError(f"{file}: not plain weights: {_first_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ReconstructorError(f"{file}: not plain weights: wanted tensors by their names")
    return weights


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _own_name(name: str) -> str:
    """A tensor's name without its wrappers' prefixes."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
