"""The second actor of preprocess: a decoded shard -> gazed, packed and committed; and what it gazes with.

Frames cross one process boundary, as uint8 at model resolution; what leaves is a row of counts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from pipelines import shards, store
from pipelines.errors import PipelineError
from pipelines.frames import encode_frames
from pipelines.plan import PlanReader
from pipelines.policy import UNITS, PolicyConfig, load_policy
from pipelines.preprocess_config import PreprocessConfig
from pipelines.shards import Outcome
from pipelines.stopwatch import Stopwatch

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

CANVAS_THRESHOLD, CANVAS_MAX_RATIO = 0.05, 0.75
Gazes: TypeAlias = Callable[[np.ndarray], list[Gaze]]
"""Frames uint8 [B, T, S, S, 3] -> the gaze of each clip, on the CPU."""


@dataclass(frozen=True)
class Gazer:
    """What gazes and until when, with every default resolved: what an actor is given and dataset.json records.

    Attributes:
        name: canvas or policy.
        threshold: in `units`.
        model: fingerprint of the canvas; of a policy everything that its gaze depends on.
    """

    name: str
    threshold: float
    max_ratio: float
    units: str
    model: str | dict[str, Any]
    policy: PolicyConfig


def settle(config: PreprocessConfig) -> Gazer:
    """The gazer of a (checked) config. A policy is loaded for it, on the CPU.

    Raises PipelineError: the checkpoint does not load, or has no default for a limit that was not given.
    """
    if config.gaze == "canvas":
        canvas = reconstruction.load("canvas")
        units, model = canvas.units, canvas.fingerprint
        defaults: dict[str, float | None] = {"threshold": CANVAS_THRESHOLD, "max_ratio": CANVAS_MAX_RATIO}
        return Gazer("canvas", *_limits(config, defaults), units, model, config.policy)
    policy = load_policy(replace(config.policy, cuda_graphs="auto"), "cpu")
    if policy.vocabulary != VOCABULARY:
        raise PipelineError(
            f"policy.checkpoint={config.policy.checkpoint}: has scales {policy.vocabulary.scales}, and preprocess "
            f"makes frames for {VOCABULARY.scales}"
        )
    defaults = {"threshold": policy.config.loss_threshold, "max_ratio": policy.config.max_ratio}
    return Gazer("policy", *_limits(config, defaults), UNITS, _facts(policy, config.policy), config.policy)


def _limits(config: PreprocessConfig, defaults: dict[str, float | None]) -> tuple[float, float]:
    found = []
    for name in ("threshold", "max_ratio"):
        value = getattr(config, name) if getattr(config, name) is not None else defaults[name]
        if value is None:
            raise PipelineError(f"{name}= is missing: this checkpoint has no default for it; give {name}=")
        found.append(float(value))
    return found[0], found[1]


def _facts(policy: AutoGaze, config: PolicyConfig) -> dict[str, Any]:
    """All that the bytes of a policy's gaze depend on."""
    return {
        "fingerprint": policy.fingerprint,
        "positions": policy.positions,
        "dtype": config.dtype,
        "block_size": policy.config.block_size,
        # The tokens do not depend on it in float32, but the last digits of the losses do: matrices of other shapes are
        # summed up in another order.
        "batch": config.batch,
    }


def start(gazer: Gazer, device: str) -> Gazes:
    """Load what gazes onto a device: cpu, cuda or mps.

    Raises PipelineError when the checkpoint does not load here, or is another than the dataset was begun with.
    """
    if gazer.name == "canvas":
        reconstructor = reconstruction.load("canvas")

        def canvas(frames: np.ndarray) -> list[Gaze]:
            clips = reconstruction.as_clips(frames, VOCABULARY).to(device)
            return _each(greedy.label(clips, reconstructor, threshold=gazer.threshold, max_ratio=gazer.max_ratio))

        return canvas
    policy = load_policy(gazer.policy, device)
    if _facts(policy, gazer.policy) != gazer.model:
        raise PipelineError(
            f"policy.checkpoint={gazer.policy.checkpoint}: its weights changed while the job ran, or differ between "
            "nodes; put the same checkpoint on every node"
        )

    def network(frames: np.ndarray) -> list[Gaze]:
        parts = (frames[at : at + gazer.policy.batch] for at in range(0, len(frames), gazer.policy.batch))
        gazes = (policy.gaze(part, max_ratio=gazer.max_ratio, loss_threshold=gazer.threshold) for part in parts)
        return [clip for gaze in gazes for clip in _each(gaze)]

    return network


