"""Rollouts: making groups, that is sampling gazes at clips by one version of the policy and measuring their errors.

A group is a pure function of its version's weights, the clip, the step's temperature, the run's seed and the epoch:
whoever makes it, however often, makes the same. No pixels leave the maker. A group whose gazes all have the same errors
is sampled again, warmer, with the same seeds.

A clip is encoded once for the whole group. Gazing ends with the last frame that is rebuilt: later frames earn no
reward, so they would change no gradient.

The groups of a request are made as one batch. What is drawn for a member depends on its own seed alone, not on the
other groups; matrix products of another height may round differently.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from autogaze.draws import draw_frames
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig, Encoded, Rollout, Sampling
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.networks.open import open_reconstructor
from pipelines.rl.config import RLConfig, temperatures
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.packing import PackedGroups, by_temperature
from pipelines.rl.rewards import RewardedClip, Rewards
from pipelines.train.step import precision


@dataclass(frozen=True)
class _Shared:
    """What all members of a group share: names, and what is drawn for the group.

    length: frames that are gazed at. first_seed: of the sample that gives the others their lengths.
    """

    request: RolloutRequest
    clip: str
    at: list[int]
    threshold: float | None
    seeds: list[int]
    first_seed: int

    @property
    def length(self) -> int:
        return self.at[-1] + 1


class _Gazes(NamedTuple):
    """The gazes of a group over its own frames. drawn: int64 [G, N]. log_probs: float32 [G, N]."""

    gaze: Gaze
    drawn: Tensor
    log_probs: Tensor


class RolloutMaker:
    """Makes groups, by the weights that were loaded last. A process has one.

    `read` may run in another thread while `make_all` works on groups that were read before.

    Args:
        policy: sizes of the network.
        threshold: predicted loss at which a gaze ends, where the config draws none.
        steps: of the whole run; the temperature depends on it.
    Raises:
        PipelineError: the data or the reconstructor cannot be loaded.
    """

    def __init__(
        self, config: RLConfig, policy: AutoGazeConfig, threshold: float | None, steps: int, device: torch.device
    ) -> None:
        self.config, self.threshold, self.steps, self.device = config, threshold, steps, device
        with torch.device("meta"):
            self.policy = AutoGaze(policy)
        self.policy = self.policy.to_empty(device=device).requires_grad_(False).eval()
        self.version: int | None = None
        reconstructor = open_reconstructor(
            config.reconstructor,
            "reconstructor",
            vocabulary=policy.vocabulary,
            teachers=config.teachers.given(),
            device=device,
            dtype=getattr(torch, config.reconstructor_dtype),
        )
        self.rewards = Rewards(reconstructor, device)
        # One clip is decoded where it is read; several keep the loader's threads busy.
        threads = config.loader.workers if config.rollouts.groups > 1 else 0
        self.reader = ShardLoader(replace(config.loader_config, global_batch=1, workers=threads), split="train")
        kept = [data.about["config"].get("targets", {}).get("frames", 0) for data in self.reader.datasets]
        self.reader.config.targets = self.rewards.teachers is not None and all(kept)

    def load(self, version: int, weights: bytes | np.ndarray) -> None:
        """Sample with these weights, safetensors, from now on. Those of the version that is loaded stay."""
        if version == self.version:
            return
        self.policy.load_state_dict(safetensors.torch.load(bytes(weights)))
        self.version = version

    def read(self, requests: Sequence[RolloutRequest]) -> Batch:
        """The clips of some requests of one epoch. Raises PipelineError naming one that cannot be read."""
        return self.reader.read([request.id for request in requests], requests[0].epoch)

    def make(self, request: RolloutRequest) -> Group:
        """The group that is asked for. Raises PipelineError naming a clip that cannot be read."""
        [group] = self.make_all([request])
        return group

    def make_all(
        self, requests: Sequence[RolloutRequest], clips: Batch | None = None, waited: float = 0.0
    ) -> list[Group]:
        """The groups of requests of one step and version, as one batch.

        clips: what `read` gave for them; waited: seconds that the maker had nothing else to do meanwhile. Without clips
        they are read here. Raises PipelineError naming a clip that cannot be read.
        """
        wrong = {request.version for request in requests} - {self.version}
        if wrong:
            raise ValueError(f"asked for version {min(wrong)}, the weights here are of version {self.version}")
        began = time.perf_counter()
        if clips is None:
            clips = self.read(requests)
            waited, began = time.perf_counter() - began, time.perf_counter()
        shared = [
            self._drawn(request, clip, clips.frames.shape[1])
            for request, clip in zip(requests, clips.keys, strict=True)
        ]
        frames = clips.frames[:, : max(group.length for group in shared)].to(self.device)
        rewarded = [self._rewarded(group, frames[row], clips.targets, row) for row, group in enumerate(shared)]
        with torch.inference_mode():
            encoded = self.policy.encode(frames)
        made: dict[int, tuple[float, _Gazes, Tensor]] = {}  # temperature, gazes and errors of each group
        waiting, rebuilding = list(range(len(shared))), 0.0
        for heat in (tried := temperatures(self.config.sample, requests[0].step, self.steps)):
            gazes = self._gazes(Encoded(encoded.tokens[waiting]), [shared[row] for row in waiting], heat)
            # Gazes that are all alike have the same errors, which need not be measured.
            worth = [place for place, one in enumerate(gazes) if heat == tried[-1] or not _are_alike(one.drawn)]
            measuring = time.perf_counter()
            errors = self.rewards.errors([rewarded[waiting[p]] for p in worth], [gazes[p].gaze for p in worth])
            rebuilding += time.perf_counter() - measuring
            for place, error in zip(worth, errors, strict=True):
                if heat == tried[-1] or not _are_alike(error):
                    made[waiting[place]] = heat, gazes[place], error
            waiting = [row for row in waiting if row not in made]
            if not waiting:
                break
        groups = [self._group(group, *made[row]) for row, group in enumerate(shared)]
        if self.config.scale.dtype != "float32":
            groups = self._scored(groups, frames)
        spent = np.array([waited, time.perf_counter() - began - rebuilding, rebuilding]) / len(groups)
        return [replace(group, seconds=spent) for group in groups]

    def close(self) -> None:
        self.reader.close()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _drawn(self, request: RolloutRequest, clip: str, frames: int) -> _Shared:
        run, epoch, sample = self.config.loader.seed, request.epoch, request.id
        random = group_generator(run, epoch, sample)
        at = draw_frames(random, range(frames), self.config.objective.frames)
        threshold = self._threshold(random)
        seeds = [seed_of(run, epoch, sample, member) for member in range(self.config.sample.group)]
        return _Shared(request, clip, at, threshold, seeds, seed_of(run, epoch, sample, -1))

    def _threshold(self, random: np.random.Generator) -> float | None:
        sample = self.config.sample
        if sample.strategy == "ratio":
            return None
        if sample.min_threshold is not None and sample.max_threshold is not None:
            return float(np.float32(random.uniform(sample.min_threshold, sample.max_threshold)))
        return self.threshold

    def _rewarded(self, group: _Shared, frames: Tensor, targets: list[bytes] | None, row: int) -> RewardedClip:
        originals, stored = frames[group.at], targets[row] if targets else None
        features = self.rewards.targets(group.clip, originals, group.at, stored)
        return RewardedClip(frames[: group.length], group.at, features)

    def _gazes(self, encoded: Encoded, shared: list[_Shared], heat: float) -> list[_Gazes]:
        """The gazes of some groups at a temperature. encoded: their clips, all of the longest one's frames."""
        members, frames = self.config.sample.group, encoded.tokens.shape[1]
        cap = self.policy.vocabulary.cap(self.config.max_ratio)
        lengths = torch.tensor([group.length for group in shared])
        slots = torch.where(torch.arange(frames) < lengths[:, None], cap, 0)
        limits: dict[str, Any] = {}
        if shared[0].threshold is not None:
            limits["loss_threshold"] = torch.tensor([[group.threshold] for group in shared])
        if self.config.sample.strategy == "self":  # all members have the lengths of one further sample
            first = self._sampling(heat, [group.first_seed for group in shared])
            slots = self.policy.rollout(Encoded(encoded.tokens), first, slots=slots, **limits).gaze.lengths
            limits = {}
        limits = {name: limit.repeat_interleave(members, dim=0) for name, limit in limits.items()}
        sampling = self._sampling(heat, [seed for group in shared for seed in group.seeds])
        copies = Encoded(encoded.tokens).repeat(members)
        rollout = self.policy.rollout(copies, sampling, slots=slots.repeat_interleave(members, dim=0), **limits)
        return [_of_group(rollout, row * members, members, group.length) for row, group in enumerate(shared)]

    def _sampling(self, heat: float, seeds: list[int]) -> Sampling:
        return Sampling(heat, self.config.sample.top_k or None, seeds)

    def _group(self, shared: _Shared, heat: float, gazes: _Gazes, errors: Tensor) -> Group:
        padded = gazes.gaze.padded()
        return Group(
            request=shared.request,
            clip=shared.clip,
            temperature=heat,
            threshold=float("nan") if shared.threshold is None else shared.threshold,
            at=np.array(shared.at, np.int64),
            seeds=np.array(shared.seeds, np.int64),
            slots=padded["num_gazing_each_frame"].numpy(),
            drawn=gazes.drawn.numpy().astype(np.int16 if self.policy.vocabulary.size < 1 << 15 else np.int32),
            used=~padded["if_padded_gazing"].numpy(),
            log_probs=gazes.log_probs.numpy(),
            errors=errors.numpy(),
            seconds=np.zeros(3),
        )

    @torch.no_grad()
    def _scored(self, groups: list[Group], frames: Tensor) -> list[Group]:
        """The groups with the log-probabilities of what was drawn in the precision in which the learner computes them.

        Gazes are sampled in float32. A learner in bfloat16 would find other log-probabilities for the same weights, and
        ratios that leave 1 before anything was learned; so they are computed here as it computes them.
        """
        scored = list(groups)
        for places in by_temperature(groups):
            packed = PackedGroups.of([groups[place] for place in places], self.policy.vocabulary)
            members = len(packed.drawn) // len(places)
            with precision(self.config, self.device):
                seen = self.policy.encode(frames[places][:, : len(packed.slots)]).repeat(members)
                sample = Sampling(groups[places[0]].temperature, self.config.sample.top_k or None)
                scores = self.policy.score(seen, packed.gaze, sample, packed.drawn)
            found = scores.log_probs.float().cpu().numpy()
            for number, place in enumerate(places):
                mine = found[number * members : (number + 1) * members, packed.columns[number]]
                scored[place] = replace(groups[place], log_probs=mine)
        return scored


