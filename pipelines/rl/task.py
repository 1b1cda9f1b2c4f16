"""Reinforcement learning of the policy: rollouts earn rewards, GRPO learns from them.

See docs/method.md, section 'Reinforcement learning'.

The loop is that of every training job (pipelines/train/loop.py). Around its steps this task adds:

    begin       publish the version trained so far, request the groups of the first lag + 1 steps
    prepare     take the groups of this step, all of version max(0, step - lag)
    losses      recompute log-probabilities of the groups' clips; GRPO and loss-prediction loss
    stepped     publish the new version, request the groups of step + lag

Lag 0 is the synchronous loop. With lag k the groups of the next k steps are made while the learner learns. Which
version samples which group depends neither on timing nor on the number of actors, or on which of them die.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from pipelines.dataset.units import units_fit
from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.rl.actors import ActorRollouts
from pipelines.rl.config import RLConfig, temperature, version_of
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.health import Health
from pipelines.rl.losses import GroupLosses
from pipelines.rl.packing import packed_parts
from pipelines.rl.rollouts import RolloutMaker
from pipelines.rl.sources import OwnRollouts, Recording, Rollouts, record
from pipelines.runs.events import Events
from pipelines.train.policy import PolicyTask
from pipelines.train.stopping import never
from pipelines.train.task import COMPILES, RandomKey

_WINDOW = 50  # steps that shares of time are averaged over
_TELLING = 5  # fewest steps after which a bottleneck is named


class RLTask(PolicyTask):
    """The policy, trained by RL (a Task, see pipelines/train/task.py).

    A checkpoint also holds the last `lag` versions: groups still to come are sampled by them.
    """

    config: RLConfig

    def __init__(self, config: RLConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.same_graph = False  # groups of other sizes may be scored in other ways
        self._require_threshold()
        self.on_labels = self._weight_on_labels()
        self.lag: int | None = config.rollouts.lag
        frozen, self.frozen = None, ""
        if config.objective.kl:
            self.frozen = self.policy.fingerprint
            frozen = AutoGaze(self.policy.config)
            frozen.load_state_dict(self.policy.state_dict())
            frozen = frozen.to(device).requires_grad_(False).eval()
        self.module: nn.Module = GroupLosses(self.policy, frozen, config, self.on_labels)
        self.versions: dict[int, bytes] = {}  # weights that are still needed
        self.rollouts: Rollouts | None = None
        self.groups: dict[int, Group] = {}  # of the batch at hand, by sample
        self.recent: deque[dict[str, float]] = deque(maxlen=_WINDOW)
        self.sampling = {"temperature": 0.0, "resampled": 0.0}  # of the batch at hand
        self.health = Health(config)

    def _require_threshold(self) -> None:
        """Raise PipelineError if gazes are to end at a threshold, and there is none in the reconstructor's units."""
        config = self.config
        if config.threshold is not None:
            self.comparable = True  # the policy learns to predict what the reconstructor measures
            return
        if config.sample.strategy == "ratio" or config.sample.min_threshold is not None:
            return
        if self.threshold is None:
            raise PipelineError(
                "threshold=: the dataset names none, and sample.strategy="
                f"{config.sample.strategy} needs one; give threshold=, or use sample.strategy=ratio"
            )
        if not self.comparable:
            raise PipelineError(
                f"threshold=: the dataset's is in other units ({self.units}) than the reconstructor's rewards "
                f"({self.reconstructor.units}); give threshold= in these, or use sample.strategy=ratio"
            )

    def _weight_on_labels(self) -> float:
        """The weight of the loss prediction on labels. Raises PipelineError where it is asked for and cannot be."""
        fits, asked = units_fit(self.units, self.reconstructor.units), self.config.objective.label_prediction
        if asked and not fits:
            raise PipelineError(
                f"objective.label_prediction={asked:g}: the labels' errors ({self.units}) are in other units than the "
                f"reconstructor's ({self.reconstructor.units}); set it to 0, or measure them: autogaze import-labels"
            )
        if asked is not None:
            return asked
        return 1.0 if fits else 0.0

    # -- around the steps ------------------------------------------------------------------------------------------

    def begin(self, loader: ShardLoader, step: int, steps: int, stopping: Callable[[], bool] = never) -> None:
        """Start the source of rollouts; publish the versions still needed, and request the first groups."""
        self.steps, self.begun, self.stopping = steps, step, stopping
        self.rollouts = self._rollouts(loader, steps)
        self.coming: Iterator[tuple[int, int, np.ndarray]] = loader.steps()
        self.stepped_at = time.perf_counter()
        versions = self.versions | {step: self._weights()}
        self.versions = {}
        for version in sorted(versions):
            self._publish(version, versions[version])
        for _ in range(self._lag + 1):
            self._request()

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Wait for the groups of the batch's clips. Returns their versions and hashes, for the ledger.

        Raises StopRequested when it is to stop before they are there.
        """
        assert self.rollouts is not None
        began = time.perf_counter()
        groups = self.rollouts.take(batch.step, self.stopping)
        wrong = [group.clip for group, key in zip(groups, batch.keys, strict=True) if group.clip != key]
        if wrong:
            raise RuntimeError(f"step {batch.step}: a group of {wrong[0]} where the order has another clip")
        if self.config.rollouts.dump:
            record(self.config.rollouts.dump, groups)
        self.groups = {int(number): group for number, group in zip(batch.ids, groups, strict=True)}
        self.waited = time.perf_counter() - began
        self.spent = np.sum([group.seconds for group in groups], axis=0)
        heats, wanted = [group.temperature for group in groups], temperature(self.config.sample, batch.step, self.steps)
        self.sampling = {
            "temperature": float(np.mean(heats)),
            "resampled": float(np.mean([heat > wanted for heat in heats])),
        }
        return {
            "versions": [group.request.version for group in groups],
            "groups": [group.digest() for group in groups],
        }

    def stepped(self, step: int) -> dict[str, float]:
        """Publish the new version and request further groups. Returns how long that took, and shares of time."""
        began = time.perf_counter()
        self._publish(step, self._weights())
        published = time.perf_counter() - began
        self._request()
        now = time.perf_counter()
        wall, self.stepped_at = now - self.stepped_at, now
        read, gaze, reward = self.spent.tolist()
        if step == self.begun + self._lag + 2:
            self.recent.clear()  # the first groups were waited for while the actors started
        self.recent.append({"wall": wall, "read": read, "gaze": gaze, "reward": reward, "learner": wall - self.waited})
        return {"publish_s": published} | self.sampling | self._shares()

    def notes(self) -> list[str]:
        """What it rewards and what it does not learn from."""
        notes = [COMPILES] if self.config.compile else []
        if self.config.sample.strategy == "threshold":
            notes.append(
                "sample.strategy=threshold rewards longer gaze: a member with more patches has less error, and costs "
                "nothing more; self and ratio compare gazes of one length"
            )
        if self.config.objective.label_prediction is None and not self.on_labels:
            notes.append(
                f"the labels' errors ({self.units}) are in other units than the reconstructor's: the loss prediction "
                "learns from rewarded frames alone (objective.label_prediction=0)"
            )
        return notes

    def remark(self, row: Mapping[str, float]) -> str | None:
        """See Health."""
        return self.health.look_at(row)

    def note(self, events: Events, step: int) -> None:
        """Log what the run mostly waits for."""
        if not self.recent or self.config.rollouts.replay:
            return
        events.log(
            "bottleneck", step=step, which=bottleneck(self._shares(), self.config.rollouts.actors, len(self.recent))
        )

    def close(self) -> None:
        """Close the source of rollouts."""
        if self.rollouts is not None:
            self.rollouts.close()
            self.rollouts = None

    # -- one step ----------------------------------------------------------------------------------------------------

    def parts(self, batch: Batch) -> list[list[int]] | None:
        """Groups of like lengths, up to `micro_tokens` tokens at a time."""
        if not self.config.micro_tokens:
            return None
        groups = [self.groups[number] for number in batch.ids.tolist()]
        return packed_parts(groups, self.config.micro_tokens, self.policy.config.num_vision_tokens)

    def ahead(self, batch: Batch) -> None:
        """Nothing: the parts depend on the groups, which are made while the batch before is learned from."""

    def totals(self, gaze: Gaze) -> list[float]:
        """The labels' slots in use, where the loss prediction learns from them; groups are normalised by themselves."""
        return super().totals(gaze) if self.on_labels else []

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """See GroupLosses. gaze: the dataset's labels; the groups have gazes of their own."""
        groups = [self.groups[number] for number in key.samples]
        labels, slots = (gaze, totals[0]) if self.on_labels else (None, 1.0)
        losses: dict[str, Tensor] = model(frames, groups, labels, slots)
        return losses

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over held-out clips of what PolicyTask validates; of labels without errors, of the greedy gaze alone."""
        if gaze.losses is None:
            return self.greedy_sums(frames) | {"clips": float(gaze.clips), "slots": 1.0}
        return super().validate(frames, gaze)

    def flops(self, gaze: Gaze) -> float:
        """Floating-point operations of a forward and backward pass over the groups of these clips."""
        from autogaze.model.flops import flops_per_clip

        each = [
            flops_per_clip(self.policy.config, float(group.used.sum()) / len(group.used), len(group.slots))
            for group in self.groups.values()
        ]
        return 3 * self.config.sample.group * float(np.mean(each)) * gaze.clips

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What must not change while a run lasts: also what gives its rewards, and the policy that it is held to."""
        return super().about() | {"reconstructor": self.reconstructor.fingerprint, "frozen": self.frozen}

    def files(self) -> dict[str, bytes]:
        """The policy's folder, and older versions that are still needed."""
        newest = max(self.versions, default=0)
        older = {v: data for v, data in self.versions.items() if newest - self._lag <= v < newest}
        return super().files() | {f"versions/{v:06d}.safetensors": data for v, data in sorted(older.items())}

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the policy and the older versions that `files` returned."""
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

    def _request(self) -> None:
        """Request the groups of the next step, if the run has one more."""
        assert self.rollouts is not None
        step, epoch, ids = next(self.coming)
        if step < self.steps:
            version = version_of(step, self._lag)
            self.rollouts.request([RolloutRequest(step, epoch, int(number), version) for number in ids])

    def _rollouts(self, loader: ShardLoader, steps: int) -> Rollouts:
        config, own = self.config, self.policy.config
        if config.rollouts.replay:
            return Recording(config.rollouts.replay)
        threshold, threads = self.threshold, config.scale.threads
        if not config.rollouts.actors:
            return OwnRollouts(lambda: RolloutMaker(config, own, threshold, steps, self.device), config.rollouts.groups)
        device = torch.device("cuda" if config.rollouts.gpus else "cpu")

        def make() -> RolloutMaker:
            torch.set_num_threads(threads)
            return RolloutMaker(config, own, threshold, steps, device)

        rollouts = config.rollouts
        cpus = 0 if rollouts.gpus else threads
        return ActorRollouts(make, rollouts.actors, cpus, rollouts.gpus, rollouts.timeout_s, rollouts.groups)

    def _shares(self) -> dict[str, float]:
        """Over the last steps: the share of its time that each side was idle, and what the rollouts spent theirs on."""
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


def bottleneck(shares: Mapping[str, float], actors: int, steps: int) -> str:
    """One line: what the run waits for, and what may help. shares: as RLTask computes them, over so many steps."""
    parts = {name: shares[f"busy_{name}"] for name in ("read", "gaze", "reward")}
    worst = max(parts, key=lambda name: parts[name])
    busy_with = {"read": "reading clips", "gaze": "sampling gazes", "reward": "rebuilding frames"}[worst]
    idle = f"over {steps} steps rollouts idle {shares['idle_rollout']:.0%}, learner idle {shares['idle_learner']:.0%}"
    if steps < _TELLING:
        return f"{idle}: too few steps to say what would help"
    if not actors:
        return f"{idle}: one process does both; set rollouts.actors to sample beside the learner"
    if shares["idle_learner"] > max(0.1, shares["idle_rollout"]):
        return (
            f"{idle}: rollouts, mostly {busy_with} ({parts[worst]:.0%} of their time); more rollouts.actors may help "
            "where CPUs or GPUs are free"
        )
    if shares["idle_rollout"] > 0.1:
        return f"{idle}: the learner; more ranks (scale.max_workers) may help, or fewer rollouts.actors do"
    return f"{idle}: none, both are busy"
