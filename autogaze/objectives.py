"""What training minimises, as pure functions of what the policy says of a gaze (spec 11).

Everything is in the padded layout of `Gaze.padded()` and `AutoGaze.score`: [B, N], with `valid` true at used slots.
Losses come per sample, and their mean over a batch is the batch's loss. They are normalised by the mean number of valid
slots of the batch, so that every slot counts the same; where a batch is spread over ranks or accumulated in parts, that
mean must be of the whole batch, and is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.gaze import Gaze

_EPSILON = 1e-6  # of the reference, so that a batch without a valid slot gives 0 and not NaN


def next_token_loss(log_probs: Tensor, valid: Tensor, slots: Tensor | float | None = None) -> Tensor:
    """Next-token prediction, [B]: minus the log-probabilities of the valid slots, over the mean number of them.

    log_probs: float [B, N]. valid: bool [B, N]. slots: valid slots per sample of the whole batch; None: of this one.
    """
    weight = valid.to(log_probs.dtype)
    # What is not valid may hold anything, infinity included, which a product with 0 would keep as NaN.
    return -log_probs.masked_fill(~valid, 0).sum(dim=1) / (_mean_slots(weight, slots) + _EPSILON)


def loss_prediction_loss(
    predicted: Tensor, measured: Tensor, valid: Tensor, mask: Tensor | None = None, slots: Tensor | float | None = None
) -> Tensor:
    """Squared error of predicted losses, [B], over the mean number of slots that count.

    predicted, measured: float [B, N], the loss of the frame after each slot. mask: bool [B, N], slots whose loss was
    measured; None: all. slots: those per sample of the whole batch; None: of this one.
    """
    counted = valid if mask is None else valid & mask
    weight = counted.to(predicted.dtype)
    # What is not counted may hold anything, NaN included, which a product with 0 would keep.
    error = (predicted - measured).masked_fill(~counted, 0)
    return error.square().sum(dim=1) / (_mean_slots(weight, slots) + _EPSILON)


def padded_losses(gaze: Gaze) -> Tensor:
    """The losses of a labelled gaze, float32 [B, N] in the padded layout; 0 at unused slots.

    Raises ValueError if the gaze carries no losses.
    """
    if gaze.losses is None:
        raise ValueError("this gaze carries no losses, which the loss prediction learns from")
    used = ~gaze.padded()["if_padded_gazing"]
    losses = torch.zeros(used.shape, device=gaze.losses.device)
    losses[used] = gaze.losses
    return losses


def _mean_slots(weight: Tensor, slots: Tensor | float | None) -> Tensor | float:
    return weight.sum() / len(weight) if slots is None else slots
