"""What each job asks of a GPU, counted on a CPU: it may fall, not rise. And the counter itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from counting import Counting, as_graphs
from launches import UNITS, Size, count

from autogaze.model.cuda_graphs import Graphs

# Launches and waits of clips of four frames, layers as released; a graph is one launch. Lower them with what is won.
MOST = {
    "gaze-1": (97, 1),
    "gaze-12": (97, 1),
    "gaze-64": (97, 1),
    "gaze-12-eager": (1_665, 1),
    "gaze-64-eager": (1_665, 1),
    "gaze-12-stops": (114, 4),
    "ntp-step": (623, 0),
    "rl-rollout": (100, 1),
    "rl-rollout-8": (101, 1),
    "rl-reward": (447, 1),
    "rl-reward-8": (893, 1),
    "rl-learner": (735, 15),
    "rl-learner-8": (736, 15),
    "reconstructor-1": (1_322, 0),
    "reconstructor-8": (1_324, 0),
    "search-1": (1_093, 0),
    "search-8": (1_094, 0),
    "refiner-1": (306, 1),
    "refiner-8": (307, 1),
    "refiner-search": (1_586, 0),
    "vision": (439, 0),
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
