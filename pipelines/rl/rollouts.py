"""Rollouts: groups of gazes at a clip, sampled by one version of the policy, with the errors they came to.

A group is a pure function of (weights of its version, clip, step's temperature, seed of the run, epoch): whoever makes
it, however often, makes the same. Its seeds come from (run seed, epoch, clip, member). No pixels leave the maker.

The clip is encoded once for the whole group. Only frames up to the last one that is rebuilt are gazed at: what comes
after it earns no reward, so it would change no gradient.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from autogaze import npz, reconstruction
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig, Encoded, Sampling
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.targets import Targets
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import LoaderConfig
from pipelines.rl.config import RLConfig, temperature


class RolloutRequest(NamedTuple):
    """What to make: the group of sample `id` in `epoch`, for learner step `step`, by weights of `version`."""

    step: int
    epoch: int
    id: int
    version: int


@dataclass(frozen=True, eq=False)
class Group:
    """G trajectories of one clip, of the T' frames up to the last that was rebuilt. Numpy, so that it travels lightly.

    ask: what was asked for. clip: its name. threshold: that the lengths came from (nan: none).
    at: int64 [F], frames rebuilt, rising. seeds: int64 [G].
    slots: int64 [T'], slots of each frame, N in all. drawn: int16 [G, N], ids as they were drawn. used: bool [G, N].
    log_probs: float32 [G, N], of what was drawn, in the distribution it was drawn from.
    errors: float32 [G, F], of the rebuilt frames in the reconstructor's units; the reward is their negative.
    seconds: float64 [3], spent reading, gazing and rebuilding.
    """

    ask: RolloutRequest
    clip: str
    temperature: float
    threshold: float
    at: np.ndarray
    seeds: np.ndarray
    slots: np.ndarray
    drawn: np.ndarray
    used: np.ndarray
    log_probs: np.ndarray
    errors: np.ndarray
    seconds: np.ndarray

    def gaze(self, vocabulary: PatchVocabulary) -> Gaze:
        """The gaze of its G trajectories at T' frames."""
        slots = torch.tensor(self.slots)  # copies: arrays out of the object store are read-only
        frame = torch.repeat_interleave(torch.arange(len(slots)), slots)
        ids = torch.from_numpy(self.drawn.astype(np.int64)) + frame * vocabulary.size
        return Gaze.from_padded(ids, torch.tensor(~self.used), slots, vocabulary)

    def digest(self) -> int:
        """A number that changes with anything that was sampled or measured; never 0."""
        told = hashlib.sha256(repr((self.ask, self.clip, self.temperature)).encode())
        for name in ("at", "seeds", "slots", "drawn", "used", "log_probs", "errors"):
            told.update(getattr(self, name).tobytes())
        return int.from_bytes(told.digest()[:8], "big", signed=True) or 1

    def to_npz(self) -> bytes:
        """All of it but the times, as an archive without pickles; the same bytes for the same group."""
        scalars: dict[str, np.ndarray] = {
            "ask": np.array(self.ask, np.int64),
            "clip": np.frombuffer(self.clip.encode(), np.uint8),
        }
        scalars |= {name: np.array(getattr(self, name), np.float64) for name in ("temperature", "threshold")}
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {*scalars, "seconds"}}
        return npz.write(scalars | arrays)

    @classmethod
    def from_npz(cls, data: bytes) -> Group:
        """What `to_npz` wrote. Raises ValueError for anything else."""
        arrays = npz.read(data)
        missing = [f.name for f in fields(cls) if f.name not in arrays and f.name != "seconds"]
        if missing:
            raise ValueError(f"has no {missing[0]}, so it is no group of trajectories")
        told: dict[str, Any] = {
            "ask": RolloutRequest(*arrays["ask"].tolist()),
            "clip": arrays["clip"].tobytes().decode(),
            "temperature": float(arrays["temperature"]),
            "threshold": float(arrays["threshold"]),
            "seconds": np.zeros(3),
        }
        return cls(**{**arrays, **told})


