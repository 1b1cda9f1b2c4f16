"""Rollouts: making groups, that is sampling gazes at a clip by one version of the policy and measuring their errors.

A group is a pure function of its version's weights, the clip, the step's temperature, the run's seed and the epoch:
whoever makes it, however often, makes the same. No pixels leave the maker. A group whose gazes all have the same errors
is sampled again, warmer, with the same seeds.

The clip is encoded once for the whole group. Gazing ends with the last frame that is rebuilt: later frames earn no
reward, so they would change no gradient.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.torch
import torch

from autogaze.draws import draw_frames
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig, Encoded, Rollout, Sampling
from autogaze.reconstruction.learned import Learned
from autogaze.reconstruction.targets import Targets
from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.networks.open import open_reconstructor
from pipelines.rl.config import RLConfig, temperatures
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.train.step import precision


class RolloutMaker:
    """Makes groups, by the weights that were loaded last. A process has one.

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
        self.reconstructor = open_reconstructor(
            config.reconstructor,
            "reconstructor",
            vocabulary=policy.vocabulary,
            teachers=config.teachers.given(),
            device=device,
            dtype=getattr(torch, config.reconstructor_dtype),
        )
        one_clip = replace(config.loader_config, global_batch=1, workers=0)
        self.reader = ShardLoader(one_clip, split="train")
        learned = self.reconstructor if isinstance(self.reconstructor, Learned) else None
        self.teachers = learned.frame_loss if learned is not None and learned.frame_loss.names else None
        kept = [data.about["config"].get("targets", {}).get("frames", 0) for data in self.reader.datasets]
        self.reader.config.targets = self.teachers is not None and all(kept)

    def load(self, version: int, weights: bytes | np.ndarray) -> None:
        """Sample with these weights, safetensors, from now on."""
        if version == self.version:
            return
        self.policy.load_state_dict(safetensors.torch.load(bytes(weights)))
        self.version = version

    def make(self, request: RolloutRequest) -> Group:
        """The group that is asked for. Raises PipelineError naming a clip that cannot be read."""
        if request.version != self.version:
            raise ValueError(f"asked for version {request.version}, the weights here are of version {self.version}")
        config, began = self.config, time.perf_counter()
        batch = self.reader.read([request.id], request.epoch)
        read = time.perf_counter()
        clip, vocabulary = batch.keys[0], self.policy.vocabulary
        random = group_generator(config.loader.seed, request.epoch, request.id)
        at = draw_frames(random, range(batch.frames.shape[1]), config.objective.frames)
        threshold = self._threshold(random)
        frames = batch.frames[:, : at[-1] + 1].to(self.device)
        run, epoch, sample = config.loader.seed, request.epoch, request.id
        seeds = [seed_of(run, epoch, sample, member) for member in range(config.sample.group)]
        targets = self._targets(clip, frames[0, at], at, batch.targets[0] if batch.targets else None)

        with torch.inference_mode():
            encoded = self.policy.encode(frames)
        rebuilding = 0.0
        for heat in (tried := temperatures(config.sample, request.step, self.steps)):
            rollout = self._rollout(encoded, heat, seeds, seed_of(run, epoch, sample, -1), threshold)
            if heat < tried[-1] and _are_alike(rollout.drawn):
                continue  # as are their errors then
            measuring = time.perf_counter()
            errors = self._errors(frames, rollout.gaze, at, targets)
            rebuilding += time.perf_counter() - measuring
            if not _are_alike(errors):
                break
        log_probs = self._log_probs(frames, rollout, heat)
        padded = rollout.gaze.padded()
        spent = np.array([read - began, time.perf_counter() - read - rebuilding, rebuilding])
        return Group(
            request=request,
            clip=clip,
            temperature=heat,
            threshold=float("nan") if threshold is None else threshold,
            at=np.array(at, np.int64),
            seeds=np.array(seeds, np.int64),
            slots=padded["num_gazing_each_frame"].numpy(),
            drawn=rollout.drawn.numpy().astype(np.int16 if vocabulary.size < 1 << 15 else np.int32),
            used=~padded["if_padded_gazing"].numpy(),
            log_probs=log_probs.numpy(),
            errors=errors.numpy(),
            seconds=spent,
        )

    def close(self) -> None:
        self.reader.close()

    def _rollout(
        self, encoded: Encoded, heat: float, seeds: list[int], first_seed: int, threshold: float | None
    ) -> Rollout:
        """The gazes of a group at a temperature. encoded: its clip. first_seed: of the sample that gives lengths."""
        limits: dict[str, Any] = {"max_ratio": self.config.max_ratio, "loss_threshold": threshold}
        if self.config.sample.strategy == "self":  # all members have the lengths of one further sample
            first = self.policy.rollout(Encoded(encoded.tokens), self._sampling(heat, [first_seed]), **limits)
            limits = {"slots": first.gaze.lengths[0].tolist()}
        copies = Encoded(encoded.tokens).repeat(len(seeds))
        return self.policy.rollout(copies, self._sampling(heat, seeds), **limits)

    @torch.no_grad()
    def _log_probs(self, frames: torch.Tensor, rollout: Rollout, heat: float) -> torch.Tensor:
        """Log-probabilities [G, N] of what was drawn, on the CPU, in the precision in which the learner computes them.

        Gazes are sampled in float32. A learner in bfloat16 would find other log-probabilities for the same weights, and
        ratios that leave 1 before anything was learned; so they are computed here as it computes them.
        """
        if self.config.scale.dtype == "float32":
            return rollout.log_probs
        with precision(self.config, self.device):
            seen = self.policy.encode(frames).repeat(len(rollout.drawn))
            scores = self.policy.score(
                seen, rollout.gaze, Sampling(heat, self.config.sample.top_k or None), rollout.drawn
            )
        return scores.log_probs.float().cpu()

    def _sampling(self, heat: float, seeds: list[int]) -> Sampling:
        return Sampling(heat, self.config.sample.top_k or None, seeds)

    def _threshold(self, random: np.random.Generator) -> float | None:
        sample = self.config.sample
        if sample.strategy == "ratio":
            return None
        if sample.min_threshold is not None and sample.max_threshold is not None:
            return float(np.float32(random.uniform(sample.min_threshold, sample.max_threshold)))
        return self.threshold

    def _errors(
        self, clip: torch.Tensor, gaze: Gaze, at: list[int], targets: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """Errors float32 [G, F] of a gaze of G rows at one clip [1, T', S, S, 3]. targets: see `_targets`."""
        frames = clip.expand(gaze.clips, *clip.shape[1:])
        if not isinstance(self.reconstructor, Learned):
            return self.reconstructor.reconstruct(frames, gaze, at).error.cpu()
        return self.reconstructor.errors(frames, gaze, at, targets)

    def _targets(
        self, clip: str, originals: torch.Tensor, at: list[int], data: bytes | None
    ) -> list[torch.Tensor] | None:
        """Teacher features of the rewarded frames, once for the group; None where there are no teachers.

        originals: uint8 [F, S, S, 3], the frames `at`. data: the targets that the dataset keeps of the clip: they are
        taken for the frames that have them, and computed for the others, so that every frame can be rewarded.
        """
        if self.teachers is None:
            return None
        assert isinstance(self.reconstructor, Learned)
        stored = None if data is None else self._stored_targets(clip, data)
        kept = {number: place for place, number in enumerate(stored.at.tolist())} if stored is not None else {}
        missing = [place for place, number in enumerate(at) if number not in kept]
        held = stored.for_frames([number for number in at if number in kept]) if stored is not None else []
        if not missing:
            return [features.to(self.device) for features in held]
        computed = self.teachers.targets(self.reconstructor.normalised(originals[missing]).float())
        if len(missing) == len(at):
            return computed
        there = [place for place in range(len(at)) if place not in missing]
        order = torch.tensor([*there, *missing], device=self.device).argsort()
        return [
            torch.cat((old.to(self.device, new.dtype), new))[order] for old, new in zip(held, computed, strict=True)
        ]

    def _stored_targets(self, clip: str, data: bytes) -> Targets:
        assert self.teachers is not None
        try:
            targets = Targets.from_npz(data)
            targets.require(self.teachers)
        except ValueError as error:
            raise PipelineError(f"{clip}: {error}") from error
        return targets


def _are_alike(values: torch.Tensor) -> bool:
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
