"""What training minimises, equal to the reference."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.objectives import loss_prediction_loss, next_token_loss, padded_losses

GOLDEN = Path(__file__).parent.parent / "golden"


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


def test_the_loss_of_the_references_labels_and_its_gradients_are_the_references():
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
