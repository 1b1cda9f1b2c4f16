"""The losses of groups of trajectories: GRPO, loss prediction, and the divergence from a frozen policy.

See docs/method.md, section 'Reinforcement learning'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, Sampling
from autogaze.objectives import (
    group_advantages,
    grpo_loss,
    kl_loss,
    last_slots,
    loss_prediction_loss,
    padded_losses,
    slot_advantages,
)
from pipelines.rl.config import RLConfig
from pipelines.rl.groups import Group


class GroupLosses(nn.Module):
    """The policy and its losses as one module, for DistributedDataParallel to wrap.

    frozen: the policy that objective.kl holds the trained one to; None without objective.kl.
    on_labels: weight of the loss prediction on the dataset's labels.
    """

    def __init__(self, policy: AutoGaze, frozen: AutoGaze | None, config: RLConfig, on_labels: float = 0.0) -> None:
        super().__init__()
        self.policy, self.config, self.on_labels = policy, config, on_labels
        self.frozen = [frozen]  # in a list, so that it is no submodule: neither trained nor saved

    def forward(
        self, frames: Tensor, groups: list[Group], labels: Gaze | None = None, slots: float = 1.0
    ) -> dict[str, Tensor]:
        """Losses and measures by name, float [b] each. frames: uint8 [b, T, S, S, 3]; groups: one for each clip.

        labels: the dataset's gaze of the clips, where the loss prediction learns from it too; slots: its mean slots in
        use of a sample of the batch.
        """
        parts = [self._group(clip, group) for clip, group in zip(frames, groups, strict=True)]
        losses = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        if labels is not None and self.on_labels:
            scores = self.policy.score(frames, labels)
            valid = ~labels.padded()["if_padded_gazing"].to(frames.device)
            measured = padded_losses(labels).to(frames.device)
            wrong = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, slots=slots)
            losses["loss"], losses["label_prediction"] = losses["loss"] + self.on_labels * wrong, wrong
        return losses

    def _group(self, clip: Tensor, group: Group) -> dict[str, Tensor]:
        objective, device, members = self.config.objective, clip.device, len(group.seeds)
        gaze = group.gaze(self.policy.vocabulary)
        drawn = torch.from_numpy(group.drawn.astype(np.int64)).to(device)
        valid, slots = torch.tensor(group.used).to(device), torch.tensor(group.slots).to(device)
        behaviour = torch.tensor(group.log_probs).to(device)
        at = torch.tensor(group.at).to(device).expand(members, -1)
        errors = torch.tensor(group.errors).to(device)  # [G, F]
        sample = None
        if objective.log_probs == "sampled":
            sample = Sampling(group.temperature, self.config.sample.top_k or None)

        seen = clip[None, : len(group.slots)]
        scores = self.policy.score(self.policy.encode(seen).repeat(members), gaze, sample, drawn)
        log_probs = scores.log_probs.float()
        advantages = group_advantages(-errors[None], by_deviation=objective.advantage == "deviation")[0]
        each = slot_advantages(advantages, at, valid, slots, objective.discount)
        against = behaviour if objective.ratio == "behaviour" else None
        grpo = grpo_loss(log_probs, each, valid, against, objective.clip or None, objective.truncate or None).mean()

        measured, counted = measured_errors(errors, group.at.tolist(), valid, slots)
        prediction = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, counted).mean()
        loss = grpo + self.config.loss_prediction * prediction
        losses = {"loss": loss, "grpo": grpo, "loss_prediction": prediction}
        if self.frozen[0] is not None:
            with torch.no_grad():
                frozen = self.frozen[0].score(self.frozen[0].encode(seen).repeat(members), gaze, sample, drawn)
            divergence = kl_loss(log_probs, frozen.log_probs.float(), valid).mean()
            losses["loss"], losses["kl_frozen"] = loss + objective.kl * divergence, divergence
        return losses | self._measures(group, errors, valid, log_probs.detach(), behaviour, scores.entropies)

    def _measures(
        self,
        group: Group,
        errors: Tensor,
        valid: Tensor,
        log_probs: Tensor,
        behaviour: Tensor,
        entropies: Tensor | None,
    ) -> dict[str, Tensor]:
        used = valid.sum().clamp(min=1)
        spread = errors.std(dim=0, correction=0)
        patches = self.policy.vocabulary.size * len(group.slots)
        measures = {
            "reward": -errors.mean(),
            "reward_spread": spread.mean(),
            "zero_variance": (errors == errors[:1]).all(dim=0).float().mean(),
            "ratio": valid.sum(dim=1).float().mean() / patches,
        }
        if entropies is not None:
            measures["entropy"] = entropies.masked_fill(~valid, 0).sum() / used
            # A draw that is no longer among the top_k has log-probability -inf, which would make every mean infinite.
            moved = (log_probs - behaviour).clamp(min=-20).masked_fill(~valid, 0)
            measures["kl_behaviour"] = ((moved.exp() - 1 - moved).sum() / used).clamp(min=0)
            weights = moved.sum(dim=1).softmax(dim=0)  # of whole trajectories
            measures["effective_samples"] = 1 / (weights.square().sum() * len(weights))
            weight = moved.exp()
            ones = torch.ones_like(weight)
            measures["weight_min"] = torch.where(valid, weight, ones).min()
            measures["weight_max"] = torch.where(valid, weight, ones).max()
            clip, most = self.config.objective.clip, self.config.objective.truncate
            if clip or most:
                beyond = ((weight - 1).abs() > (clip or math.inf)) | (weight > (most or math.inf))
                measures["clip_fraction"] = (beyond & valid).sum() / used
        return measures


def measured_errors(errors: Tensor, at: Sequence[int], valid: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The measured errors, float32 [G, N], and where they count, bool [G, N]: see `last_slots`, in rebuilt frames.

    errors: float32 [G, F], of the frames `at`. valid: bool [G, N], which slots are used. slots: int64 [T'], of each
    frame, N in all.
    """
    frame = torch.repeat_interleave(torch.arange(len(slots), device=slots.device), slots)
    measured, rebuilt = torch.zeros(valid.shape, device=valid.device), torch.zeros_like(valid)
    for place, t in enumerate(at):
        measured = torch.where(frame == t, errors[:, place : place + 1], measured)
        rebuilt |= frame == t
    return measured, rebuilt & last_slots(valid, slots)
