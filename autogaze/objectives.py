"""The training losses of the policy, as pure functions of its scores of a gaze.

See docs/method.md, sections 'Next-token prediction' and 'Reinforcement learning'.

Tensors are in the padded layout of `Gaze.padded()` and `AutoGaze.score`: [B, N], with `valid` true at used slots.
Losses are per sample; their mean over a batch is the batch's loss. They are normalised by the batch's mean number of
valid slots, so that every slot counts the same. If a batch is spread over ranks or accumulated in parts, the caller
gives that mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.gaze import Gaze

_EPSILON = 1e-6  # the reference's: a batch without a valid slot gives 0, not NaN


def next_token_loss(log_probs: Tensor, valid: Tensor, slots: Tensor | float | None = None) -> Tensor:
    """Next-token prediction, [B]: minus the sum of log-probabilities of valid slots, over the mean number of them.

    log_probs: float [B, N]. valid: bool [B, N]. slots: mean valid slots per sample; None: of this batch.
    """
    weight = valid.to(log_probs.dtype)
    # Other slots may hold infinity, which a product with 0 would turn into NaN.
    return -log_probs.masked_fill(~valid, 0).sum(dim=1) / (_mean_slots(weight, slots) + _EPSILON)


def loss_prediction_loss(
    predicted: Tensor, measured: Tensor, valid: Tensor, mask: Tensor | None = None, slots: Tensor | float | None = None
) -> Tensor:
    """Squared error of predicted losses, [B], over the mean number of slots that count.

    predicted, measured: float [B, N], the frame's loss after each slot. mask: bool [B, N], slots whose loss was
    measured; None: all. slots: mean counted slots per sample; None: of this batch.
    """
    counted = valid if mask is None else valid & mask
    weight = counted.to(predicted.dtype)
    # Other slots may hold NaN, which a product with 0 would keep.
    error = (predicted - measured).masked_fill(~counted, 0)
    return error.square().sum(dim=1) / (_mean_slots(weight, slots) + _EPSILON)


def padded_losses(gaze: Gaze) -> Tensor:
    """The losses of a labelled gaze, float32 [B, N] in the padded layout; 0 at unused slots.

    Raises ValueError if the gaze has no losses.
    """
    if gaze.losses is None:
        raise ValueError("this gaze has no losses, which the loss prediction learns from")
    used = ~gaze.padded()["if_padded_gazing"]
    losses = torch.zeros(used.shape, device=gaze.losses.device)
    losses[used] = gaze.losses
    return losses


# -- GRPO ------------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, by_deviation: bool = False) -> Tensor:
    """How much better each trajectory did than its group, [B, G, F]: its reward minus the group's mean.

    rewards: float [B, G, F], of G trajectories of each of B clips, for F frames. by_deviation: divide by the group's
    standard deviation, as in the first publication of GRPO; the reference does not. Equal rewards give 0.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if not by_deviation:
        return advantages
    deviation = rewards.std(dim=1, keepdim=True, correction=0)
    return torch.where(deviation > 0, advantages / (deviation + _EPSILON), 0.0)


def slot_advantages(advantages: Tensor, at: Tensor, valid: Tensor, slots_per_frame: Tensor, discount: float) -> Tensor:
    """The advantage of each slot, [R, N]: the sum over rebuilt frames of the advantage that reaches it.

    A frame's advantage reaches all slots up to the frame's end, times the discount for each valid slot in between.

    advantages: float [R, F]. at: int64 [R, F], the frames that were rebuilt. valid: bool [R, N]. slots_per_frame: int64
    [T], of the padded layout.
    """
    ends = slots_per_frame.cumsum(0)[at]  # [R, F], slots up to and including that frame
    place = torch.arange(valid.shape[1], device=valid.device)
    reaches = valid[:, None] & (place < ends[..., None])  # [R, F, N]
    after = reaches.flip(-1).cumsum(-1).flip(-1) - reaches.to(torch.int64)  # valid slots from here to the reward
    weight = torch.pow(torch.full((), discount, dtype=advantages.dtype, device=valid.device), after)
    return (advantages[..., None] * weight * reaches).sum(dim=1)


def grpo_loss(
    log_probs: Tensor,
    advantages: Tensor,
    valid: Tensor,
    behaviour: Tensor | None = None,
    clip: float | None = None,
    truncate: float | None = None,
) -> Tensor:
    """Group-relative policy optimisation, [R]: minus the sum over slots of importance ratio times advantage.

    log_probs: float [R, N], of the learning policy, in the distribution that was sampled from. advantages: float
    [R, N], of each slot. valid: bool [R, N].
    behaviour: float [R, N], log-probabilities at the time of sampling, for the importance ratios. None: `log_probs`
        themselves, as in the reference, as if the policy had not changed since.
    clip: with behaviour, ratios are clipped to 1 - clip .. 1 + clip, as in PPO.
    truncate: with behaviour, ratios are at most this, and do not learn beyond it, whatever the advantage's sign: PPO's
        clipping leaves them without limit where the advantage is negative.

    The sum is not divided by the length, as in the reference.
    """
    before = log_probs.detach() if behaviour is None else behaviour
    # Other slots may hold infinity.
    ratio = (log_probs - before).masked_fill(~valid, 0).exp()
    if truncate is not None:
        ratio = ratio.clamp(max=truncate)
    gained = ratio * advantages
    if clip is not None:
        gained = torch.minimum(gained, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gained.masked_fill(~valid, 0).sum(dim=1)


def kl_loss(log_probs: Tensor, frozen: Tensor, valid: Tensor) -> Tensor:
    """Schulman's k3 estimate of a trajectory's KL divergence from a frozen policy, [R], never negative.

    log_probs, frozen: float [R, N], of the drawn patches, in the learning and in the frozen policy.
    """
    difference = (frozen - log_probs).masked_fill(~valid, 0)
    return (difference.exp() - difference - 1).sum(dim=1)


def last_slots(valid: Tensor, slots_per_frame: Tensor) -> Tensor:
    """Slots after which a rebuilt frame's loss counts as known, bool [R, N]: used ones that end the frame's slots, or
    that no used slot follows directly.

    So, as in the reference, a frame with holes has several: its last patch, and each one before a hole.
    """
    numbers = torch.arange(len(slots_per_frame), device=valid.device)
    frame = torch.repeat_interleave(numbers, slots_per_frame, output_size=valid.shape[1])  # given, so no GPU is asked
    goes_on = torch.zeros_like(valid)
    goes_on[:, :-1] = valid[:, 1:] & (frame[1:] == frame[:-1])
    return valid & ~goes_on


def _mean_slots(weight: Tensor, slots: Tensor | float | None) -> Tensor | float:
    return weight.sum() / len(weight) if slots is None else slots
