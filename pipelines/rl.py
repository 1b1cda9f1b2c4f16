"""Reinforcement learning of the policy (paper 3.3, spec 11): rollouts earn rewards, GRPO learns from them.

The loop is the one of every training job (pipelines/train.py); around its steps this task does what is of RL:

    begin       publish version 0, ask for the groups of steps 0 .. lag
    prepare     take the groups of this step: all of version max(0, step - lag), in the order of the run
    losses      re-read clips, recompute log-probabilities, GRPO and loss-prediction loss
    stepped     publish version step, ask for the groups of step + lag

With lag 0 that is the synchronous loop. With lag k the groups of k steps are made while the learner learns; which
version samples which group does not depend on timing, nor on how many actors there are or which of them die.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
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
    slot_advantages,
)
from pipelines.errors import PipelineError
from pipelines.loader import Batch, ShardLoader
from pipelines.metrics import Events
from pipelines.rl_config import RLConfig, version_of
from pipelines.rollout_pool import ActorRollouts, OwnRollouts, Recording, Rollouts, record
from pipelines.rollouts import Ask, Group, RolloutMaker
from pipelines.train_policy import PolicyTask
from pipelines.train_task import Key

_WINDOW = 50  # steps that busy shares are taken over


class RLTask(PolicyTask):
    """What the training loop asks of whatever is trained (pipelines/train_task.py), for RL.

    Files of a checkpoint also hold the versions that groups still to come are sampled with: the last `lag` ones.
    """

    config: RLConfig

    def __init__(self, config: RLConfig, threshold: float | None, device: torch.device) -> None:
        super().__init__(config, threshold, device)
        if self.threshold is None and config.sample.strategy != "ratio" and config.sample.min_threshold is None:
            raise PipelineError(
                "threshold=: the dataset names none, and sample.strategy="
                f"{config.sample.strategy} needs one; give threshold=, or use sample.strategy=ratio"
            )
        self.lag: int | None = config.rollouts.lag
        frozen, self.frozen = None, ""
        if config.objective.kl:
            self.frozen = self.policy.fingerprint
            frozen = AutoGaze(self.policy.config)
            frozen.load_state_dict(self.policy.state_dict())
            frozen = frozen.to(device).requires_grad_(False).eval()
        self.module: nn.Module = GroupLosses(self.policy, frozen, config)
        self.versions: dict[int, bytes] = {}  # weights that are still needed
        self.rollouts: Rollouts | None = None
        self.groups: dict[int, Group] = {}  # of the batch at hand, by sample
        self.recent: deque[dict[str, float]] = deque(maxlen=_WINDOW)

    def teachers(self) -> dict[str, str]:
        assert isinstance(self.config, RLConfig)
        return self.config.teachers.given()

    # -- around the steps ------------------------------------------------------------------------------------------

    def begin(self, loader: ShardLoader, step: int, steps: int) -> None:
        self.steps = steps
        self.rollouts = self._rollouts(loader, steps)
        self.coming: Iterator[tuple[int, int, np.ndarray]] = loader.steps()
        self.lasted = time.perf_counter()
        versions = self.versions | {step: self._weights()}
        self.versions = {}
        for version in sorted(versions):
            self._publish(version, versions[version])
        for _ in range(self._lag + 1):
            self._ask()

    def prepare(self, batch: Batch) -> dict[str, Any]:
        assert self.rollouts is not None
        began = time.perf_counter()
        groups = self.rollouts.take(batch.step)
        wrong = [group.clip for group, key in zip(groups, batch.keys, strict=True) if group.clip != key]
        if wrong:
            raise RuntimeError(f"step {batch.step}: a group of {wrong[0]} where the order has another clip")
        if self.config.rollouts.dump:
            record(self.config.rollouts.dump, groups)
        self.groups = {int(number): group for number, group in zip(batch.ids, groups, strict=True)}
        self.waited = time.perf_counter() - began
        self.spent = np.sum([group.seconds for group in groups], axis=0)
        return {
            "versions": [group.ask.version for group in groups],
            "groups": [group.digest() for group in groups],
        }

    def stepped(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        self._publish(step, self._weights())
        published = time.perf_counter() - began
        self._ask()
        now = time.perf_counter()
        wall, self.lasted = now - self.lasted, now
        read, gaze, reward = self.spent.tolist()
        self.recent.append({"wall": wall, "read": read, "gaze": gaze, "reward": reward, "learner": wall - self.waited})
        return {"publish_s": published} | self._shares()

    def note(self, events: Events, step: int) -> None:
        """Name the bottleneck."""
        if not self.recent or self.config.rollouts.replay:
            return
        events.log("bottleneck", step=step, which=bottleneck(self._shares(), self.config.rollouts.actors))

    def close(self) -> None:
        if self.rollouts is not None:
            self.rollouts.close()
            self.rollouts = None

    # -- one step ----------------------------------------------------------------------------------------------------

    def totals(self, gaze: Gaze) -> list[float]:
        return []  # every group's losses are normalised by itself

    def losses(self, model: nn.Module, frames: Tensor, gaze: Gaze, key: Key, totals: list[float]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = model(frames, [self.groups[number] for number in key.samples])
        return found

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Of a greedy gaze at held-out clips: ratio, error and how often the threshold is met."""
        return self.greedy_sums(frames) | {"clips": float(gaze.clips), "slots": 1.0}

    def flops(self, gaze: Gaze) -> float:
        """Floating-point operations of a forward and backward pass over the groups of these clips."""
        from pipelines.metrics import flops_per_clip

        each = [
            flops_per_clip(self.policy.config, float(group.used.sum()) / len(group.used), len(group.slots))
            for group in self.groups.values()
        ]
        return 3 * self.config.sample.group * float(np.mean(each)) * gaze.clips

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What a run must not change half-way: rewards, and the policy that it is held to."""
        return super().about() | {"reconstructor": self.reconstructor.fingerprint, "frozen": self.frozen}

    def files(self) -> dict[str, bytes]:
        newest = max(self.versions, default=0)
        older = {v: data for v, data in self.versions.items() if newest - self._lag <= v < newest}
        return super().files() | {f"versions/{v:06d}.safetensors": data for v, data in sorted(older.items())}

    def load(self, files: Mapping[str, bytes]) -> None:
        super().load(files)
        self.versions = {
            int(name.removeprefix("versions/").removesuffix(".safetensors")): data
            for name, data in files.items()
            if name.startswith("versions/")
        }

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def _lag(self) -> int:
        return self.config.rollouts.lag

    def _weights(self) -> bytes:
        return safetensors.torch.save({name: tensor.cpu() for name, tensor in self.policy.state_dict().items()})

    def _publish(self, version: int, weights: bytes) -> None:
        assert self.rollouts is not None
        self.versions[version] = weights
        for old in [v for v in self.versions if v < version - self._lag]:
            del self.versions[old]
        self.rollouts.publish(version, weights)

    def _ask(self) -> None:
        """Ask for the groups of the next step that has none."""
        assert self.rollouts is not None
        step, epoch, ids = next(self.coming)
        if step < self.steps:
            self.rollouts.ask([Ask(step, epoch, int(number), version_of(step, self._lag)) for number in ids])

    def _rollouts(self, loader: ShardLoader, steps: int) -> Rollouts:
        config, own = self.config, self.policy.config
        if config.rollouts.replay:
            return Recording(config.rollouts.replay)
        threshold, threads = self.threshold, config.scale.threads
        if not config.rollouts.actors:
            return OwnRollouts(lambda: RolloutMaker(config, own, threshold, steps, self.device))
        device = torch.device("cuda" if config.rollouts.gpus else "cpu")

        def make() -> RolloutMaker:
            torch.set_num_threads(threads)
            return RolloutMaker(config, own, threshold, steps, device)

        rollouts = config.rollouts
        return ActorRollouts(make, rollouts.actors, 0 if rollouts.gpus else threads, rollouts.gpus, rollouts.timeout_s)

    def _shares(self) -> dict[str, float]:
        """Of the last steps: how busy those who make groups were, with what, and how idle the learner was."""
        sums = {name: sum(row[name] for row in self.recent) for name in self.recent[0]}
        actors = max(self.config.rollouts.actors, 1)
        made = sums["read"] + sums["gaze"] + sums["reward"]
        wall = max(sums["wall"], 1e-9)
        return {
            "idle_rollout": max(0.0, 1 - made / (actors * wall)),
            "idle_learner": max(0.0, 1 - sums["learner"] / wall),
            "busy_read": sums["read"] / (actors * wall),
            "busy_gaze": sums["gaze"] / (actors * wall),
            "busy_reward": sums["reward"] / (actors * wall),
        }


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


def bottleneck(shares: Mapping[str, float], actors: int) -> str:
    """One line: what the run waits for, and what would help."""
    parts = {name: shares[f"busy_{name}"] for name in ("read", "gaze", "reward")}
    worst = max(parts, key=lambda name: parts[name])
    doing = {"read": "reading clips", "gaze": "sampling gazes", "reward": "rebuilding frames"}[worst]
    told = f"rollouts idle {shares['idle_rollout']:.0%}, learner idle {shares['idle_learner']:.0%}"
    if not actors:
        return f"{told}: one process does both; set rollouts.actors to sample beside the learner"
    if shares["idle_learner"] > max(0.1, shares["idle_rollout"]):
        return f"{told}: rollouts, mostly {doing} ({parts[worst]:.0%} of their time); more rollouts.actors would help"
    if shares["idle_rollout"] > 0.1:
        return f"{told}: the learner; fewer rollouts.actors would do, more ranks (scale.max_workers) would help"
    return f"{told}: none, both are busy"
