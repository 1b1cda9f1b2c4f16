"""One step: parts of like lengths, the fused optimizer, and going on across how it is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.runs.events import read_events
from pipelines.runs.state import pack_optimizer, unpack_optimizer
from pipelines.train.config import OptimizerConfig
from pipelines.train.feed import fed
from pipelines.train.packing import parts_by_tokens
from pipelines.train.step import make_optimizer
from tests.support.training import policy_config, train, write_dataset


def test_parts_hold_each_sample_once_and_no_more_tokens_than_they_may() -> None:
    lengths = [5, 90, 7, 6, 40, 200, 41, 5]
    parts = parts_by_tokens(lengths, 100)
    assert parts == [[5], [1], [6, 4], [2, 3, 0, 7]]
    assert all(len(part) == 1 or max(lengths[place] for place in part) * len(part) <= 100 for part in parts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def test_parts_by_tokens_change_a_run_by_rounding_alone(data: str, tmp_path: Path) -> None:
    found = []
    for run, changed in (("plain", []), ("packed", ["micro_tokens=1200"])):
        assert train(policy_config(data, tmp_path / run, "steps=3", *changed)) == "done"
        events = read_events(str(tmp_path / run))
        found.append(events[events["kind"] == "step"])
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4)
    assert len(found[0]) == 3


def steps(fused: bool, count: int, begun: bytes | None = None, at: torch.Tensor | None = None):
    """Weights after some steps of Adam on a parabola, and the optimizer's state."""
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    if at is not None:
        nn.utils.vector_to_parameters(at, module.parameters())
    optimizer = make_optimizer(OptimizerConfig(lr=0.1, weight_decay=0.01), module, fused)
    if begun is not None:
        unpack_optimizer(optimizer, begun)
    for _ in range(count):
        module(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["fused"] is (True if fused else None)
    return nn.utils.parameters_to_vector(module.parameters()).detach(), pack_optimizer(optimizer)


def test_a_fused_step_is_a_plain_one_and_runs_go_on_from_either() -> None:
    whole, _ = steps(False, 6)
    assert torch.allclose(steps(True, 6)[0], whole, atol=1e-6)
    for first in (False, True):
        weights, state = steps(first, 3)
        assert torch.allclose(steps(not first, 3, state, weights)[0], whole, atol=1e-6)


def test_on_a_cpu_batches_are_fed_as_they_come() -> None:
    taken = []

    def batches():
        for number in range(3):
            taken.append(number)
            yield number

    following = fed(batches(), torch.device("cpu"))
    assert next(following) == 0 and taken == [0]
    assert list(following) == [1, 2]
