"""What gazes: greedy search on canvas or with the learned reconstructor, or a policy, verified or not.

`resolve` fills in every default, so that a dataset can say what it is made with and an actor knows what to load; `load`
makes a gaze ready on a device. A corpus and a single video are gazed by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from autogaze import greedy, reconstruction, verified
from autogaze.gaze import Gaze
from autogaze.lengths import paper_lengths
from autogaze.model import AutoGaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction import base
from autogaze.reconstruction.base import Reconstructor
from autogaze.reconstruction.learned import Learned
from pipelines.errors import PipelineError
from pipelines.gazing.calibration import Calibration, read_calibration, require_fits
from pipelines.gazing.policy import UNITS, PolicyConfig, load_policy
from pipelines.gazing.reconstructor import LabelsConfig, load_reconstructor
from pipelines.gazing.settings import GazeSettings

CANVAS_THRESHOLD, CANVAS_MAX_RATIO = 0.02, 0.75  # docs/decisions.md says why
_SEARCHED_TOGETHER = 16  # clips of a learned reconstructor on a GPU; each holds some 50 MB of keys and values


@dataclass(frozen=True)
class ResolvedGaze:
    """A gaze with every default resolved: what an actor is given and dataset.json records.

    Attributes:
        settings: with the limits in force; a limit that neither the user nor the checkpoint gives is None, no limit.
        units: of the threshold and the errors, in words.
        models: all of the networks that the gaze, and targets, depend on; by name, as dataset.json has them.
        vocabulary: the patches it knows.
        max_frames: the longest clip it takes; None: any.
        targets: frames of each clip whose targets are stored.
        calibration: of a policy; it says where each frame stops, and threshold is what was measured.
    """

    settings: GazeSettings
    units: str
    models: dict[str, Any]
    vocabulary: PatchVocabulary
    max_frames: int | None
    targets: int = field(default=0, kw_only=True)
    calibration: Calibration | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        return self.settings.gaze

    @property
    def threshold(self) -> float | None:
        return self.settings.threshold

    @property
    def max_ratio(self) -> float | None:
        return self.settings.max_ratio

    @property
    def bound(self) -> float:
        """The threshold as a number that can be compared with: infinite where there is none."""
        return math.inf if self.threshold is None else self.threshold

    @property
    def stops(self) -> float | tuple[float, ...]:
        """What the errors of a gaze end at or under: the threshold (`bound`), or a number for each frame of a clip."""
        return self.bound if self.calibration is None or self.settings.verify else self.calibration.stops

    @property
    def measure(self) -> str:
        """What the errors are, in words: of a policy, unless it is verified, losses that it predicts."""
        return "error" if self.settings.measured else "predicted loss"

    @property
    def limits(self) -> str:
        """'threshold 0.05, max_ratio 0.75', those there are."""
        named = (("threshold", self.threshold), ("max_ratio", self.max_ratio))
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)

    def require(self, frames: int) -> None:
        """Raise PipelineError if clips of this many frames are too long."""
        if self.max_frames is not None and frames > self.max_frames:
            raise PipelineError(f"clip.frames={frames}: this reconstructor takes {self.max_frames} frames at most")

    def require_clips(self, clip: Mapping[str, Any]) -> None:
        """As `require`, of clips cut by these settings (the keys of clip.*): a calibration is of one kind of clips."""
        self.require(clip["frames"])
        if self.calibration is not None:
            self.calibration.require_clips(clip)


class _Gazes(Protocol):
    def __call__(self, clips: np.ndarray, names: Sequence[str] = ()) -> Gaze: ...


@dataclass(frozen=True)
class Gazer(ResolvedGaze):
    """A gaze that is ready on a device.

    Attributes:
        gaze: uint8 clips [B, T, S, S, 3] to their gaze, with the error after each token; S is vocabulary.frame_size.
            names: of the clips, which drawn lengths depend on.
        batch: whoever gazes at many clips calls with so many at a time, fewer at the end: a network's last digits may
            depend on it.
        reconstructor: the learned one, where the settings need it.
        about: what it is, one line.
        note: what pictures of it need to have said, "" for nothing.
        record: what the labels of one video say of it beside limits and units.
    """

    gaze: _Gazes
    batch: int
    reconstructor: Learned | None
    about: str
    note: str
    record: dict[str, Any]


def resolve(settings: GazeSettings, targets: int = 0) -> ResolvedGaze:
    """Resolve every default of checked settings (`check_gaze`), which loads what they name, on the CPU.

    targets: frames of each clip whose targets are stored.

    Raises PipelineError: a checkpoint does not load, has no limit where none is given, or no teachers for targets.
    """
    # The CPU has no CUDA graphs, whatever is asked of the device that will gaze.
    gazer = load(replace(settings, policy=replace(settings.policy, cuda_graphs="auto")), "cpu", targets)
    resolved = {each.name: getattr(gazer, each.name) for each in fields(ResolvedGaze)}
    return replace(ResolvedGaze(**resolved), settings=replace(gazer.settings, policy=settings.policy))


def start(resolved: ResolvedGaze, device: str) -> Gazer:
    """The same gaze on a device: cpu, cuda or mps.

    Raises PipelineError when a checkpoint does not load here, or is another than the dataset was begun with.
    """
    gazer = load(resolved.settings, device, resolved.targets)
    if gazer.models != resolved.models:
        policy, learned = resolved.settings.policy.checkpoint, resolved.settings.reconstructor.checkpoint
        key = f"policy.checkpoint={policy}" if resolved.name == "policy" else f"reconstructor.checkpoint={learned}"
        raise PipelineError(
            f"{key}: its weights changed while the job ran, or differ between nodes; put the same checkpoint on "
            "every node"
        )
    return gazer


def load(settings: GazeSettings, device: str, targets: int = 0) -> Gazer:
    """The gaze of checked settings (`check_gaze`), ready on a device: cpu, cuda or mps. Raises as `resolve` does."""
    learned = None
    if settings.by_learned or targets or (settings.verify and settings.reconstructor.checkpoint):
        learned = load_reconstructor(settings.reconstructor, settings.teachers, device)
    if settings.gaze == "policy":
        gazer = _verified(settings, device, learned) if settings.verify else _policy(settings, device)
    elif settings.gaze == "canvas":
        gazer = _canvas(settings, device)
    else:
        assert learned is not None
        gazer = _learned(settings, device, learned)
    if not targets or learned is None:
        return gazer
    loss = learned.frame_loss
    if not loss.names:
        raise PipelineError(
            f"targets.frames={targets}: {settings.reconstructor.checkpoint} was trained without teachers "
            f"({learned.config.loss_type}), so there is nothing to store; leave it out"
        )
    stored = {"fingerprint": loss.targets_fingerprint, "teachers": loss.names}
    return replace(gazer, models=gazer.models | {"targets": stored}, reconstructor=learned, targets=targets)


def device_of(name: str) -> str:
    """cpu, cuda or mps for a `device` setting. Raises PipelineError if this machine has none."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise PipelineError(f"device={name}: torch finds none on this machine; use device=cpu")
    return name


