"""What the tests of the method share: golden vectors of the reference, footage from formulas, the plain greedy."""

import json
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.autogaze import plain_greedy
from tests.support import places

GOLDEN = places.GOLDEN


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: more threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """Greedy search written straight down: tests/autogaze/plain_greedy.py."""
    return plain_greedy


@pytest.fixture(scope="session")
def golden():
    """A call of the reference by its name (tests/golden): a dict of tensors."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_labels() -> dict[str, dict[str, list]]:
    """A label file in the reference's format."""
    return json.loads((GOLDEN / "gazing_labels.json").read_text())


@pytest.fixture(scope="session")
def footage():
    """Clips uint8 [B, T, S, S, 3] of a kind: footage(kind, clips, frames, size)."""

    def make(kind: str, clips: int, frames: int, size: int) -> np.ndarray:
        random = np.random.default_rng(20260)
        b, t, y, x, c = np.ogrid[:clips, :frames, :size, :size, :3]
        if kind == "noise":
            return random.integers(0, 256, (clips, frames, size, size, 3), np.uint8)
        if kind == "gradient":
            values = 255 * (x * (c + 1) + y * (b + 1)) / (size * (c + b + 2)) + 3 * t
        elif kind == "flat":  # every patch of a scale removes as much as any other
            values = 40 * b + 30 * (t // 2) + 0 * (x + y + c)
        elif kind == "moving":  # a disc over a texture
            inside = (y - size / 2) ** 2 + (x - size * (t + 1) / (frames + 1)) ** 2 < (size / (4 + b)) ** 2
            values = np.where(inside, 220 - 60 * c, 90 + 60 * np.sin(x / 3 + b) * np.cos(y / 5))
        else:
            values = {"black": 0, "white": 255, "grey": 128}[kind] + 0 * (b + t + y + x + c)
        return np.broadcast_to(np.clip(values, 0, 255), (clips, frames, size, size, 3)).astype(np.uint8)

    return make
