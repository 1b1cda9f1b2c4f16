"""The policy on a GPU: the reference's tokens in float32, graphs or not, and bounded differences in bfloat16."""

from __future__ import annotations

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, Sampling
from autogaze.model import policy as policies
from autogaze.model.cache import PaddedCache, RaggedCache

FREE = {"ratio": 0.1, "ratio_list": [0.2, 0.004, 0.1, 0.03], "full_no_stop": 1.0}
SAMPLED = Sampling(1.0, 50, seeds=[3, 4])


@pytest.fixture(params=[True, False], ids=["graphs", "no-graphs"])
def graphs(request, device) -> bool:
    """Whether decode steps run as CUDA graphs."""
    if request.param and device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    return bool(request.param)


def assert_padded_equals(gaze: Gaze, reference: dict[str, torch.Tensor]) -> None:
    for name, wanted in gaze.padded().items():
        assert torch.equal(wanted, reference[name]), name


def assert_same_gaze(one: Gaze, other: Gaze, losses: float) -> None:
    """Tokens and their places exactly; predicted losses within `losses`."""
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.lengths, other.lengths)
    torch.testing.assert_close(one.losses, other.losses, atol=losses, rtol=0)
    torch.testing.assert_close(one.initial, other.initial, atol=losses, rtol=0)


@pytest.mark.parametrize("name", ["k10", "k4"])
@pytest.mark.parametrize("call", FREE)
def test_float32_gaze_equals_the_references(policy, device, video, golden, graphs, name, call):
    model = policy(name, device, cuda_graphs=graphs)
    assert_padded_equals(model.gaze(video, max_ratio=FREE[call]), golden(f"{name}__{call}"))


@pytest.mark.parametrize("row", [0, 1])
def test_float32_gaze_that_a_threshold_ends_equals_the_references(policy, device, video, golden, graphs, row):
    model = policy("k10", device, cuda_graphs=graphs)
    gaze = model.gaze(video, max_ratio=0.4, loss_threshold=0.7)[row]
    assert_padded_equals(gaze, golden(f"k10__ratio_tlr_batch1_sample{row}"))


@pytest.mark.parametrize(("call", "limits"), [("ratio", (0.1, None)), ("ratio_tlr", (0.4, 0.7))])
def test_consistent_positions_equal_the_repaired_reference(policy, device, video, golden, graphs, call, limits):
    model = policy("k10", device, "consistent", cuda_graphs=graphs)
    assert_padded_equals(model.gaze(video, *limits), golden(f"k10__fixedpos_{call}"))


def test_gaze_and_predicted_losses_equal_the_cpus(policy, device, video, graphs):
    on_cpu = policy("k10").gaze(video, 0.4, 0.7)
    assert_same_gaze(policy("k10", device, cuda_graphs=graphs).gaze(video, 0.4, 0.7), on_cpu, losses=1e-4)


def test_graphs_give_what_the_same_steps_give_without_them(policy, device, video):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    graphed, plain = (policy("k10", device, cuda_graphs=on) for on in (True, False))
    for rows in (video, video[:1], video.repeat(3, 1, 1, 1, 1), video):  # captured, replayed, another batch, again
        for limits in ((0.1, None), (0.4, 0.7)):
            assert_same_gaze(graphed.gaze(rows, *limits), plain.gaze(rows, *limits), losses=1e-5)


@pytest.mark.parametrize("limits", [(0.1, None), (0.4, 0.7)])
def test_wide_padded_and_ragged_gazes_agree_on_the_device(policy, device, video, monkeypatch, limits):
    found = {}
    monkeypatch.setattr(policies.AutoGaze, "wide", True)
    wide = policy("k10", device, cuda_graphs=None if device.type == "cpu" else False).gaze(video, *limits)
    monkeypatch.setattr(policies.AutoGaze, "wide", False)
    for kind in (PaddedCache, RaggedCache):
        monkeypatch.setattr(policies, "PaddedCache", kind)
        monkeypatch.setattr(policies, "RaggedCache", kind)
        model = policy("k10", device, cuda_graphs=None if device.type == "cpu" else False)
        assert isinstance(model._cache(1, 8), kind)
        found[kind] = model.gaze(video, *limits)
    assert_same_gaze(found[PaddedCache], found[RaggedCache], losses=1e-4)
    assert_same_gaze(wide, found[RaggedCache], losses=1e-4)


def test_streams_equal_the_references(policy, device, video, golden):
    stream = policy("k10", device).stream(max_ratio=0.1, batch=2)
    parts = [stream.push(video[:, t]) for t in range(video.shape[1])]
    found = torch.cat([part.padded()["gazing_pos"] for part in parts], dim=1)
    assert torch.equal(found, golden("k10__stream_ratio")["gazing_pos_concat_frame_local"])


