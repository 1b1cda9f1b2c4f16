"""The GRPO loss of one group of trajectories, as a module that ranks can share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.model import AutoGaze, Sampling
from autogaze.objectives import group_advantages, grpo_loss, kl_loss, last_slots, loss_prediction_loss, slot_advantages
from pipelines.rl.config import RLConfig
from pipelines.rl.rollouts import Group


class GroupLosses(nn.Module):
    """The policy and what it learns from groups as one module, for DistributedDataParallel to wrap."""

    def __init__(self, policy: AutoGaze, frozen: AutoGaze | None, config: RLConfig) -> None:
        super().__init__()
        self.policy, self.config = policy, config
        self.frozen = [frozen]  # in a list: no part of what is trained

    def forward(self, frames: Tensor, groups: list[Group]) -> dict[str, Tensor]:
        """Losses and measures of each clip, [b]. frames: uint8 [b, T, S, S, 3]."""
        found = [self._group(clip, group) for clip, group in zip(frames, groups, strict=True)]
        return {name: torch.stack([part[name] for part in found]) for name in found[0]}

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
        grpo = grpo_loss(log_probs, each, valid, against, objective.clip or None).mean()

        measured, counted = measured_errors(errors, group.at.tolist(), valid, slots)
        prediction = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, counted).mean()
        loss = grpo + self.config.loss_prediction * prediction
        found = {"loss": loss, "grpo": grpo, "loss_prediction": prediction}
        if self.frozen[0] is not None:
            with torch.no_grad():
                frozen = self.frozen[0].score(self.frozen[0].encode(seen).repeat(members), gaze, sample, drawn)
            divergence = kl_loss(log_probs, frozen.log_probs.float(), valid).mean()
            found["loss"], found["kl_frozen"] = loss + objective.kl * divergence, divergence
        return found | self._measures(group, errors, valid, log_probs.detach(), behaviour, scores.entropies)

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
        found = {
            "reward": -errors.mean(),
            "reward_spread": spread.mean(),
            "zero_variance": (spread == 0).float().mean(),
            "ratio": valid.sum(dim=1).float().mean() / patches,
        }
        if entropies is not None:
            found["entropy"] = entropies.masked_fill(~valid, 0).sum() / used
            # What is no longer among the best top_k has no probability: -20 stands for that, or a mean says nothing.
            moved = (log_probs - behaviour).clamp(min=-20).masked_fill(~valid, 0)
            found["kl_behaviour"] = ((moved.exp() - 1 - moved).sum() / used).clamp(min=0)
            weights = moved.sum(dim=1).softmax(dim=0)  # of whole trajectories
            found["effective_samples"] = 1 / (weights.square().sum() * len(weights))
            if self.config.objective.clip:
                clip = self.config.objective.clip
                beyond = ((moved.exp() - 1).abs() > clip) & valid
                found["clip_fraction"] = beyond.sum() / used
        return found


def measured_errors(errors: Tensor, at: Sequence[int], valid: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The error of each rebuilt frame at the last patch of the frame, float32 [G, N], and where these are, bool [G, N].

    errors: float32 [G, F] of frames `at`. valid: bool [G, N], the used ones of the slots. slots: int64 [T].
    """
    frame = torch.repeat_interleave(torch.arange(len(slots), device=slots.device), slots)
    measured, rebuilt = torch.zeros(valid.shape, device=valid.device), torch.zeros_like(valid)
    for place, t in enumerate(at):
        measured = torch.where(frame == t, errors[:, place : place + 1], measured)
        rebuilt |= frame == t
    return measured, rebuilt & last_slots(valid, slots)