def _canvas(settings: GazeSettings, device: str) -> Gazer:
    canvas = reconstruction.load("canvas")
    if not settings.draws_lengths:
        settings = _with_defaults(settings, CANVAS_THRESHOLD, CANVAS_MAX_RATIO)
    return Gazer(
        settings=settings,
        units=canvas.units,
        models={"canvas": canvas.fingerprint},
        vocabulary=VOCABULARY,
        max_frames=None,
        gaze=_greedy(settings, canvas, device),
        batch=16 if device == "cpu" else 64,  # the same for any number; with fewer, Python takes most of the time
        reconstructor=None,
        about=f"canvas on {device}",
        note="",
        record={"gaze": "canvas"},
    )


def _learned(settings: GazeSettings, device: str, learned: Learned) -> Gazer:
    config, labels, kind, fingerprint = settings.reconstructor, settings.labels, learned.name, learned.fingerprint
    if settings.gaze not in (kind, "learned"):
        raise PipelineError(f"reconstructor.checkpoint={config.checkpoint}: is a {kind}; use gaze=learned")
    search = _greedy(settings, learned, device)

    # On a CPU one by one: a search holds what it knows of every frame, and clips gain nothing from each other.
    together = _SEARCHED_TOGETHER if learned.wide else 1
    facts = {"fingerprint": fingerprint, "dtype": config.dtype} | ({"batch": together} if learned.wide else {})

    def gaze(clips: np.ndarray, names: Sequence[str] = ()) -> Gaze:
        parts = (slice(first, first + together) for first in range(0, len(clips), together))
        return Gaze.cat([search(clips[part], names[part]) for part in parts])

    name = Path(config.checkpoint).name
    mark = fingerprint.removeprefix(f"{kind}-")[:12]
    return Gazer(
        settings=settings,
        units=learned.units,
        models={kind: facts},
        vocabulary=learned.vocabulary,
        max_frames=learned.max_frames,
        gaze=gaze,
        batch=together,
        reconstructor=learned,
        about=f"{kind} {name} ({mark}), {config.dtype} on {device}, {how_searched(labels)}",
        note=f"{kind} {name}: error = its loss, reconstruction = its patches on canvas",
        record={
            "gaze": settings.gaze,
            "checkpoint": config.checkpoint,
            "fingerprint": fingerprint,
            "dtype": config.dtype,
            "device": device,
            "candidates": labels.candidates,
            "step": labels.step,
        },
    )


