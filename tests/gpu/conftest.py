"""What the tests of a GPU share. `make gpu` runs them; elsewhere they are skipped where there is no GPU.

They need PyTorch, numpy, safetensors, pytest, and no more of what the project installs: what needs more says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze

GOLDEN = Path(__file__).parent.parent / "golden"
PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default=None, help="of the tests of a GPU: cuda, or cpu to try the tests themselves")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that is held to the CPU."""
    asked = pytestconfig.getoption("--device", default=None)
    if asked is None and not torch.cuda.is_available():
        pytest.skip("there is no GPU here; `make gpu DEVICE=cpu` runs these tests on a CPU")
    return torch.device(asked or "cuda")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """A call of the reference by its name (tests/golden)."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def video(golden) -> torch.Tensor:
    """The two clips of the golden calls: uint8 [2, 4, 224, 224, 3], on the CPU."""
    return golden("inputs")["raw_uint8"]


@pytest.fixture
def policy() -> Callable[..., AutoGaze]:
    """A checkpoint of the reference: policy("k10" or "k4", device, ...), as `from_pretrained` takes the rest."""

    def load(name: str, device: torch.device | str = "cpu", positions: str | None = None, **how) -> AutoGaze:
        return AutoGaze.from_pretrained(GOLDEN / f"autogaze_small_{name}", positions, device, **how)

    return load


@pytest.fixture(scope="session")
def given(golden) -> Callable[[str], Gaze]:
    """The gaze of a golden call."""
    return lambda name: Gaze.from_padded(*(golden(name)[key] for key in PADDED))
