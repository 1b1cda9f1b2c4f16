"""What training minimises, as pure functions of what the policy says of a gaze.

See docs/method.md, sections 'Next-token prediction' and 'Reinforcement learning'.

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


# -- GRPO ------------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, by_deviation: bool = False) -> Tensor:
    """How much better than its group each trajectory did, [B, G, F]: the reward less the group's mean.

    rewards: float [B, G, F], of G trajectories of each of B clips, for F frames. by_deviation: also over the group's
    standard deviation, as GRPO was first published; the reference does not. A group that is all alike gets 0.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if not by_deviation:
        return advantages
    deviation = rewards.std(dim=1, keepdim=True, correction=0)
    return torch.where(deviation > 0, advantages / (deviation + _EPSILON), 0.0)


def slot_advantages(advantages: Tensor, at: Tensor, valid: Tensor, slots_per_frame: Tensor, discount: float) -> Tensor:
    """What each slot gets of the advantages of the frames it helped to rebuild, [R, N].

    A frame's advantage goes to all slots up to the frame's end, times the discount for each valid slot between.

    advantages: float [R, F]. at: int64 [R, F], the frames that were rebuilt. valid: bool [R, N]. slots_per_frame: int64
    [T], of the padded layout.
    """
    ends = slots_per_frame.cumsum(0)[at]  # [R, F], slots up to and including that frame
    place = torch.arange(valid.shape[1], device=valid.device)
    reaches = valid[:, None] & (place < ends[..., None])  # [R, F, N]
    after = reaches.flip(-1).cumsum(-1).flip(-1) - reaches.to(torch.int64)  # valid slots from here to the reward
    weight = torch.pow(torch.tensor(discount, dtype=advantages.dtype, device=valid.device), after)
    return (advantages[..., None] * weight * reaches).sum(dim=1)


def grpo_loss(
    log_probs: Tensor,
    advantages: Tensor,
    valid: Tensor,
    behaviour: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """Group-relative policy optimisation, [R]: minus the advantages of the slots, times how likely they became.

    log_probs: float [R, N], of the policy that learns, in the distribution that was sampled from. advantages: float
    [R, N], of each slot. valid: bool [R, N].
    behaviour: float [R, N], log-probabilities when it was sampled: importance ratios are taken against these. None: as
        the reference, against `log_probs` themselves, as if the policy had not moved since.
    clip: with behaviour, ratios count within 1 - clip .. 1 + clip, as in PPO.

    Nothing is divided by the length, as in the reference.
    """
    before = log_probs.detach() if behaviour is None else behaviour
    # What is not valid may hold anything, infinity included.
    ratio = (log_probs - before).masked_fill(~valid, 0).exp()
    gained = ratio * advantages
    if clip is not None:
        gained = torch.minimum(gained, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gained.masked_fill(~valid, 0).sum(dim=1)


def kl_loss(log_probs: Tensor, frozen: Tensor, valid: Tensor) -> Tensor:
    """Estimate of the KL divergence from a frozen policy over a trajectory, [R], never negative (Schulman's k3).

    log_probs, frozen: float [R, N], of the drawn patches, in the policy that learns and in the frozen one.
    """
    difference = (frozen - log_probs).masked_fill(~valid, 0)
    return (difference.exp() - difference - 1).sum(dim=1)


def last_slots(valid: Tensor, slots_per_frame: Tensor) -> Tensor:
    """The last valid slot of each frame, bool [R, N]: the one after which a rebuilt frame's loss is known."""
    frame = torch.repeat_interleave(torch.arange(len(slots_per_frame), device=valid.device), slots_per_frame)
    place = torch.arange(1, valid.shape[1] + 1, device=valid.device) * valid
    last = torch.zeros(len(valid), len(slots_per_frame), dtype=torch.int64, device=valid.device)
    last = last.scatter_reduce(1, frame.expand(valid.shape), place, "amax")
    return valid & (place == last[:, frame])


def _mean_slots(weight: Tensor, slots: Tensor | float | None) -> Tensor | float:
    return weight.sum() / len(weight) if slots is None else slots