def how_searched(labels: LabelsConfig) -> str:
    """In words, which patches greedy search tries, and when."""
    tried = f"the {labels.candidates} patches best on canvas tried" if labels.candidates else "every patch tried"
    return tried + (f" once for {labels.step} taken" if labels.step > 1 else "")


def _greedy(settings: GazeSettings, reconstructor: Reconstructor, device: str) -> _Gazes:
    labels, vocabulary, drawn = settings.labels, reconstructor.vocabulary, settings.draws_lengths

    def gaze(clips: np.ndarray, names: Sequence[str] = ()) -> Gaze:
        frames = base.as_clips(clips, vocabulary).to(device)
        lengths = paper_lengths(names, frames.shape[1], vocabulary, seed=labels.seed) if drawn else None
        return greedy.label(
            frames,
            reconstructor,
            threshold=settings.threshold,
            max_ratio=1.0 if settings.max_ratio is None else settings.max_ratio,
            lengths=lengths,
            exact=not labels.candidates and labels.step == 1,
            candidates=labels.candidates or None,
            step=labels.step,
        )

    return gaze


def _policy(settings: GazeSettings, device: str) -> Gazer:
    config = settings.policy
    model = load_policy(config, device)
    calibration = _calibration(settings, model)
    if calibration is not None:
        settings = replace(settings, threshold=calibration.threshold, max_ratio=calibration.max_ratio)
    else:
        settings = _with_defaults(settings, model.config.loss_threshold, model.config.max_ratio)
    if settings.threshold is None and settings.max_ratio is None:
        raise PipelineError(
            f"policy.checkpoint={config.checkpoint}: names no limits of its own; give threshold= or max_ratio="
        )

    def gaze(clips: np.ndarray, names: Sequence[str] = ()) -> Gaze:
        parts = (clips[first : first + config.batch] for first in range(0, len(clips), config.batch))
        # The last clip of a video may be shorter than those that calibrated it.
        stops = settings.threshold if calibration is None else calibration.stops[: clips.shape[1]]
        return Gaze.cat([model.gaze(part, max_ratio=settings.max_ratio, loss_threshold=stops) for part in parts])

    name = Path(config.checkpoint).name or config.checkpoint
    return Gazer(
        settings=settings,
        units=UNITS,
        models={"policy": _facts(model, config)}
        | ({} if calibration is None else {"calibration": calibration.facts()}),
        vocabulary=model.vocabulary,
        max_frames=None,
        gaze=gaze,
        batch=config.batch,
        reconstructor=None,
        about=f"policy {name} ({model.fingerprint[:12]}), {model.positions} positions, {config.dtype} on {device}",
        note=f"policy {name}: error = its predicted loss, reconstruction = its patches on canvas",
        record={
            "gaze": "policy",
            "checkpoint": config.checkpoint,
            "fingerprint": model.fingerprint,
            "positions": model.positions,
            "dtype": config.dtype,
            "device": device,
        }
        | ({} if calibration is None else {"calibration": calibration.facts()}),
        calibration=calibration,
    )


