"""Augmentation of clips: anew in every epoch, and only where what a clip is labelled with stays true.

A mirrored label keeps its patches, and its errors are measured again. A crop has other best patches than the frame that
it was cut from, and so has another part of a video: such a clip loses its stored gaze. Where labels are needed, greedy
search on the canvas, which made them, makes those of the new pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from autogaze import greedy
from autogaze.draws import numbered_generator
from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from autogaze.mirror import mirror_frames, mirror_gaze
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.canvas import Canvas
from pipelines.dataset.shards import open_dataset
from pipelines.dataset.units import units_fit, units_of
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.train.config import AugmentConfig
from pipelines.train.task import RandomKey

_FLIP, _CROP = 1, 2  # what is drawn, after seed, epoch and sample: other draws of a sample use other numbers


@dataclass(frozen=True)
class CanvasLabels:
    """How the canvas labelled the clips of a dataset, to label others in the same way.

    threshold, max_ratio: at which a frame ended. drawn: lengths were drawn beforehand; they are then the stored ones.
    """

    canvas: Canvas
    threshold: float | None
    max_ratio: float
    drawn: bool

    def of(self, clip: Tensor, stored: Gaze) -> Gaze:
        """The labels of one clip uint8 [T, S, S, 3]. stored: those of the clip that it was made from."""
        frames = clip[None].cpu()
        if self.drawn:
            return greedy.label(frames, self.canvas, lengths=stored.lengths)
        return greedy.label(frames, self.canvas, threshold=self.threshold, max_ratio=self.max_ratio)


def augment_batch(config: AugmentConfig, batch: Batch, seed: int, labels: CanvasLabels | None) -> Batch:
    """What a rank learns from: some clips of its batch mirrored, cropped or of other frames, by seed, epoch and sample.

    labels: makes the labels of clips that lose theirs; None: none are needed, and such clips have an empty gaze.
    """
    key = RandomKey(seed, batch.epoch, tuple(batch.ids.tolist()))
    frames, gaze = batch.frames, batch.gaze
    if config.flip:
        frames, gaze = flip_clips(frames, gaze, key, None if labels is None else labels.canvas)
    lost = [config.moves] * len(batch.ids)
    if config.crop < 1:
        sides = [crop_window(key, sample, config.crop, frames.shape[2]) for sample in key.samples]
        frames = torch.stack(
            [clip if one is None else crop_clip(clip, *one) for clip, one in zip(frames, sides, strict=True)]
        )
        lost = [gone or one is not None for gone, one in zip(lost, sides, strict=True)]
    if any(lost):
        gaze = _relabelled(frames, gaze, lost, labels)
    return replace(batch, frames=frames, gaze=gaze)


def _relabelled(frames: Tensor, gaze: Gaze, lost: Sequence[bool], labels: CanvasLabels | None) -> Gaze:
    """The gaze of clips of which some have lost theirs."""
    plain = replace(gaze, origins=None)  # no search that is made here has any
    if labels is not None:
        return Gaze.cat([labels.of(frames[b], plain[b]) if gone else plain[b] for b, gone in enumerate(lost)])
    plain = replace(plain, losses=None, initial=None)
    empty = Gaze.from_lists([[[]] * gaze.num_frames], vocabulary=gaze.vocabulary)
    return Gaze.cat([empty if gone else plain[b] for b, gone in enumerate(lost)])


# -- mirrors ---------------------------------------------------------------------------------------------------------


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


# -- crops -----------------------------------------------------------------------------------------------------------


def crop_window(key: RandomKey, sample: int, least: float, size: int) -> tuple[int, int, int] | None:
    """Top, left and side of the part of its frames that a sample shows in this epoch; None: all, as half of them do.

    least: the smallest side, as a share of `size`, the side of a frame.
    """
    generator = numbered_generator(key.seed, key.epoch, sample, _CROP)
    cropped, share, down, right = generator.random(4)
    if cropped >= 0.5:
        return None
    side = max(1, round((least + share * (1 - least)) * size))
    return int(down * (size - side + 1)), int(right * (size - side + 1)), side


def crop_clip(clip: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square part of all frames of a clip uint8 [T, S, S, 3], enlarged to S (bilinear, rounded)."""
    part = clip[:, top : top + side, left : left + side].movedim(3, 1).float()
    large = interpolate(part, size=clip.shape[1:3], mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8).movedim(1, 3).contiguous()


# -- what labels allow -----------------------------------------------------------------------------------------------


def labels_for(config: AugmentConfig, datasets: Sequence[str], vocabulary: PatchVocabulary) -> CanvasLabels | None:
    """What keeps the labels of datasets true in augmented clips; None where nothing is augmented.

    Raises PipelineError where that could not be done: errors of another reconstructor would have to be measured by it,
    and labels of another search made by it, in every epoch.
    """
    if not config.changes:
        return None
    abouts = {place: open_dataset(place).about for place in datasets}
    for place, about in abouts.items():
        units = units_of(about)
        if config.flip and not units_fit(units, Canvas.units):
            raise PipelineError(
                f"augment.flip=true: the errors of {place} are of another reconstructor than canvas ({units}), which "
                "would have to measure mirrored clips again; leave it out"
            )
    canvas = Canvas(vocabulary)
    if not config.relabels:
        return CanvasLabels(canvas, None, 1.0, False)
    rules = {place: _search_of(about, place, config) for place, about in abouts.items()}
    first = next(iter(rules))
    for place, rule in rules.items():
        if rule != rules[first]:
            raise PipelineError(
                f"{config.named()}: {first} and {place} end their frames differently ({_told(rules[first])}; "
                f"{_told(rule)}), and clips without labels of their own are labelled in one way; leave it out"
            )
    threshold, max_ratio, drawn = rules[first]
    return CanvasLabels(canvas, threshold, max_ratio, drawn)


_Rule = tuple[float | None, float, bool]


def _search_of(about: Mapping[str, Any], place: str, config: AugmentConfig) -> _Rule:
    """Threshold, max_ratio, and whether lengths were drawn, of the canvas' greedy search that labelled a dataset."""
    made = about["config"]
    if made.get("gaze") != "canvas":
        raise PipelineError(
            f"{config.named()}: the labels of {place} are not of gaze=canvas, whose search alone is cheap enough "
            "to be made anew for other pixels; leave it out"
        )
    drawn = (made.get("labels") or {}).get("lengths") == "paper"
    ratio = made.get("max_ratio")
    return made.get("threshold"), 1.0 if ratio is None else float(ratio), drawn


def _told(rule: _Rule) -> str:
    threshold, max_ratio, drawn = rule
    return "lengths were drawn" if drawn else f"threshold={threshold}, max_ratio={max_ratio}"
