"""Graphs are captured once for what they hold, and never replayed on memory that is no longer theirs."""

import copy
import pickle

import pytest
import torch

from autogaze.model import AutoGaze, Sampling
from autogaze.model.cuda_graphs import Graphs
from autogaze.model.policy import usable_device
from tests.support.recorded import owner_of


@pytest.fixture
def captures(take_the_gpus_path, monkeypatch) -> list[tuple[int, str, int]]:
    """(rows, work, keys) of the graphs captured from now on."""
    take_the_gpus_path(True)
    seen, capture, run = [], Graphs._capture, Graphs.run

    def known(graphs: Graphs, key, work):
        graphs.key = key
        run(graphs, key, work)

    def counted(graphs: Graphs, work):
        seen.append((owner_of(work).size.rows, *graphs.key))
        return capture(graphs, work)

    monkeypatch.setattr(Graphs, "run", known)
    monkeypatch.setattr(Graphs, "_capture", counted)
    return seen


@pytest.fixture
def policies(small):
    """Two policies of one shape and different weights, not shared with other tests."""
    return [AutoGaze.from_pretrained(small(seed, 3)[0]) for seed in (2, 3)]


def test_a_second_call_captures_nothing(policies, clips, captures):
    first = policies[0].gaze(clips(2, 2), max_ratio=0.5)
    count = len(captures)
    assert count and torch.equal(policies[0].gaze(clips(2, 2), max_ratio=0.5).tokens, first.tokens)
    assert len(captures) == count


def test_weights_that_were_copied_in_need_no_new_graphs(policies, clips, captures):
    wanted = policies[1].gaze(clips(2, 2), max_ratio=0.5)
    policies[0].gaze(clips(2, 2), max_ratio=0.5)
    count = len(captures)
    policies[0].load_state_dict(policies[1].state_dict())
    assert torch.equal(policies[0].gaze(clips(2, 2), max_ratio=0.5).tokens, wanted.tokens)
    assert len(captures) == count


def test_weights_in_other_memory_are_the_ones_that_count(policies, clips, captures):
    wanted = policies[1].gaze(clips(2, 2), max_ratio=0.5)
    policies[0].gaze(clips(2, 2), max_ratio=0.5)
    policies[0].load_state_dict(copy.deepcopy(policies[1].state_dict()), assign=True)
    assert torch.equal(policies[0].gaze(clips(2, 2), max_ratio=0.5).tokens, wanted.tokens)


def test_rollouts_of_a_falling_temperature_replay_the_graphs_of_the_first(policies, clips, captures, monkeypatch):
    """One row that settles the lengths, then a group of these lengths; step by step colder (docs/rl.md)."""
    policy, frames = policies[0], clips(1, 2)

    def rollouts():
        for step, slots in enumerate([[20, 20], [7, 3], [4, 18]]):
            temperature = 3.0 - step
            yield policy.rollout(frames, Sampling(temperature, 8, seeds=[step]), max_ratio=1.0)
            group = policy.encode(frames).repeat(4)
            yield policy.rollout(group, Sampling(temperature, 8, seeds=[step, 5, 6, 7]), slots=slots)

    graphed = list(rollouts())
    assert {rows for rows, *_ in captures} == {1, 4} and len(captures) == len(set(captures))
    monkeypatch.setattr(AutoGaze, "cuda_graphs", False)
    for found, wanted in zip(graphed, rollouts(), strict=True):
        assert torch.equal(found.drawn, wanted.drawn)
        torch.testing.assert_close(found.log_probs, wanted.log_probs, atol=1e-5, rtol=1e-5)


def test_a_longer_clip_gets_more_room(policies, clips, captures, monkeypatch):
    policies[0].gaze(clips(2, 1), max_ratio=0.5)
    found = policies[0].gaze(clips(2, 4), max_ratio=0.5)
    monkeypatch.setattr(AutoGaze, "cuda_graphs", False)
    assert torch.equal(found.tokens, policies[0].gaze(clips(2, 4), max_ratio=0.5).tokens)


def test_copies_and_pickles_hold_no_graphs(policies, clips, captures):
    fresh = len(pickle.dumps(policies[0]))
    wanted = policies[0].gaze(clips(2, 2), max_ratio=0.5)
    assert len(pickle.dumps(policies[0])) == fresh
    count = len(captures)
    assert torch.equal(copy.deepcopy(policies[0]).gaze(clips(2, 2), max_ratio=0.5).tokens, wanted.tokens)
    assert len(captures) == 2 * count


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda:1") == torch.device("cuda:1") and usable_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"'cuda:7' is not on this machine, which has cuda:0 to cuda:1"):
        usable_device("cuda:7")
