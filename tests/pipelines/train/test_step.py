"""One step: parts of like lengths, the fused optimizer, and going on across how it is computed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autogaze.gaze import Gaze
from autogaze.model import scoring
from pipelines.loading.loader import ShardLoader
from pipelines.runs.events import read_events
from pipelines.runs.state import pack_optimizer, unpack_optimizer
from pipelines.train.config import OptimizerConfig
from pipelines.train.feed import fed, worked_ahead
from pipelines.train.packing import parts_by_tokens
from pipelines.train.policy import PolicyTask
from pipelines.train.step import accumulate_gradients, make_optimizer, part_of
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

    following = fed(batches(), torch.device("cpu"), pytest.fail)
    assert next(following) == 0 and taken == [0]
    assert list(following) == [1, 2]


def test_a_thread_works_on_the_next_item_while_one_is_in_use():
    done, who = [threading.Event() for _ in range(3)], set()

    def work(item: int) -> None:
        who.add(threading.current_thread().name)
        done[item].set()
        if item == 2:
            raise ValueError("the third")

    items = worked_ahead(iter(range(3)), work)
    assert next(items) == 0 and done[1].wait(5)  # nobody asked for the second yet
    assert next(items) == 1
    with pytest.raises(ValueError, match="the third"):
        next(items)
    assert who == {"autogaze-ahead_0"}


def test_the_gaze_of_a_part_is_made_once():
    lengths = torch.tensor([[1, 2], [0, 1], [2, 0]])
    gaze = Gaze(tokens=torch.arange(6), lengths=lengths)
    part = part_of(gaze, [2, 0])
    assert part.tokens.tolist() == [4, 5, 0, 1, 2] and part_of(gaze, (2, 0)) is part
    assert part_of(gaze, range(3)) is gaze and part_of(gaze, range(1)) is not gaze


@pytest.mark.parametrize("setting", ["micro_batch=2", "micro_tokens=900", "micro_batch=64"])
def test_a_step_finds_what_was_laid_out_ahead(data: str, tmp_path: Path, monkeypatch, setting) -> None:
    config, cpu = policy_config(data, tmp_path / "run", setting), torch.device("cpu")
    task = PolicyTask(config, cpu)
    batch, again = (next(iter(ShardLoader(config.loader_config, split="train"))) for _ in range(2))

    def losses(batch):
        return accumulate_gradients(config, task, task.module, batch, [10.0], cpu, parts=task.parts(batch))["loss"]

    plain = losses(again)
    task.ahead(batch)
    monkeypatch.setattr(scoring, "TokenLayout", pytest.fail)
    assert torch.equal(losses(batch), plain)
