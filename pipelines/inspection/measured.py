"""The errors of a verified gaze, measured again on the frames that are stored: its certificate holds, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipelines.dataset.shards import Dataset

if TYPE_CHECKING:
    from autogaze.gaze import Gaze


def not_measurable(dataset: Dataset) -> str:
    """Why the errors of a dataset cannot be measured again; '' where they can: verified by canvas, frames stored."""
    if not dataset.verified:
        return "its gaze is not one of verify=true"
    if "canvas" not in (dataset.about.get("models") or {}):
        return "a learned reconstructor verified it"
    return "" if dataset.frames_stored else "it stores no frames"


def check_errors(dataset: Dataset, gaze: Gaze, frames: np.ndarray) -> list[str]:
    """What is wrong with the errors of one clip. frames: uint8 [T, S, S, 3], as stored."""
    import torch  # here, not above: a place that is no dataset is refused without torch

    from autogaze import reconstruction
    from autogaze.measuring import measure_errors

    if gaze.losses is None or gaze.initial is None:
        return ["has no errors, which verify=true stores"]
    canvas = reconstruction.load("canvas", dataset.vocabulary)
    stated = dataset.about["models"]["canvas"]
    if stated != canvas.fingerprint:
        return [f"was verified by the canvas {stated}, this version measures with {canvas.fingerprint}"]
    again = measure_errors(frames[None], gaze, canvas)
    assert again.losses is not None and again.initial is not None
    lengths = gaze.lengths[0].tolist()
    parts = (gaze.initial[0], gaze.losses.split(lengths), again.initial[0], again.losses.split(lengths))
    for t, (before, after, measured_before, measured_after) in enumerate(zip(*parts, strict=True)):
        if not (torch.equal(before, measured_before) and torch.equal(after, measured_after)):
            end, measured = float(gaze.final()[0, t]), float(again.final()[0, t])
            return [f"errors are not those of its frames: frame {t} ends with {end:.6f}, measured again {measured:.6f}"]
    return []
