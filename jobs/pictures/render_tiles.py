"""Pictures of the gaze of a tiled video, drawn in the video's own shape: an overlay frame and a contact sheet.

Beside jobs/pictures/render.py, which draws the square that an untiled gaze sees, and with its colours and lettering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from autogaze.patches import PatchVocabulary
from jobs.pictures import render

_LONGEST, _LONGEST_ON_SHEET = 1280, 480  # pixels of a picture's longer side, in the overlay and on the sheet
_NARROWEST = 960  # of an overlay, whose captions need room


@dataclass(frozen=True)
class TiledPicture:
    """A frame on the contact sheet: original, gazed patches and reconstruction, scaled, and the lines under them."""

    panels: tuple[Image.Image, ...]
    lines: Sequence[str]
    met: bool

    @classmethod
    def of(cls, images: Sequence[np.ndarray], lines: Sequence[str], met: bool) -> TiledPicture:
        """From images uint8 [H, W, 3] of the video's size."""
        return cls(tuple(_scaled(image, _LONGEST_ON_SHEET) for image in images), lines, met)


def background(title: str, shape: tuple[int, int], vocabulary: PatchVocabulary) -> Image.Image:
    """What all overlay frames of a video of (height, width) pixels share: the caption bar with title and legend."""
    width, height = _fitted(shape, _LONGEST)
    width = max(width, _NARROWEST)
    image = Image.new("RGB", (width + width % 2, render._BAR_TOP + height + height % 2 + render._BAR_BOTTOM))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, *image.size), fill=render._GROUND)
    legend = render._legend(None, (0, 0), vocabulary, 18)
    render._text(draw, (16, 13), render.fit(title, 20, width - legend - 72), 20)
    render._legend(draw, (width - 16 - legend, 14), vocabulary, 18)
    return image


def overlay_frame(background: Image.Image, gazed: np.ndarray, lines: Sequence[str], met: bool) -> np.ndarray:
    """One frame of the overlay video, uint8 [H, W, 3]: the gazed patches in the picture, and the lines under it."""
    image, panel = background.copy(), _scaled(gazed, _LONGEST)
    image.paste(panel, ((image.width - panel.width) // 2, render._BAR_TOP))
    draw, y = ImageDraw.Draw(image), image.height - render._BAR_BOTTOM + 10
    places = [(16, "left"), (image.width // 2, "middle"), (image.width - 16, "right")]
    for (x, side), line in zip(places, lines, strict=True):
        room = render.text_width(line, 18)
        alarm = side == "right" and not met
        x -= {"left": 0, "middle": room // 2, "right": room}[side]
        render._text(draw, (x, y), line, 18, render._ALARM if alarm else render._QUIET)
    return np.asarray(image)


def contact_sheet(pictures: Sequence[TiledPicture], title: str, facts: str, vocabulary: PatchVocabulary) -> Image.Image:
    """Original, gazed patches and reconstruction of one or more frames: a frame per column, a kind per row."""
    margin, gap = render._MARGIN, render._GAP
    wide, high = pictures[0].panels[0].size
    step = max(wide, 300)  # the lines under a picture need room
    left, top = margin + render._LABELS, margin + 84
    width = max(left + len(pictures) * (step + gap) - gap + margin, 1200)
    sheet = Image.new("RGB", (width, top + 3 * (high + gap) + 74 + margin), render._GROUND)
    draw = ImageDraw.Draw(sheet)
    render._text(draw, (margin, margin), render.fit(title, 28, width - 2 * margin), 28)
    legend = render._legend(None, (0, 0), vocabulary, 18)
    render._text(
        draw, (margin, margin + 42), render.fit(facts, 18, width - 2 * margin - legend - 40), 18, render._QUIET
    )
    render._legend(draw, (width - margin - legend, margin + 42), vocabulary, 18)
    for row, label in enumerate(("original", "gazed patches", "reconstruction")):
        render._text(draw, (margin, top + row * (high + gap) + 2), label, 20)
    for column, picture in enumerate(pictures):
        x = left + column * (step + gap)
        for row, panel in enumerate(picture.panels):
            sheet.paste(panel, (x, top + row * (high + gap)))
        y = top + 3 * (high + gap) + 2
        colours = (render._QUIET, render._TEXT, render._TEXT if picture.met else render._ALARM)
        for row, (line, colour) in enumerate(zip(picture.lines, colours, strict=True)):
            render._text(draw, (x, y + 25 * row), render.fit(line, 18, step), 18, colour)
    return sheet


def _fitted(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """(width, height) of a picture [height, width, ...] whose longer side is to be `longest`; at most 4x as large."""
    scale = min(longest / max(shape[:2]), 4.0)
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _scaled(image: np.ndarray, longest: int) -> Image.Image:
    size = _fitted(image.shape, longest)
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0]
    return Image.fromarray(image).resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