def _each(gaze: Gaze) -> list[Gaze]:
    """The gaze of each clip as it would be alone: unused slots are a clip's own matter, not its batch's."""
    clips = [gaze[b] for b in range(gaze.clips)]
    return [clip if _has_holes(clip) else replace(clip, places=None, slots=None) for clip in clips]


def _has_holes(clip: Gaze) -> bool:
    return clip.slots is not None and not torch.equal(clip.slots, clip.lengths)


class GazeStage:
    """Ray Data actor: a decoded shard -> gazed, packed and committed; what is left is a row of counts."""

    def __init__(self, dataset: str, gazer: Gazer, storage: str, device: str) -> None:
        torch.set_num_threads(1)  # one CPU was asked of Ray
        self.dataset, self.threshold, self.storage = dataset, gazer.threshold, storage
        self.gaze = start(gazer, device)
        self.plan = PlanReader(store.join(dataset, "plan.parquet"))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        watch, shard = Stopwatch(json.loads(row["decode_seconds"])), int(row["shard"])
        with watch.time("gaze"):
            rows = self.plan.shard(shard)
            with watch.time("search"):
                outcomes = self._outcomes(row)
            with watch.time("write"):
                tar, index = shards.build_shard(rows, outcomes, self.threshold)
                shards.commit_shard(self.dataset, shard, tar, index)
        gazes = [outcome.gaze for outcome in outcomes if outcome.gaze is not None]
        return {
            "shard": shard,
            "clips": len(rows),
            "ok": len(gazes),
            "frames": sum(gaze.num_frames for gaze in gazes),
            "tokens": sum(int(gaze.counts()[0]) for gaze in gazes),
            "loss": float(sum(float(gaze.final().mean()) for gaze in gazes)),
            "met": float(sum(float(gaze.met(self.threshold).float().mean()) for gaze in gazes)),
            "failed": json.dumps(Counter(str(outcome.reason) for outcome in outcomes if outcome.gaze is None)),
            "restarts": int(row["restarts"]),
            "seconds": json.dumps(watch),
            "began": float(row["began"]),
            "ended": time.time(),
        }

    def _outcomes(self, row: dict[str, Any]) -> list[Outcome]:
        frames, ok = row["frames"], np.asarray(row["ok"])
        failures = {int(number): reason for number, reason in json.loads(row["failures"]).items()}
        gazes = self.gaze(frames if ok.all() else frames[ok]) if ok.any() else []
        ends = np.concatenate([[0], np.cumsum(row["encoded_sizes"])])
        blob, per_clip, taken = np.asarray(row["encoded"]), frames.shape[1], 0
        digits = max(2, len(str(per_clip - 1)))
        outcomes: list[Outcome] = []
        for number in range(len(ok)):
            if not ok[number]:
                reason, detail = failures[number]
                outcomes.append(Outcome(reason=reason, detail=detail))
                continue
            if self.storage == "jpeg":
                span = range(taken * per_clip, (taken + 1) * per_clip)
                members = [(f"{i:0{digits}d}.jpg", blob[ends[j] : ends[j + 1]].tobytes()) for i, j in enumerate(span)]
            else:
                members = encode_frames(frames[number], self.storage, 0)
            outcomes.append(Outcome(gaze=gazes[taken], members=members))
            taken += 1
        return outcomes
