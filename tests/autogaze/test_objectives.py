"""What training minimises, equal to the reference."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.objectives import (
    group_advantages,
    grpo_loss,
    kl_loss,
    last_slots,
    loss_prediction_loss,
    next_token_loss,
    padded_losses,
    slot_advantages,
)
from tests.support import places

GOLDEN = places.GOLDEN


@pytest.fixture(scope="module")
def fixed() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "losses_fixed.safetensors")


def test_losses_on_fixed_tensors_equal_the_references(fixed):
    valid = ~fixed["if_padded_gazing"]
    ntp = next_token_loss(fixed["log_action_probs"], valid)
    assert torch.allclose(ntp, fixed["ntp_loss"], rtol=1e-6)
    prediction = loss_prediction_loss(
        fixed["task_loss_prediction"], fixed["task_losses"], valid, fixed["task_losses_mask"].bool()
    )
    assert torch.allclose(prediction, fixed["ntp_task_loss_prediction_loss"], rtol=1e-6)


def test_loss_and_gradients_of_the_references_labels_are_the_references():
    """From the label file to the gradient of every parameter."""
    golden = load_file(GOLDEN / "k10__teacher_forced_ntp.safetensors")
    labels = json.loads((GOLDEN / "gazing_labels.json").read_text())
    gaze = Gaze.cat([Gaze.from_label(label) for _, label in sorted(labels.items())])
    model = AutoGaze.from_pretrained(GOLDEN / "autogaze_small_k10")
    scores = model.score(load_file(GOLDEN / "inputs.safetensors")["raw_uint8"], gaze)
    valid = ~gaze.padded()["if_padded_gazing"]
    ntp = next_token_loss(scores.log_probs, valid)
    prediction = loss_prediction_loss(scores.loss_predictions, padded_losses(gaze), valid)
    assert torch.allclose(ntp, golden["ntp_loss"], atol=1e-4)
    assert torch.allclose(prediction, golden["task_loss_prediction_loss"], atol=1e-4)
    loss = (ntp + prediction).mean()
    assert torch.isclose(loss, golden["scalar_loss"], atol=1e-4)
    loss.backward()
    gradients = load_file(GOLDEN / "k10__teacher_forced_ntp_grads.safetensors")
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[name]).norm()
        assert difference <= 1e-4 * gradients[name].norm() + 1e-8, name


def test_parts_of_a_batch_add_up_to_its_loss(fixed):
    valid = ~fixed["if_padded_gazing"]
    whole = next_token_loss(fixed["log_action_probs"], valid).mean()
    slots = valid.sum() / len(valid)
    parts = [
        next_token_loss(fixed["log_action_probs"][rows], valid[rows], slots) for rows in (slice(0, 3), slice(3, 8))
    ]
    assert torch.isclose(torch.cat(parts).mean(), whole)


def test_unused_slots_count_for_nothing_whatever_they_hold():
    log_probs = torch.tensor([[-1.0, -2.0, -math.inf], [-3.0, -math.inf, -math.inf]], requires_grad=True)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    predicted = torch.tensor([[1.0, 2.0, math.nan], [1.0, math.nan, math.nan]], requires_grad=True)
    losses = next_token_loss(log_probs, valid), loss_prediction_loss(predicted, torch.zeros(2, 3), valid)
    assert all(bool(torch.isfinite(loss).all()) for loss in losses)
    sum(loss.sum() for loss in losses).backward()
    for tensor in (log_probs, predicted):
        assert bool(torch.isfinite(tensor.grad).all()) and not tensor.grad[~valid].any()


def test_a_batch_without_a_valid_slot_has_no_loss():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert next_token_loss(torch.randn(2, 3), nothing).tolist() == [0, 0]
    assert loss_prediction_loss(torch.randn(2, 3), torch.randn(2, 3), nothing).tolist() == [0, 0]


def test_losses_of_a_label_lie_where_its_tokens_do():
    gaze = Gaze.from_lists([[[5], [6, 7]], [[8, 9], []]], losses=[[[0.5], [0.4, 0.3]], [[0.2, 0.1], []]])
    expected = [[0.5, 0, 0.4, 0.3], [0.2, 0.1, 0, 0]]
    assert torch.allclose(padded_losses(gaze), torch.tensor(expected))
    with pytest.raises(ValueError, match="no losses"):
        padded_losses(Gaze.from_lists([[[5]]]))


# -- GRPO --------------------------------------------------------------------------------------------------------------


def fixed_advantages(fixed, **options):
    """The advantages of the fixed tensors' slots. Rows there are member by member; here clip by clip."""
    rewards = fixed["reward"].view(4, 2, 2).transpose(0, 1)  # [B, G, F]
    advantages = group_advantages(rewards, **options).transpose(0, 1).reshape(8, 2)
    at = torch.tensor([1, 3]).expand(8, 2)
    return slot_advantages(advantages, at, ~fixed["if_padded_gazing"], fixed["num_gazing_each_frame"], 0.995)


