"""The errors of a verified gaze, measured again on the frames that are stored: its certificate holds.

Canvas counts in whole numbers, so its errors are the same bits anywhere. Those of a learned reconstructor are the same
bits on machines of one kind; on others their last digits differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import ReconstructorConfig, TeachersConfig, load_reconstructor

if TYPE_CHECKING:
    from autogaze.gaze import Gaze
    from autogaze.reconstruction.base import Reconstructor

_CLOSE = {"float32": 1e-4, "bfloat16": 3e-2}  # how far a learned reconstructor's error may be off, as a share of it


def not_measurable(dataset: Dataset, checkpoint: str = "") -> str:
    """Why the errors of a dataset cannot be measured again; '' where they can: verified, frames stored.

    checkpoint: the learned reconstructor that is given to measure with.
    """
    if not dataset.verified:
        return "its gaze is not one of verify=true"
    by_canvas = "canvas" in _models(dataset)
    if not by_canvas and not checkpoint:
        return "a learned reconstructor verified it, and reconstructor.checkpoint= names none"
    if by_canvas and checkpoint:
        return "canvas verified it, and reconstructor.checkpoint= names another"
    return "" if dataset.frames_stored else "it stores no frames"


def measurer_of(dataset: Dataset, config: ReconstructorConfig, teachers: TeachersConfig) -> Reconstructor:
    """What verified a dataset. Raises PipelineError: it is another, or does not load."""
    from autogaze import reconstruction  # here, not above: a place that is no dataset is refused without torch

    models = _models(dataset)
    if not config.checkpoint:
        canvas = reconstruction.load("canvas", dataset.vocabulary)
        _require_same(dataset, "canvas", models["canvas"], canvas.fingerprint)
        return canvas
    stated = next(models[name] for name in models if name in ("refiner", "videomae"))
    learned = load_reconstructor(replace(config, dtype=stated["dtype"]), teachers, "cpu")
    _require_same(dataset, f"reconstructor.checkpoint={config.checkpoint}", stated["fingerprint"], learned.fingerprint)
    return learned


def check_errors(dataset: Dataset, gaze: Gaze, frames: np.ndarray, reconstructor: Reconstructor) -> list[str]:
    """What is wrong with the errors of one clip. frames: uint8 [T, S, S, 3], as stored."""
    from autogaze.measuring import measure_errors

    if gaze.losses is None or gaze.initial is None:
        return ["has no errors, which verify=true stores"]
    again = measure_errors(frames[None], gaze, reconstructor)
    assert again.losses is not None and again.initial is not None
    far = 0.0 if reconstructor.name == "canvas" else _CLOSE[_models(dataset)[reconstructor.name]["dtype"]]
    lengths = gaze.lengths[0].tolist()
    parts = (gaze.initial[0], gaze.losses.split(lengths), again.initial[0], again.losses.split(lengths))
    for t, (before, after, measured_before, measured_after) in enumerate(zip(*parts, strict=True)):
        stored = np.append(before.numpy(), after.numpy())
        measured = np.append(measured_before.numpy(), measured_after.numpy())
        if not (np.abs(stored - measured) <= far * np.abs(measured)).all():  # also where one is no number
            end, found = float(gaze.final()[0, t]), float(again.final()[0, t])
            return [f"errors are not those of its frames: frame {t} ends with {end:.6f}, measured again {found:.6f}"]
    return []


def _models(dataset: Dataset) -> dict[str, Any]:
    return dataset.about.get("models") or {}


def _require_same(dataset: Dataset, given: str, stated: str, fingerprint: str) -> None:
    if stated != fingerprint:
        raise PipelineError(
            f"errors=true: {given} has the fingerprint {fingerprint}, and {dataset.url} was verified by {stated}; give "
            "the one that verified it"
        )
