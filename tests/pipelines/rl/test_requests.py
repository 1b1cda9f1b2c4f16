"""Requests of several groups: each group is the one it would be alone, and what is learned from them is the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.rl.actors import _Maker
from pipelines.rl.config import version_of
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.packing import packed_parts
from pipelines.rl.rollouts import RolloutMaker
from pipelines.rl.sources import OwnRollouts, in_requests
from pipelines.rl.task import RLTask
from tests.support import training
from tests.support.training import newest, require_clean, rl_config, run_ranks, train

CPU = torch.device("cpu")
ASKED = [RolloutRequest(11, 0, number, 0) for number in (5, 0, 7)]


def task_of(data: str, *words: str) -> RLTask:
    config = rl_config(data, Path("unused"), *words)
    task = training.task_of(config)(config, CPU)
    assert isinstance(task, RLTask)
    return task


@pytest.fixture
def made(gazes: str, request: pytest.FixtureRequest) -> Iterator[tuple[RLTask, RolloutMaker]]:
    task = task_of(gazes, *getattr(request, "param", []))
    maker = RolloutMaker(task.config, task.policy.config, task.threshold, 12, CPU)
    maker.load(0, task._weights())
    yield task, maker
    maker.close()


@pytest.mark.parametrize(
    "made",
    [
        [],
        ["sample.strategy=threshold", "max_ratio=0.05"],
        ["sample.strategy=ratio", "scale.dtype=bfloat16"],
        ["sample.min_temperature=1e-5", "sample.group=2", "max_ratio=0.01"],  # all alike: sampled again, warmer
    ],
    indirect=True,
)
def test_a_group_is_drawn_as_if_its_request_were_for_it_alone(made: tuple[RLTask, RolloutMaker]) -> None:
    task, maker = made
    together, alone = maker.make_all(ASKED), [maker.make(request) for request in ASKED]
    assert len({len(group.slots) for group in alone}) > 1, "clips of different lengths"
    tolerance = 1e-4 if task.config.scale.dtype == "float32" else 3e-2
    for one, other in zip(together, alone, strict=True):
        assert (one.request, one.clip, one.temperature) == (other.request, other.clip, other.temperature)
        for name in ("at", "seeds", "slots", "drawn", "used", "errors"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=tolerance, rtol=1e-4)
        assert (one.seconds >= 0).all() and one.seconds.sum() > 0


def test_gradients_of_packed_groups_are_those_of_group_after_group(gazes: str) -> None:
    words = ["objective.ratio=behaviour", "objective.label_prediction=1", "objective.kl=0.1", "sample.top_k=0"]
    task = task_of(gazes, *words)
    maker = RolloutMaker(task.config, task.policy.config, task.threshold, 12, CPU)
    maker.load(0, task._weights())
    asked = [*ASKED, RolloutRequest(2, 0, 3, 0)]  # the last at another temperature
    groups, batch = [maker.make(request) for request in asked], maker.read(asked)
    maker.close()
    with torch.no_grad():
        for parameter in task.policy.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))

    def learned(parts: Sequence[Sequence[int]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        task.module.zero_grad()
        found = []
        for rows in parts:
            frames, mine = batch.frames[list(rows)], [groups[row] for row in rows]
            labels = training.Gaze.cat([batch.gaze[row] for row in rows])
            losses = task.module(frames, mine, labels, 5.0)
            losses["loss"].sum().backward()
            found.append({name: value.detach() for name, value in losses.items()})
        gradients = {name: value.grad.clone() for name, value in task.policy.named_parameters()}
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}, gradients

    one_by_one, packed = learned([[0], [1], [2], [3]]), learned([[0, 1, 2, 3]])
    for found, wanted in zip(packed, one_by_one, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-4, msg=name)


def group_of(frames: int, temperature: float = 1.0, members: int = 3) -> Group:
    slots, shape = np.full(frames, 2), (members, 2 * frames)
    return Group(
        RolloutRequest(0, 0, frames, 0), "", temperature, 0.1, np.array([frames - 1]), np.arange(members), slots,
        np.zeros(shape, np.int16), np.ones(shape, bool), np.zeros(shape, np.float32),
        np.zeros((members, 1), np.float32), np.zeros(3),
    )  # fmt: skip


def test_parts_hold_every_group_once_and_no_more_tokens_than_they_may() -> None:
    random = np.random.default_rng(3)
    for _ in range(40):
        groups = [group_of(int(random.integers(1, 17)), float(random.integers(1, 3))) for _ in range(9)]
        limit = int(random.integers(100, 20_000))
        parts = packed_parts(groups, limit, 196)
        assert sorted(place for part in parts for place in part) == list(range(9))
        for part in parts:
            longest = max(len(groups[place].slots) * 198 for place in part)
            assert len(part) == 1 or 3 * len(part) * longest <= limit
            assert len({groups[place].temperature for place in part}) == 1
    assert packed_parts(groups, 10**9, 196) != [[place] for place in range(9)]


def test_a_request_is_cut_by_places_in_the_step_alone() -> None:
    asked = [RolloutRequest(4, 0, number, version_of(4, 1)) for number in (9, 3, 8, 2, 7)]
    assert in_requests(asked, 2) == [tuple(asked[:2]), tuple(asked[2:4]), (asked[4],)]


def test_wide_requests_and_packed_learning_end_where_the_plain_run_does(gazes: str, tmp_path: Path) -> None:
    """Also on two ranks, whose groups make different numbers of parts."""
    short, wide = ["rollouts.lag=1", "steps=2"], ["rollouts.groups=3", "micro_tokens=2500"]
    ranks = ["scale.min_workers=2", "scale.max_workers=2"]
    assert train(rl_config(gazes, tmp_path / "plain", *short)) == "done"
    assert train(rl_config(gazes, tmp_path / "one", *short, *wide)) == "done"
    assert run_ranks(rl_config(gazes, tmp_path / "two", *short, *wide, *ranks), 2, tmp_path / "m") == ["done", "done"]
    wanted = load_file(newest(tmp_path / "plain") / "policy" / "model.safetensors")
    for name in ("one", "two"):
        require_clean(tmp_path / name)
        for weight, value in load_file(newest(tmp_path / name) / "policy" / "model.safetensors").items():
            torch.testing.assert_close(value, wanted[weight], atol=2e-4, rtol=0, msg=weight)


# -- reading ahead -----------------------------------------------------------------------------------------------------


class Watched:
    """Makes numbers of requests, and only once the next request has been read: it would wait for ever otherwise."""

    def __init__(self) -> None:
        self.loads: list[int] = []
        self.read_of: dict[int, threading.Event] = {number: threading.Event() for number in range(9)}

    def load(self, version: int, weights: object) -> None:
        self.loads.append(version)

    def read(self, requests: Sequence[RolloutRequest]) -> list[int]:
        self.read_of[requests[0].id].set()
        return [request.id for request in requests]

    def make_all(self, requests: Sequence[RolloutRequest], clips: list[int], waited: float) -> list[int]:
        if requests[0].id < 4:
            assert self.read_of[requests[0].id + 2].wait(20), "the next request was not read meanwhile"
        return clips

    def close(self) -> None:
        pass


def test_the_learners_own_rollouts_read_the_next_request_meanwhile() -> None:
    maker = Watched()
    source = OwnRollouts(lambda: maker, 2)  # type: ignore[arg-type, return-value]
    for step in (0, 1):
        source.publish(step, b"weights")
        source.request([RolloutRequest(step, 0, number, step) for number in range(3 * step, 3 * step + 3)])
    maker.read_of[2 + 2] = maker.read_of[3]
    assert source.take(0) == [0, 1, 2]
    assert maker.read_of[3].is_set(), "also across steps"
    source.close()


def test_an_actor_reads_the_next_request_meanwhile() -> None:
    maker = Watched()
    actor = _Maker(lambda: maker)  # type: ignore[arg-type, return-value]
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = actor.make((RolloutRequest(0, 0, number, 0),), np.zeros(1))  # type: ignore[assignment]

    threads = [threading.Thread(target=ask, args=(number,)) for number in (2, 4)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert found == {2: [2], 4: [4]}


def test_weights_reach_the_device_once_a_version(made: tuple[RLTask, RolloutMaker], monkeypatch) -> None:
    task, maker = made
    copied = []
    load = maker.policy.load_state_dict
    monkeypatch.setattr(maker.policy, "load_state_dict", lambda weights: (copied.append(1), load(weights))[1])
    weights = task._weights()
    for version in (0, 0, 1, 1, 1):
        maker.load(version, weights)
    assert len(copied) == 1
