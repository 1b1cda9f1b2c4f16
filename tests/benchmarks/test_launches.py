"""What each job asks of a GPU, counted on a CPU: it may fall, not rise. And the counter itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from counting import Counting, as_graphs
from launches import UNITS, Size, count

from autogaze.device import constant, sent
from autogaze.model.cuda_graphs import Graphs

# Launches and waits of clips of four frames, layers as released; a graph is one launch. Lower them with what is won.
MOST = {
    "gaze-1": (45, 1),
    "gaze-12": (46, 1),
    "gaze-64": (46, 1),
    "gaze-12-eager": (1_665, 1),
    "gaze-64-eager": (1_665, 1),
    "gaze-12-stops": (66, 4),
    "ntp-step": (524, 0),
    "rl-rollout": (47, 1),
    "rl-rollout-8": (48, 1),
    "rl-reward": (450, 1),
    "rl-reward-8": (899, 1),
    "rl-learner": (764, 0),
    "rl-learner-8": (765, 0),
    "reconstructor-1": (1_325, 0),
    "reconstructor-8": (1_327, 0),
    "search-1": (1_093, 0),
    "search-8": (1_094, 0),
    "refiner-1": (306, 0),
    "refiner-8": (307, 0),
    "refiner-search": (1_586, 0),
    "vision": (443, 0),
}
QUICK = {"gaze-12", "rl-reward", "reconstructor-1", "search-8"}


def test_each_unit_has_a_bound() -> None:
    assert MOST.keys() == UNITS.keys()


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MOST])
def test_a_unit_asks_for_no_more_than_it_did(name: str) -> None:
    torch.set_num_threads(1)
    counted = count(name, Size(narrow=True, frames=4))
    launches, waits = MOST[name]
    assert counted.launches <= launches, counted.calls.most_common(12)
    assert counted.waits <= waits, counted.waited


def test_a_graph_is_one_launch_and_cannot_wait() -> None:
    held, graphs = torch.zeros(3), Graphs(torch.device("cpu"))
    with as_graphs(), Counting(held) as counted:
        for _ in range(2):
            graphs.run("piece", lambda: held.add_(1).exp_())
        with pytest.raises(RuntimeError, match="a graph waits for the device"):
            graphs.run("other", lambda: print(held.sum().item()))
    assert counted.calls == {"graph": 3} and counted.in_graphs == {"add_": 2, "exp_": 2, "sum": 1}


def test_what_computes_on_the_device_is_a_launch_and_the_hosts_own_is_not() -> None:
    x, host = torch.ones(4, 3), torch.ones(3)
    with Counting(x) as counted:
        y = x @ torch.ones(3, 2, device="cpu") + 1  # made by name: on the device
        (y.view(-1)[:2]).exp()
        host * 2
    assert counted.calls == {"ones": 1, "mm": 1, "add": 1, "exp": 1}
    assert counted.flops == 2 * 4 * 3 * 2 and counted.waits == 0
    assert counted.bytes >= 4 * (12 + 6 + 8)


def test_what_brings_a_value_to_the_host_is_a_wait_and_what_is_there_already_is_none() -> None:
    x = torch.arange(4.0)
    with Counting(x) as counted:
        y = (x * 2).cpu()
        assert y[1].item() == 2 and y.tolist() == [0, 2, 4, 6] and (y > 1).any()
        assert float(x[1]) == 1 and len(x[x > 1]) == 2 and len(x.nonzero()) == 3
        x.repeat_interleave(torch.tensor([1, 2, 1, 1]) * (x < 9))
    assert counted.waited == {"cpu": 1, "__float__": 1, "__getitem__": 1, "nonzero": 1, "repeat_interleave": 1}


def test_a_copy_to_the_device_is_a_wait_unless_it_does_not_block() -> None:
    device, host = torch.device("cpu"), torch.ones(3)
    with Counting(torch.zeros(1)) as counted:
        host.to(device), host.to(device, non_blocking=True), host.to(torch.int64)
        torch.tensor([1.0], device=device), torch.tensor([1.0]), torch.full((), 1.0, device=device)
        sent(host, device), constant((1.0, 2.0), device)
    assert counted.waited == {"to": 1, "tensor": 1}


def test_a_constant_is_one_tensor_and_may_be_used_where_gradients_are_computed() -> None:
    with torch.inference_mode():
        made = constant((3.0, 2.5), torch.device("cpu"))
    x = torch.ones(2, requires_grad=True)
    (x / made).sum().backward()
    assert x.grad is not None and made is constant((3.0, 2.5), torch.device("cpu"))
