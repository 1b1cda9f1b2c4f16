"""What gazes one video, ready to use: canvas or a policy on a device, its limits and units said once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from pipelines.errors import PipelineError
from pipelines.gaze_stage import CANVAS_MAX_RATIO, CANVAS_THRESHOLD
from pipelines.policy import UNITS, PolicyConfig, check_policy_config, load_policy
from pipelines.preprocess_config import DEVICES, GAZES


@dataclass(frozen=True)
class Gazer:
    """What gazes, with every default resolved.

    Attributes:
        gaze: uint8 clips [B, T, S, S, 3] to their gaze, with the error after each token; S is vocabulary.frame_size.
        vocabulary: the patches it knows.
        threshold: error at which it stops a frame; None: no such limit.
        max_ratio: largest share of a frame's patches; None: no such limit.
        units: of the threshold and the errors, in words.
        about: what it is, one line.
        note: what its pictures need to have said, "" for nothing.
        record: what the labels say of it beside that.
    """

    gaze: Callable[[np.ndarray], Gaze]
    vocabulary: PatchVocabulary
    threshold: float | None
    max_ratio: float | None
    units: str
    about: str
    note: str
    record: dict[str, Any]

    @property
    def bound(self) -> float:
        """The threshold as a number that can be compared with: infinite where there is none."""
        return math.inf if self.threshold is None else self.threshold

    @property
    def limits(self) -> str:
        """'threshold 0.05, max_ratio 0.75', those there are."""
        named = (("threshold", self.threshold), ("max_ratio", self.max_ratio))
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)


def check(gaze: str, policy: PolicyConfig, device: str, threshold: float | None, max_ratio: float | None) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    if gaze not in GAZES:
        raise PipelineError(f"gaze={gaze}: must be one of {', '.join(GAZES)}")
    if device not in DEVICES:
        raise PipelineError(f"device={device}: must be one of {', '.join(DEVICES)}")
    if gaze == "policy":
        check_policy_config(policy)
    elif policy != PolicyConfig():
        raise PipelineError(f"policy.* is set, but gaze={gaze} has no policy; add gaze=policy")
    most = math.inf if gaze == "policy" else 1.0  # a predicted loss may be any number
    if threshold is not None and not (0 <= threshold <= most and math.isfinite(threshold)):
        raise PipelineError(
            f"threshold={threshold}: must be " + ("0 or more" if gaze == "policy" else "between 0 and 1")
        )
    if max_ratio is not None and not 0 < max_ratio <= 1:
        raise PipelineError(f"max_ratio={max_ratio}: must be more than 0 and at most 1")


def load(gaze: str, policy: PolicyConfig, device: str, threshold: float | None, max_ratio: float | None) -> Gazer:
    """The gazer of these settings, which `check` has seen; a limit that is None is the gazer's own default.

    Raises PipelineError: the device is not there, the checkpoint does not load or has no limit where none is given.
    """
    device = _device(device)
    if gaze == "policy":
        return _policy(policy, device, threshold, max_ratio)
    canvas = reconstruction.load("canvas")
    limit = CANVAS_THRESHOLD if threshold is None else threshold
    ratio = CANVAS_MAX_RATIO if max_ratio is None else max_ratio

    def label(clips: np.ndarray) -> Gaze:
        frames = reconstruction.as_clips(clips, VOCABULARY).to(device)
        return greedy.label(frames, canvas, threshold=limit, max_ratio=ratio)

    return Gazer(label, VOCABULARY, limit, ratio, canvas.units, f"canvas on {device}", "", {"gaze": "canvas"})


def _policy(config: PolicyConfig, device: str, threshold: float | None, max_ratio: float | None) -> Gazer:
    model = load_policy(config, device)
    threshold = model.config.loss_threshold if threshold is None else threshold
    max_ratio = model.config.max_ratio if max_ratio is None else max_ratio
    if threshold is None and max_ratio is None:
        raise PipelineError(
            f"policy.checkpoint={config.checkpoint}: names no limits of its own; give threshold= or max_ratio="
        )

    def gaze(clips: np.ndarray) -> Gaze:
        parts = [
            model.gaze(clips[first : first + config.batch], max_ratio=max_ratio, loss_threshold=threshold)
            for first in range(0, len(clips), config.batch)
        ]
        return Gaze.cat(parts)

    name = Path(config.checkpoint).name or config.checkpoint
    dtype = str(model.dtype).removeprefix("torch.")
    record = {
        "gaze": "policy",
        "checkpoint": config.checkpoint,
        "fingerprint": model.fingerprint,
        "positions": model.positions,
        "dtype": dtype,
        "device": device,
    }
    about = f"policy {name} ({model.fingerprint[:12]}), {model.positions} positions, {dtype} on {device}"
    note = f"policy {name}: error = its predicted loss, reconstruction = its patches on canvas"
    return Gazer(gaze, model.vocabulary, threshold, max_ratio, UNITS, about, note, record)


def _device(name: str) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise PipelineError(f"device={name}: torch finds none on this machine; use device=cpu")
    return name
