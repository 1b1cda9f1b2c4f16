"""The losses of groups of trajectories: GRPO, loss prediction, and the divergence from a frozen policy.

See docs/method.md, section 'Reinforcement learning'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autogaze.device import sent
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
from pipelines.rl.packing import PackedGroups, by_temperature


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

        Groups that were sampled at one temperature are scored in one pass.

        labels: the dataset's gaze of the clips, where the loss prediction learns from it too; slots: its mean slots in
        use of a sample of the batch.
        """
        alike = by_temperature(groups)
        if len(alike) == 1:
            losses = self._together(frames, groups)
        else:
            clips = [frames[sent(torch.tensor(places), frames.device)] for places in alike]
            chosen = [[groups[place] for place in places] for places in alike]
            parts = [self._together(*each) for each in zip(clips, chosen, strict=True)]
            order = sent(torch.tensor([place for places in alike for place in places]).argsort(), frames.device)
            losses = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        if labels is not None and self.on_labels:
            scores = self.policy.score(frames, labels)
            valid = ~sent(labels.padded()["if_padded_gazing"], frames.device)
            measured = sent(padded_losses(labels), frames.device)
            wrong = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, slots=slots)
            losses["loss"], losses["label_prediction"] = losses["loss"] + self.on_labels * wrong, wrong
        return losses

    def _together(self, frames: Tensor, groups: list[Group]) -> dict[str, Tensor]:
        """Losses and measures, float [b], of groups of one temperature."""
        objective, members = self.config.objective, len(groups[0].seeds)
        packed = PackedGroups.of(groups, self.policy.vocabulary)
        drawn, valid, behaviour, at, errors = (
            sent(part, frames.device)
            for part in (packed.drawn, packed.valid, packed.log_probs, packed.at, packed.errors)
        )
        slots = sent(packed.slots, frames.device)
        sample = None
        if objective.log_probs == "sampled":
            sample = Sampling(groups[0].temperature, self.config.sample.top_k or None)

        def of_each(values: Tensor) -> Tensor:
            """[b * G, ...] -> [b, G, ...]."""
            grouped: Tensor = values.unflatten(0, (len(groups), members))
            return grouped

        seen = frames[:, : len(packed.slots)]
        scores = self.policy.score(self.policy.encode(seen).repeat(members), packed.gaze, sample, drawn)
        log_probs = scores.log_probs.float()
        advantages = group_advantages(-of_each(errors), by_deviation=objective.advantage == "deviation").flatten(0, 1)
        each = slot_advantages(advantages, at, valid, slots, objective.discount)
        against = behaviour if objective.ratio == "behaviour" else None
        gained = grpo_loss(log_probs, each, valid, against, objective.clip or None, objective.truncate or None)
        grpo = of_each(gained).mean(dim=1)

        measured, counted = measured_errors(errors, at, valid, slots)
        slots_of_member = of_each(counted).sum(dim=(1, 2)).repeat_interleave(members) / members
        wrong = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, counted, slots_of_member)
        prediction = of_each(wrong).mean(dim=1)
        loss = grpo + self.config.loss_prediction * prediction
        losses = {"loss": loss, "grpo": grpo, "loss_prediction": prediction}
        if self.frozen[0] is not None:
            with torch.no_grad():
                again = self.frozen[0].encode(seen).repeat(members)
                frozen = self.frozen[0].score(again, packed.gaze, sample, drawn)
            divergence = of_each(kl_loss(log_probs, frozen.log_probs.float(), valid)).mean(dim=1)
            losses["loss"], losses["kl_frozen"] = loss + objective.kl * divergence, divergence
        frames_of = sent(torch.tensor([len(group.slots) for group in groups]), frames.device)
        moved = log_probs.detach() - behaviour
        entropies = None if scores.entropies is None else of_each(scores.entropies)
        return losses | self._measures(of_each(errors), of_each(valid), frames_of, of_each(moved), entropies)

    def _measures(
        self, errors: Tensor, valid: Tensor, frames: Tensor, moved: Tensor, entropies: Tensor | None
    ) -> dict[str, Tensor]:
        """Of b groups, float [b] each. errors: [b, G, F]. valid, moved, entropies: [b, G, N]. frames: int64 [b].

        moved: log-probabilities of what was drawn, less those when it was drawn.
        """
        used = valid.sum(dim=(1, 2)).clamp(min=1)
        measures = {
            "reward": -errors.mean(dim=(1, 2)),
            "reward_spread": errors.std(dim=1, correction=0).mean(dim=1),
            "zero_variance": (errors == errors[:, :1]).all(dim=1).float().mean(dim=1),
            "ratio": valid.sum(dim=2).float().mean(dim=1) / (self.policy.vocabulary.size * frames),
        }
        if entropies is not None:
            measures["entropy"] = entropies.masked_fill(~valid, 0).sum(dim=(1, 2)) / used
            # A draw that is no longer among the top_k has log-probability -inf, which would make every mean infinite.
            moved = moved.clamp(min=-20).masked_fill(~valid, 0)
            measures["kl_behaviour"] = ((moved.exp() - 1 - moved).sum(dim=(1, 2)) / used).clamp(min=0)
            weights = moved.sum(dim=2).softmax(dim=1)  # of whole trajectories
            measures["effective_samples"] = 1 / (weights.square().sum(dim=1) * weights.shape[1])
            weight = moved.exp()  # 1 at unused slots
            measures["weight_min"] = torch.where(valid, weight, 1.0).amin(dim=(1, 2))
            measures["weight_max"] = torch.where(valid, weight, 1.0).amax(dim=(1, 2))
            clip, most = self.config.objective.clip, self.config.objective.truncate
            if clip or most:
                beyond = ((weight - 1).abs() > (clip or math.inf)) | (weight > (most or math.inf))
                measures["clip_fraction"] = (beyond & valid).sum(dim=(1, 2)) / used
        return measures


def measured_errors(errors: Tensor, at: Tensor, valid: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The measured errors, float32 [R, N], and where they count, bool [R, N]: see `last_slots`, in rebuilt frames.

    errors: float32 [R, F], of the frames `at`, int64 [R, F]. valid: bool [R, N], which slots are used. slots: int64
    [T], of each frame, N in all.
    """
    numbers = torch.arange(len(slots), device=slots.device)
    frame = torch.repeat_interleave(numbers, slots, output_size=valid.shape[1])
    rebuilt = frame[None, :, None] == at[:, None]  # [R, N, F]
    measured = (errors[:, None] * rebuilt).sum(dim=2)  # of one frame at most, so nothing is rounded
    return measured, rebuilt.any(dim=2) & last_slots(valid, slots)