def test_grpo_and_its_gradient_on_fixed_tensors_are_the_references(fixed):
    log_probs = fixed["log_action_probs"].clone().requires_grad_()
    valid = ~fixed["if_padded_gazing"]
    loss = grpo_loss(log_probs, fixed_advantages(fixed), valid)
    torch.testing.assert_close(loss, fixed["grpo_loss"], rtol=1e-5, atol=1e-5)
    loss.mean().backward()
    wanted = fixed["grpo_grad_log_action_probs_of_mean_loss"]
    torch.testing.assert_close(log_probs.grad, wanted, rtol=1e-4, atol=1e-7)
    prediction = loss_prediction_loss(
        fixed["task_loss_prediction"], fixed["task_losses"], valid, fixed["task_losses_mask"].bool()
    )
    torch.testing.assert_close(prediction, fixed["grpo_task_loss_prediction_loss"], rtol=1e-6, atol=1e-6)


def test_the_loss_is_known_after_the_last_used_slot_of_each_frame_and_before_holes_as_in_the_reference():
    valid = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0]], dtype=torch.bool)
    wanted = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0]], dtype=torch.bool)
    assert torch.equal(last_slots(valid, torch.tensor([3, 2, 1])), wanted)


def test_a_group_that_is_all_alike_teaches_nothing():
    rewards = torch.full((2, 4, 3), -0.7)
    for by_deviation in (False, True):
        assert not group_advantages(rewards, by_deviation).any()


def test_advantages_by_deviation_do_not_depend_on_the_rewards_scale():
    rewards = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, other = group_advantages(rewards, True), group_advantages(rewards * 1000 + 5, True)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.std(dim=1, correction=0), torch.ones(3, 2, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_slot_gets_the_discounted_advantages_of_the_frames_after_it(fixed):
    """Against sums written out slot by slot, with frames that differ from row to row."""
    valid, slots = ~fixed["if_padded_gazing"], fixed["num_gazing_each_frame"]
    generator = torch.Generator().manual_seed(3)
    advantages = torch.randn(8, 2, generator=generator)
    at = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(8)])
    found = slot_advantages(advantages, at, valid, slots, 0.9)
    ends = slots.cumsum(0).tolist()
    for row in range(8):
        for slot in range(valid.shape[1]):
            wanted = 0.0
            for f in range(2):
                end = ends[at[row, f]]
                if slot < end and valid[row, slot]:
                    wanted += float(advantages[row, f]) * 0.9 ** int(valid[row, slot + 1 : end].sum())
            assert float(found[row, slot]) == pytest.approx(wanted, abs=1e-5)


def test_ratios_against_the_same_policy_give_the_references_gradient(fixed):
    valid, advantages = ~fixed["if_padded_gazing"], fixed_advantages(fixed)
    grads = []
    for options in (
        {},
        {"behaviour": fixed["log_action_probs"]},
        {"behaviour": fixed["log_action_probs"], "clip": 0.2},
    ):
        log_probs = fixed["log_action_probs"].clone().requires_grad_()
        grpo_loss(log_probs, advantages, valid, **options).mean().backward()
        grads.append(log_probs.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_clipping_removes_the_gradient_of_what_already_moved_far(fixed):
    valid, advantages = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    log_probs = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    loss = grpo_loss(log_probs, advantages, valid, torch.zeros(1, 4), clip=0.2)
    loss.sum().backward()
    assert log_probs.grad[0, 0] == 0 and log_probs.grad[0, 3] == 0
    assert log_probs.grad[0, 1] < 0 < log_probs.grad[0, 2]
    assert float(loss) == pytest.approx(-(1.2 + math.exp(-0.5) - math.exp(0.5) - 0.8), abs=1e-5)


def test_the_divergence_estimate_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator).log_softmax(0) for _ in range(2))
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    found = kl_loss(p[drawn][:, None], q[drawn][:, None], torch.ones(len(drawn), 1, dtype=torch.bool))
    assert (found >= 0).all()
    assert float(found.mean()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.03)


def test_unused_slots_may_hold_anything(fixed):
    valid, advantages = ~fixed["if_padded_gazing"], fixed_advantages(fixed)
    wild = fixed["log_action_probs"].masked_fill(~valid, -math.inf).requires_grad_()
    loss = grpo_loss(wild, advantages, valid, fixed["log_action_probs"], clip=0.2) + kl_loss(
        wild, fixed["log_action_probs"], valid
    )
    loss.sum().backward()
    assert loss.isfinite().all() and wild.grad[valid].isfinite().all()
