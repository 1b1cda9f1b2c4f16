"""What the tests of vision share: small random vision transformers of every family, their frames and gazes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from autogaze.gaze import Gaze
from autogaze.vision import GazedEncoder, load
from tests.support.places import GOLDEN

SCALES = (16, 32, 64)  # of patches of 8 pixels: grids of 2, 4 and 8, and 84 ids
SIZE = 64
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
WIDE = {"intermediate_size": 48}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {"image_size": SIZE, **WIDE}),
    "siglip2": ("Siglip2VisionConfig", "Siglip2VisionModel", {"num_patches": 64, **WIDE}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {"image_size": SIZE}),
    "dinov2_swiglu": ("Dinov2Config", "Dinov2Model", {"image_size": SIZE, "use_swiglu_ffn": True}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"image_size": SIZE, "num_register_tokens": 3},
    ),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"image_size": SIZE, "num_register_tokens": 2, **WIDE}),
    "dinov3_gated": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {"image_size": SIZE, "use_gated_mlp": True, "hidden_act": "silu", **WIDE},
    ),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {"image_size": SIZE, **WIDE}),
    "vit": ("ViTConfig", "ViTModel", {"image_size": SIZE, **WIDE}),
}


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a family, each in turn."""
    return request.param


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """checkpoint(kind, seed) -> the folder of a small random one, written by transformers."""

    @cache
    def make(kind: str, seed: int = 0) -> Path:
        config, model, options = KINDS[kind]
        torch.manual_seed(seed)
        made = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **options))
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # fresh weights hardly look at each other: draw them wide
            for name, weight in made.named_parameters():
                gain = 0.2 if "norm" in name or weight.dim() == 1 else 1.0 / max(1, weight[0].numel()) ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=random) * gain + (name.endswith("norm1.weight")))
        folder = tmp_path_factory.mktemp(kind)
        made.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder(checkpoint):
    """encoder(kind, attention) on a small random checkpoint. Not to be changed."""

    @cache
    def make(kind: str = "siglip", attention: str = "block_causal", scales: tuple[int, ...] = SCALES) -> GazedEncoder:
        return load(checkpoint(kind), scales=scales, attention=attention)

    return make


@pytest.fixture(scope="session")
def model(checkpoint):
    """The same checkpoint as transformers has it."""

    @cache
    def make(kind: str) -> Any:
        return getattr(transformers, KINDS[kind][1]).from_pretrained(checkpoint(kind)).eval()

    return make


@pytest.fixture(scope="session")
def pixels():
    """pixels(clips, frames, side) -> floats [B, T, 3, side, side]."""

    def make(clips: int = 2, frames: int = 4, side: int = SIZE, seed: int = 0) -> torch.Tensor:
        return torch.randn(clips, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def gazes(encoder):
    """gazes(lengths) -> a random gaze with these numbers of patches of each frame of each clip, in no order."""

    def make(lengths: list[list[int]], seed: int = 0) -> Gaze:
        random = torch.Generator().manual_seed(seed)
        vocabulary = encoder().vocabulary
        clips = [[torch.randperm(vocabulary.size, generator=random)[:n].tolist() for n in clip] for clip in lengths]
        return Gaze.from_lists(clips, vocabulary=vocabulary)

    return make


class Case(NamedTuple):
    """A case of the reference: an encoder's folder and scales, and the tensors of its calls."""

    folder: Path
    scales: tuple[int, ...]
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """reference(name) -> a case of tests/golden/vit."""

    @cache
    def make(name: str) -> Case:
        about = json.loads((GOLDEN / "vit" / "meta.json").read_text())[name]
        config = dict(about["config"])
        scales = tuple(int(scale) for scale in config.pop("scales").split("+"))
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps({"model_type": "siglip_vision_model", **config}))
        save_file(load_file(GOLDEN / "vit" / about["weights"]), folder / "model.safetensors", {"format": "pt"})
        return Case(folder, scales, load_file(GOLDEN / "vit" / f"{name}.safetensors"))

    return make