def _of_group(rollout: Rollout, first: int, members: int, frames: int) -> _Gazes:
    """The rows of one group, from `first` on, over its own frames and in no more slots than it takes."""
    vocabulary, rows = rollout.gaze.vocabulary, slice(first, first + members)
    taken = rollout.gaze.frame_slots()
    begin = taken.amax(dim=0).cumsum(0) - taken.amax(dim=0)
    slots = taken[rows, :frames].amax(dim=0)
    frame = torch.repeat_interleave(torch.arange(frames), slots)
    columns = begin[frame] + torch.arange(len(frame)) - (slots.cumsum(0) - slots)[frame]
    padded = rollout.gaze.padded()
    ids, unused = padded["gazing_pos"][rows, columns], padded["if_padded_gazing"][rows, columns]
    gaze = Gaze.from_padded(ids, unused, slots, vocabulary)
    return _Gazes(gaze, rollout.drawn[rows, columns], rollout.log_probs[rows, columns])


def _are_alike(values: Tensor) -> bool:
    """Whether all rows are equal."""
    return bool((values == values[:1]).all())


def seed_of(run: int, epoch: int, clip: int, member: int) -> int:
    """The seed, an int64, of one member of a clip's group: 0 and up, or -1 for the sample that gives the lengths."""
    digest = hashlib.sha256(f"{run} {epoch} {clip} {member}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def group_generator(run: int, epoch: int, clip: int) -> np.random.Generator:
    """Random numbers for whatever all members of a clip's group share."""
    digest = hashlib.sha256(f"{run} {epoch} {clip} group".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
