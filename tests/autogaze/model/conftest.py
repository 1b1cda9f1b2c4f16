"""What the tests of the policy share: the reference's checkpoints and clips, random small ones, the plain policy."""

import json
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze.model import AutoGaze
from autogaze.model import policy as policies
from autogaze.model.cache import PaddedCache
from autogaze.model.cuda_graphs import Graphs
from autogaze.model.wide_decoder import WideCache
from tests.autogaze.model import plain_policy as plain
from tests.support import places, recorded

GOLDEN = places.GOLDEN


@pytest.fixture(scope="session")
def plain_policy() -> ModuleType:
    """The policy written straight down: tests/autogaze/model/plain_policy.py."""
    return plain


@pytest.fixture(scope="session")
def policy():
    """A checkpoint of the reference: policy("k10" or "k4", positions). Not to be changed."""
    return cache(lambda name, positions=None: AutoGaze.from_pretrained(GOLDEN / f"autogaze_small_{name}", positions))


@pytest.fixture(scope="session")
def oracle(plain_policy):
    """The plain policy on a checkpoint of the reference: oracle("k10" or "k4")."""
    return cache(lambda name: plain_policy.PlainPolicy(GOLDEN / f"autogaze_small_{name}"))


@pytest.fixture(scope="session")
def inputs() -> dict[str, torch.Tensor]:
    """What the golden calls were made on."""
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="session")
def video(inputs) -> torch.Tensor:
    """The two clips of the golden calls: uint8 [2, 4, 224, 224, 3]."""
    return inputs["raw_uint8"]


@pytest.fixture(scope="session")
def small(tmp_path_factory, plain_policy):
    """A random small checkpoint, 20 patches on 64x64 frames: small(seed, block) -> (folder, its plain policy)."""

    @cache
    def make(seed: int = 0, block: int = 3):
        folder = tmp_path_factory.mktemp("checkpoint")
        write_small_checkpoint(folder, seed, block)
        return folder, plain_policy.PlainPolicy(folder)

    return make


@pytest.fixture(scope="session")
def small_policy(small):
    """The policy on a random small checkpoint: small_policy(seed, block, positions). Not to be changed."""

    @cache
    def load(seed: int = 0, block: int = 3, positions: str = "reference") -> AutoGaze:
        return AutoGaze.from_pretrained(small(seed, block)[0], positions)

    return load


@pytest.fixture(scope="session")
def slots_of():
    """slots_of(padded, size) -> per row and frame the ids in its slots, `size` (end of frame) in unused ones."""

    def read(padded: dict[str, torch.Tensor], size: int = 265) -> list[list[list[int]]]:
        counts = padded["num_gazing_each_frame"].tolist()
        frame = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        ids = torch.where(padded["if_padded_gazing"], size, padded["gazing_pos"] - frame * size)
        return [[part.tolist() for part in row.split(counts)] for row in ids]

    return read


@pytest.fixture(scope="session")
def clips():
    """Random clips for a small checkpoint: uint8 [B, T, 64, 64, 3] of large and small texture."""

    def make(count: int, frames: int, seed: int = 0, side: int = 64) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        coarse = torch.randint(0, 160, (count, frames, 4, 4, 3), generator=random, dtype=torch.uint8)
        fine = torch.randint(0, 96, (count, frames, side, side, 3), generator=random, dtype=torch.uint8)
        return coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3) + fine

    return make


def write_small_checkpoint(folder: Path, seed: int, block: int) -> None:
    """A checkpoint folder of the reference's format with hidden size 16, 2 layers, 2 heads and two scales.

    Weights are drawn wide, so that gazes follow the content. The first channel is large in every token, and the loss
    heads lean on it: predicted losses lie around 1, on both sides of the thresholds in use.
    """
    config = json.loads((GOLDEN / "autogaze_small_k10" / "config.json").read_text())
    parts = config["gaze_model_config"]
    decoder, hidden, ids, vision = parts["gaze_decoder_config"], 16, 20, 16
    config |= {"scales": "32+64", "num_vision_tokens_each_frame": ids}
    parts |= {"input_img_size": 64, "num_vision_tokens_each_frame": ids}
    parts["vision_model_config"] |= {"hidden_dim": hidden, "out_dim": hidden}
    parts["connector_config"] |= {"hidden_dim": hidden, "num_tokens": vision}
    decoder |= {"hidden_size": hidden, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    decoder |= {"head_dim": 8, "vocab_size": ids + 1, "eos_token_id": ids, "num_multi_token_pred": block}
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((GOLDEN / "autogaze_small_k10" / "preprocessor_config.json").read_text())
    processor |= {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))

    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=random) * gain / max(1, torch.Size(shape[1:]).numel()) ** 0.5

    weights = {
        "vision_model.temporal_conv.weight": draw(hidden, 3, 1, 16, 16, gain=3),
        "vision_model.temporal_conv.bias": draw(hidden),
        "vision_model.norm.weight": 1 + draw(hidden, gain=0.1),
        "vision_model.norm.bias": draw(hidden, gain=0.1),
        "vision_model.blocks.0.conv3d.weight": draw(hidden, hidden, 3, 3, 3, gain=2),
        "vision_model.blocks.0.conv3d.bias": draw(hidden, gain=0.1),
        "vision_model.out_proj.weight": draw(hidden, hidden, 1, 1, 1, gain=2),
        "vision_model.out_proj.bias": draw(hidden, gain=0.1),
        "connector.pos_embed": draw(vision, hidden, gain=2),
        "gaze_decoder.model.embed_tokens.weight": draw(ids + 1, hidden, gain=6),
        "gaze_decoder.model.norm.weight": 1 + draw(hidden, gain=0.1),
        "gaze_decoder.lm_head.weight": draw(block * (ids + 1), hidden, gain=3),
        "gaze_decoder.task_loss_prediction_head.weight": draw(block, hidden, gain=0.5),
    }
    for name in ("connector.pos_embed", "gaze_decoder.model.embed_tokens.weight"):
        weights[name][:, 0] = 4
    weights["gaze_decoder.task_loss_prediction_head.weight"][:, 0] = 0.5
    for layer in range(2):
        name = f"gaze_decoder.model.layers.{layer}"
        for part in "qkvo":
            weights[f"{name}.self_attn.{part}_proj.weight"] = draw(hidden, hidden, gain=1.5)
        for part in ("gate", "up"):
            weights[f"{name}.mlp.{part}_proj.weight"] = draw(24, hidden, gain=1.5)
        weights[f"{name}.mlp.down_proj.weight"] = draw(hidden, 24, gain=1.5)
        for part in ("input", "post_attention"):
            weights[f"{name}.{part}_layernorm.weight"] = 1 + draw(hidden, gain=0.1)
    save_file(
        {f"gazing_model.{key}": value.contiguous() for key, value in weights.items()}, folder / "model.safetensors"
    )


@pytest.fixture
def take_the_gpus_path(monkeypatch):
    """Makes policies gaze as on a GPU, with or without graphs. Keys are read in buckets that change within a frame."""

    def take(graphs: bool) -> None:
        monkeypatch.setattr(PaddedCache, "bucket", 8)
        monkeypatch.setattr(WideCache, "bucket", 8)
        monkeypatch.setattr(policies, "RaggedCache", PaddedCache)
        monkeypatch.setattr(policies.AutoGaze, "wide", True)
        if graphs:
            monkeypatch.setattr(Graphs, "_capture", recorded.capture)
            monkeypatch.setattr(policies.AutoGaze, "cuda_graphs", True)

    return take