def _verified(settings: GazeSettings, device: str, learned: Learned | None) -> Gazer:
    """A policy whose gaze is measured: by the learned reconstructor where there is one, else by canvas."""
    config, labels = settings.policy, settings.labels
    model = load_policy(config, device)
    measurer: Reconstructor = reconstruction.load("canvas") if learned is None else learned
    calibration = _calibration(settings, model)
    if calibration is not None:
        if calibration.reconstructor["fingerprint"] != measurer.fingerprint:
            raise PipelineError(
                f"calibration={settings.calibration}: its threshold is measured in {calibration.units}, verify=true "
                f"measures in {measurer.units}; verify by the reconstructor that calibrated, or leave one of them out"
            )
        settings = replace(settings, threshold=calibration.threshold, max_ratio=calibration.max_ratio)
    elif learned is None:
        settings = _with_defaults(settings, CANVAS_THRESHOLD, CANVAS_MAX_RATIO)
    threshold, max_ratio = settings.threshold, 1.0 if settings.max_ratio is None else settings.max_ratio
    assert threshold is not None
    if model.vocabulary != measurer.vocabulary:
        raise PipelineError(
            f"verify=true: policy.checkpoint={config.checkpoint} chooses from {model.vocabulary}, and "
            f"{measurer.name} measures {measurer.vocabulary}"
        )
    # On a CPU one by one, so that the bytes are the same for any policy.batch: matrices of other shapes are summed up
    # in another order. The learned search takes clips one by one anyway.
    at_once = 1 if device == "cpu" or learned is not None else config.batch

    def gaze(clips: np.ndarray, names: Sequence[str] = ()) -> Gaze:
        frames = base.as_clips(clips, model.vocabulary).to(device)
        return Gaze.cat(
            [
                verified.gaze(
                    part,
                    model,
                    measurer,
                    threshold=threshold,
                    max_ratio=max_ratio,
                    stops=None if calibration is None else calibration.stops[: frames.shape[1]],
                    go_on=0 if learned is None else 1,  # docs/decisions.md says why
                    candidates=labels.candidates or None,
                )
                for part in frames.split(at_once)
            ]
        )

    name = Path(config.checkpoint).name or config.checkpoint
    by = "canvas" if learned is None else f"{learned.name} {Path(settings.reconstructor.checkpoint).name}"
    facts: dict[str, Any] = {"fingerprint": measurer.fingerprint}
    if learned is not None:
        facts["dtype"] = settings.reconstructor.dtype
    models = {"policy": _facts(model, config), measurer.name: measurer.fingerprint if learned is None else facts}
    calibrated = {} if calibration is None else {"calibration": calibration.facts()}
    return Gazer(
        settings=settings,
        units=measurer.units,
        models=models | calibrated,
        vocabulary=model.vocabulary,
        max_frames=None if learned is None else learned.max_frames,
        gaze=gaze,
        batch=at_once,
        reconstructor=learned,
        about=f"policy {name} ({model.fingerprint[:12]}) verified by {by}, {config.dtype} on {device}",
        note=f"policy {name}, verified: error = as {by} measures it, reconstruction = its patches on canvas",
        record={
            "gaze": "policy",
            "verify": True,
            "checkpoint": config.checkpoint,
            "fingerprint": model.fingerprint,
            "positions": model.positions,
            "dtype": config.dtype,
            "device": device,
            "reconstructor": {"name": measurer.name} | facts,
        }
        | calibrated,
        calibration=calibration,
    )


def _calibration(settings: GazeSettings, model: AutoGaze) -> Calibration | None:
    """The calibration that the settings name. Raises PipelineError: there is none, or it is of something else."""
    if not settings.calibration:
        return None
    config = settings.policy
    found = read_calibration(settings.calibration, config.checkpoint)
    require_fits(
        found,
        settings.calibration,
        fingerprint=model.fingerprint,
        dtype=config.dtype,
        threshold=settings.threshold,
        max_ratio=settings.max_ratio,
    )
    return found


def _facts(model: AutoGaze, config: PolicyConfig) -> dict[str, Any]:
    """All that the bytes of a policy's gaze depend on."""
    return {
        "fingerprint": model.fingerprint,
        "positions": model.positions,
        "dtype": config.dtype,
        "block_size": model.config.block_size,
        # The tokens do not depend on it in float32, but the last digits of the losses do: matrices of other shapes are
        # summed up in another order.
        "batch": config.batch,
    }


def _with_defaults(settings: GazeSettings, threshold: float | None, max_ratio: float | None) -> GazeSettings:
    return replace(
        settings,
        threshold=threshold if settings.threshold is None else settings.threshold,
        max_ratio=max_ratio if settings.max_ratio is None else settings.max_ratio,
    )
