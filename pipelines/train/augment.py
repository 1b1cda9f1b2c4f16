"""Augmentation of clips: anew in every epoch, and only where what a clip is labelled with stays true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autogaze.draws import numbered_generator
from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from autogaze.mirror import mirror_frames, mirror_gaze
from autogaze.reconstruction.canvas import Canvas
from pipelines.dataset.shards import open_dataset
from pipelines.dataset.units import units_fit, units_of
from pipelines.errors import PipelineError
from pipelines.train.task import RandomKey

_FLIP = 1  # what is drawn, after seed, epoch and sample: other draws of a sample use other numbers


def flipped_samples(key: RandomKey) -> list[bool]:
    """Which of the samples are seen in a mirror in this epoch: half of them, by seed, epoch and sample alone."""
    return [bool(numbered_generator(key.seed, key.epoch, sample, _FLIP).random() < 0.5) for sample in key.samples]


def flip_clips(frames: Tensor, gaze: Gaze, key: RandomKey, canvas: Canvas | None) -> tuple[Tensor, Gaze]:
    """Clips uint8 [b, T, S, S, 3] and their gaze, some of them mirrored (`flipped_samples`).

    canvas: measures the errors of mirrored gaze again, so that they are true; None: they are not needed.
    """
    chosen = flipped_samples(key)
    if not any(chosen):
        return frames, gaze
    where = torch.tensor(chosen, device=frames.device)[:, None, None, None, None]
    frames = torch.where(where, mirror_frames(frames), frames)
    gazes = []
    for b, flipped in enumerate(chosen):
        one = gaze[b]
        if flipped:
            tokens = mirror_gaze(one)
            measured = measure_errors(frames[b : b + 1].cpu(), tokens, canvas) if canvas is not None else tokens
            one = replace(tokens, losses=measured.losses, initial=measured.initial if one.initial is not None else None)
        gazes.append(one if canvas is not None else replace(one, losses=None, initial=None))
    return frames, Gaze.cat(gazes)


def require_canvas_labels(datasets: Sequence[str]) -> None:
    """Raise PipelineError unless the errors of all datasets are the canvas', which measures them again in no time."""
    for place in datasets:
        units = units_of(open_dataset(place).about)
        if not units_fit(units, Canvas.units):
            raise PipelineError(
                f"augment.flip=true: the errors of {place} are of another reconstructor than canvas ({units}), which "
                "would have to measure mirrored clips again; leave it out"
            )