def test_streams_that_a_threshold_ends_give_the_gaze_of_the_whole_clip(policy, device, video):
    model = policy("k10", device)
    whole, stream = model.gaze(video, 0.4, 0.7), model.stream(0.4, 0.7, batch=2)
    for t in range(video.shape[1]):
        part = stream.push(video[:, t])
        assert [part.frames(row)[0] for row in range(2)] == [whole.frames(row)[t] for row in range(2)]


def test_other_resolutions_gaze_as_on_the_cpu(policy, device, golden):
    from autogaze.patches import PatchVocabulary

    frames, wanted = golden("inputs")["raw_392_uint8"][None], PatchVocabulary((56, 112, 196, 392), 14)
    found = [policy("k10", where).gaze(frames, 0.3, 0.7, vocabulary=wanted) for where in (device, "cpu")]
    assert torch.equal(found[0].tokens, found[1].tokens) and torch.equal(found[0].lengths, found[1].lengths)


def test_rollouts_draw_what_the_cpu_draws(policy, device, video, graphs):
    on_cpu = policy("k10").rollout(video, SAMPLED, max_ratio=0.1)
    found = policy("k10", device, cuda_graphs=graphs).rollout(video, SAMPLED, max_ratio=0.1)
    assert torch.equal(found.drawn, on_cpu.drawn)
    torch.testing.assert_close(found.log_probs, on_cpu.log_probs, atol=1e-3, rtol=1e-4)


def test_scoring_a_rollout_gives_the_log_probabilities_it_was_sampled_with(policy, device, video, graphs):
    model = policy("k10", device, "consistent", cuda_graphs=graphs)
    rollout = model.rollout(video, SAMPLED, max_ratio=0.1)
    with torch.no_grad():
        scores = model.score(video, rollout.gaze, SAMPLED, rollout.drawn)
    torch.testing.assert_close(scores.log_probs.cpu(), rollout.log_probs, atol=1e-3, rtol=1e-3)


def test_teacher_forced_scores_and_gradients_equal_the_references(policy, device, video, golden, given):
    reference, model = golden("k10__teacher_forced_ntp"), policy("k10", device).train()
    scores = model.score(video, given("k10__teacher_forced_ntp"))
    torch.testing.assert_close(scores.log_probs.cpu(), reference["log_action_probs"], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.loss_predictions.cpu(), reference["task_loss_prediction"], atol=1e-4, rtol=0)
    used = ~reference["if_padded_gazing"].to(device)
    slots = used.sum() / len(used) + 1e-6
    tokens = -(scores.log_probs * used).sum(1) / slots
    predicted = ((scores.loss_predictions - reference["task_losses"].to(device)) ** 2 * used).sum(1) / slots
    (tokens + predicted).mean().backward()
    wanted = golden("k10__teacher_forced_ntp_grads")
    for name, parameter in model.named_parameters():
        difference = (parameter.grad.cpu() - wanted[name]).norm()
        assert difference <= 2e-3 * wanted[name].norm(), f"{name}: {difference / wanted[name].norm()}"


def test_bfloat16_scores_stay_near_those_of_float32(policy, device, video, given):
    """Of the reference's labels: a log-probability moves by 0.1 nats in the mean, a predicted loss by 0.02."""
    gaze = given("k10__teacher_forced_ntp")
    used = ~gaze.padded()["if_padded_gazing"]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            scores = policy("k10", device, dtype=dtype).score(video, gaze)
        found.append([part.float().cpu()[used] for part in scores[:2]])
    moved = [(half - exact).abs().mean() for exact, half in zip(*found, strict=True)]
    assert moved[0] < 0.1 and moved[1] < 0.02, [float(part) for part in moved]


def test_bfloat16_gaze_shares_most_of_float32s_tokens(policy, device, video, graphs):
    """The first frame, where no earlier choice has led elsewhere yet: 9 of 10 tokens are the same, as a set."""
    exact = policy("k10", device, cuda_graphs=graphs).gaze(video[:, :1], 0.1)
    half = policy("k10", device, dtype=torch.bfloat16, cuda_graphs=graphs).gaze(video[:, :1], 0.1)
    shared = [len({*exact.frames(b)[0]} & {*half.frames(b)[0]}) / len(exact.frames(b)[0]) for b in range(2)]
    assert min(shared) >= 0.9, shared


def test_a_policy_of_the_released_size_gazes_as_on_the_cpu(device, video):
    """With random weights scores lie close together, so the first choices of each clip are compared."""
    from autogaze.model import AutoGazeConfig

    torch.manual_seed(7)
    model = AutoGaze(AutoGazeConfig()).eval()
    with torch.no_grad():
        model.gazing_model.gaze_decoder.lm_head.weight.mul_(50)
    on_cpu = model.gaze(video[:1, :2], max_ratio=0.04)
    found = model.to(device).gaze(video[:1, :2], max_ratio=0.04)
    assert_same_gaze(found, on_cpu, losses=1e-4)
