"""Gazing wide: its pieces of work are what a CUDA graph can hold, and it seldom waits for the device.

That it gives the same gaze is held by the tests that take the GPU's path (test_padded_attention.py, test_rollout.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, Sampling
from autogaze.model.cuda_graphs import Graphs
from autogaze.model.wide import Wide
from autogaze.model.wide_decoder import WideCache
from tests.support import places
from tests.support.recorded import Recorded, memory_of

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from counting import Counting


@pytest.fixture
def replays(take_the_gpus_path, monkeypatch) -> list[str]:
    """Which pieces of work were replayed from now on, keys read in buckets of the size that GPUs use."""
    take_the_gpus_path(True)
    monkeypatch.setattr(WideCache, "bucket", 512)
    seen, run = [], Graphs.run

    def noted(graphs: Graphs, key, work):
        if key in graphs._graphs:
            seen.append(key[0])
        run(graphs, key, work)

    monkeypatch.setattr(Graphs, "run", noted)
    return seen


def plainly(monkeypatch, call) -> Gaze:
    """The gaze row by row."""
    with monkeypatch.context() as patched:
        patched.setattr(AutoGaze, "wide", False)
        patched.setattr(AutoGaze, "cuda_graphs", False)
        return call()


def same(one: Gaze, other: Gaze) -> bool:
    losses = torch.allclose(one.losses, other.losses, atol=1e-4) and torch.allclose(
        one.initial, other.initial, atol=1e-4
    )
    return one.tokens.equal(other.tokens) and one.frame_slots().equal(other.frame_slots()) and losses


def test_one_recording_serves_other_frames_limits_and_weights(small, clips, replays, monkeypatch):
    """Recorded without Python and on one memory: in a real capture nothing else would differ between two replays."""
    model, other = (AutoGaze.from_pretrained(small(seed, 3)[0]) for seed in (2, 3))
    calls = [
        (clips(2, 4), {"max_ratio": 0.5}),
        (clips(2, 3, seed=1), {"max_ratio": [0.4, 0.05, 0.3], "loss_threshold": 0.6}),
        (clips(2, 2, seed=2), {"max_ratio": 0.5, "loss_threshold": [[0.2], [0.7]]}),
    ]
    for number, (frames, limits) in enumerate(calls):
        if number == 2:
            model.load_state_dict(other.state_dict())
        wanted = plainly(monkeypatch, lambda frames=frames, limits=limits: model.gaze(frames, **limits))
        assert same(model.gaze(frames, **limits), wanted)
    (kept,) = model._kept._kept.values()
    assert {name for name, _ in kept.graphs._graphs} == {"prefill", "block", "settle"} and len(kept.graphs._graphs) == 3
    assert replays.count("prefill") == 4 + 3 + 2 - 1 and replays.count("block") > 10


def test_recorded_gaze_equals_the_references(policy, video, replays):
    golden = load_file(places.GOLDEN / "k10__ratio.safetensors")
    gaze = policy("k10").gaze(video, max_ratio=0.1)
    assert all(torch.equal(part, golden[name]) for name, part in gaze.padded().items())
    assert len(replays) > 4


def test_tiles_of_one_clip_disturb_each_other_in_graphs_too(policy, inputs, replays, monkeypatch):
    from autogaze.patches import PatchVocabulary

    model, frames = policy("k10"), inputs["raw_320_uint8"][None]
    limits = {"max_ratio": 0.3, "loss_threshold": 0.7, "vocabulary": PatchVocabulary((48, 96, 160, 320), 16)}
    wanted = plainly(monkeypatch, lambda: model.gaze(frames, **limits))
    assert torch.equal(model.gaze(frames, **limits).tokens, wanted.tokens) and "block" in replays


@pytest.mark.parametrize(
    ("how", "waits"),
    [
        ({"max_ratio": 1.0}, 1),
        pytest.param({"max_ratio": 0.6, "sample": Sampling(seeds=3)}, 1, marks=pytest.mark.slow),
        pytest.param({"loss_threshold": 0.6}, 6, marks=pytest.mark.slow),
        ({"loss_threshold": 0.0}, 6),  # every frame takes more blocks than the first guess
    ],
)
def test_the_host_waits_at_most_once_a_frame(small, clips, take_the_gpus_path, how, waits):
    take_the_gpus_path(False)
    model, frames = AutoGaze.from_pretrained(small(2, 3)[0]), clips(5, 6)
    with Counting(model.parameters(), frames) as counted:
        model.gaze(frames, **how)
    assert counted.waits <= waits, counted.waited


def test_frames_that_take_more_blocks_than_guessed_are_gazed_to_their_end(
    small, clips, take_the_gpus_path, monkeypatch
):
    """Also a clip's last frame, whose missing blocks come after the results were asked for once."""
    model, frames = AutoGaze.from_pretrained(small(2, 1)[0]), clips(3, 3)
    thresholds = torch.tensor([[0.0, 9.0, 0.5], [9.0, 0.0, 9.0], [0.4, 9.0, 0.0]])
    wanted = model.gaze(frames, loss_threshold=thresholds)
    take_the_gpus_path(True)
    monkeypatch.setattr(Wide, "_expect", lambda wide, _slowest: setattr(wide, "expected", 1))
    assert same(model.gaze(frames, loss_threshold=thresholds), wanted)
    assert wanted.frame_slots().amax(dim=0).gt(2).all()


# -- what records --------------------------------------------------------------------------------------------------

x, mask, host = torch.ones(4), torch.zeros(4, dtype=torch.bool), torch.ones(4)


@pytest.mark.parametrize(
    "work",
    [
        lambda: x.sum().item(),
        lambda: bool(mask.any()),
        lambda: x.tolist(),
        lambda: x[mask],
        lambda: x.masked_select(mask),
        lambda: mask.nonzero(),
        lambda: x.mul_(host),
        lambda: x.add_(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        lambda: x.repeat_interleave(x.long()),
        lambda: torch.where(mask, x, 0.0),
    ],
)
def test_recording_refuses_what_no_graph_can_hold(work):
    with torch.inference_mode(), pytest.raises(AssertionError, match=r"waits|depends|reads|booleans"):
        Recorded(work, iter((x, mask)))


def test_a_replay_repeats_what_was_recorded_and_not_python(small):
    """Otherwise the tests above would prove nothing."""
    held, number = torch.zeros(3), 1
    with torch.inference_mode():
        graph = Recorded(lambda: held.add_(torch.arange(3) + number), iter((held,)))
        number = 100
        graph.replay()
    assert held.tolist() == [2, 4, 6]
    model = AutoGaze.from_pretrained(small()[0])
    assert len(list(memory_of(model.gazing_model.gaze_decoder))) == len(
        list(model.gazing_model.gaze_decoder.parameters())
    )