class RolloutMaker:
    """Makes groups. One for each process that does.

    Args:
        config: of the run; policy: sizes of the network. threshold: the dataset's, where the config leaves it open.
        steps: of the whole run, which the temperature depends on.
    Raises PipelineError: data or a reconstructor that cannot be had.
    """

    def __init__(
        self, config: RLConfig, policy: AutoGazeConfig, threshold: float | None, steps: int, device: torch.device
    ) -> None:
        self.config, self.threshold, self.steps, self.device = config, threshold, steps, device
        with torch.device("meta"):
            self.policy = AutoGaze(policy)
        self.policy = self.policy.to_empty(device=device).requires_grad_(False).eval()
        self.version: int | None = None
        try:
            self.reconstructor = reconstruction.load(
                config.reconstructor, policy.vocabulary, teachers=config.teachers.given(), device=device
            )
        except ValueError as error:
            raise PipelineError(f"reconstructor={config.reconstructor}: {error}") from error
        self.reader = ShardLoader(_reader_config(config), split="train")
        learned = self.reconstructor if isinstance(self.reconstructor, VideoMAE) else None
        self.teachers = learned.frame_loss if learned is not None and learned.frame_loss.names else None
        kept = [data.about["config"].get("targets", {}).get("frames", 0) for data in self.reader.datasets]
        self.reader.config.targets = self.teachers is not None and all(kept)

    def load(self, version: int, weights: bytes | np.ndarray) -> None:
        """Gaze by these weights from now on."""
        if version == self.version:
            return
        self.policy.load_state_dict(safetensors.torch.load(bytes(weights)))
        self.version = version

    def make(self, ask: RolloutRequest) -> Group:
        """The group that was asked for. Raises PipelineError naming a clip that cannot be read."""
        if ask.version != self.version:
            raise ValueError(f"asked for version {ask.version}, the weights here are of version {self.version}")
        config, began = self.config, time.perf_counter()
        batch = self.reader.read([ask.id], ask.epoch)
        read = time.perf_counter()
        clip, vocabulary = batch.keys[0], self.policy.vocabulary
        random = group_generator(config.loader.seed, ask.epoch, ask.id)
        stored = self._stored_targets(clip, batch.targets[0]) if batch.targets else None
        at = draw_frames(
            random, batch.frames.shape[1] if stored is None else stored.at.tolist(), config.objective.frames
        )
        threshold = self._threshold(random)
        heat = temperature(config.sample, ask.step, self.steps)
        frames = batch.frames[:, : at[-1] + 1].to(self.device)
        seeds = [seed_of(config.loader.seed, ask.epoch, ask.id, member) for member in range(config.sample.group)]

        with torch.inference_mode():
            encoded = self.policy.encode(frames)
        limits: dict[str, Any] = {"max_ratio": config.max_ratio, "loss_threshold": threshold}
        if config.sample.strategy == "self":
            extra = seed_of(config.loader.seed, ask.epoch, ask.id, -1)
            first = self.policy.rollout(encoded, self._sampling(heat, [extra]), **limits)
            limits = {"slots": first.gaze.lengths[0].tolist()}
        rollout = self.policy.rollout(
            Encoded(encoded.tokens).repeat(len(seeds)),
            self._sampling(heat, seeds),
            **limits,
        )
        gazed = time.perf_counter()
        padded = rollout.gaze.padded()
        errors = self._errors(frames, rollout.gaze, at, stored)
        spent = np.diff([began, read, gazed, time.perf_counter()])
        return Group(
            ask=ask,
            clip=clip,
            temperature=heat,
            threshold=float("nan") if threshold is None else threshold,
            at=np.array(at, np.int64),
            seeds=np.array(seeds, np.int64),
            slots=padded["num_gazing_each_frame"].numpy(),
            drawn=rollout.drawn.numpy().astype(np.int16 if vocabulary.size < 1 << 15 else np.int32),
            used=~padded["if_padded_gazing"].numpy(),
            log_probs=rollout.log_probs.numpy(),
            errors=errors.numpy(),
            seconds=spent,
        )

    def close(self) -> None:
        self.reader.close()

    def _sampling(self, heat: float, seeds: list[int]) -> Sampling:
        return Sampling(heat, self.config.sample.top_k or None, seeds)

    def _threshold(self, random: np.random.Generator) -> float | None:
        sample = self.config.sample
        if sample.strategy == "ratio":
            return None
        if sample.min_threshold is not None and sample.max_threshold is not None:
            return float(np.float32(random.uniform(sample.min_threshold, sample.max_threshold)))
        return self.threshold

    def _errors(self, clip: torch.Tensor, gaze: Gaze, at: list[int], stored: Targets | None) -> torch.Tensor:
        """Errors float32 [G, F] of a gaze of G at the one clip [1, T', S, S, 3]. Its targets are had once."""
        frames = clip.expand(gaze.clips, *clip.shape[1:])
        if not isinstance(self.reconstructor, VideoMAE):
            return self.reconstructor.reconstruct(frames, gaze, at).error.cpu()
        targets = None
        if stored is not None:
            targets = [features.to(self.device) for features in stored.for_frames(at)]
        elif self.teachers is not None:
            targets = self.teachers.targets(self.reconstructor.normalised(clip[0, at]).float())
        return self.reconstructor.reconstruct(frames, gaze, at, targets).error.cpu()

    def _stored_targets(self, clip: str, data: bytes) -> Targets:
        assert self.teachers is not None
        try:
            targets = Targets.from_npz(data)
            targets.require(self.teachers)
        except ValueError as error:
            raise PipelineError(f"{clip}: {error}") from error
        return targets


def _reader_config(config: RLConfig) -> LoaderConfig:
    """How one clip at a time is read by its key."""
    loader = config.loader
    return LoaderConfig(
        data=[url for url in config.data.split(",") if url],
        seed=loader.seed,
        window=loader.window,
        global_batch=1,
        workers=0,
        cache_mb=loader.cache_mb,
        val_fraction=loader.val_fraction,
    )


def seed_of(run: int, epoch: int, clip: int, member: int) -> int:
    """The seed of a member (from 0; -1: the sample that lengths come from) of a clip's group: an int64."""
    told = hashlib.sha256(f"{run} {epoch} {clip} {member}".encode()).digest()
    return int.from_bytes(told[:8], "big", signed=True)


def group_generator(run: int, epoch: int, clip: int) -> np.random.Generator:
    """What else is drawn for a group: the same for all its members."""
    told = hashlib.sha256(f"{run} {epoch} {clip} group".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(told[:16], "big")))


def draw_frames(random: np.random.Generator, among: int | list[int], count: int) -> list[int]:
    """So many frame numbers, rising, among all or among those that have targets."""
    numbers = np.arange(among) if isinstance(among, int) else np.array(among)
    keys = random.random(len(numbers))
    return sorted(numbers[np.argsort(keys, kind="stable")[:count]].tolist())
