"""Pictures of gaze: which patches of a frame are looked at, at which resolution, and what they rebuild."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from autogaze.patches import VOCABULARY, PatchVocabulary
from jobs.pictures.lettering import (
    ALARM,
    BAR_BOTTOM,
    BAR_TOP,
    GAP,
    GROUND,
    LABEL_WIDTH,
    MARGIN,
    QUIET,
    TEXT,
    draw_legend,
    draw_text,
    fit,
    scale_colour,
    text_width,
)
from jobs.wording import plural


@dataclass(frozen=True)
class Picture:
    """One gazed frame, ready to be drawn.

    Attributes:
        number: frame number in the video.
        seconds: its time in the video, or None when the rate is unknown.
        frame: uint8 [S, S, 3], S the vocabulary's frame_size.
        tokens: ids gazed in this frame, in order.
        reconstruction: uint8 [S, S, 3], or None when there is none.
        error: final reconstruction error of the frame.
        met: whether the error is at or under the threshold.
    """

    number: int
    seconds: float | None
    frame: np.ndarray
    tokens: Sequence[int]
    reconstruction: np.ndarray | None
    error: float
    met: bool


def gazed_patches(
    frame: np.ndarray, tokens: Sequence[int], zoom: int = 1, vocabulary: PatchVocabulary = VOCABULARY
) -> np.ndarray:
    """The frame as the gaze sees it: each gazed patch bright, at the resolution of its scale and outlined in its
    scale's colour (finer ones on top); everything else grey and dark.

    Args:
        frame: uint8 [S, S, 3].
        tokens: gazed ids in [0, vocabulary.size), any order.
        zoom: output pixels per frame pixel.
    Returns:
        uint8 [S * zoom, S * zoom, 3].
    """
    side = vocabulary.frame_size
    if frame.shape != (side, side, 3) or frame.dtype != np.uint8:
        raise ValueError(f"frame must be uint8 [{side}, {side}, 3], got {frame.dtype} {list(frame.shape)}")
    original = Image.fromarray(frame)
    rest = original.convert("L").point([24 + 0.36 * level for level in range(256)])
    picture = rest.resize((side * zoom, side * zoom), Image.Resampling.BICUBIC).convert("RGB")
    if not tokens:
        return np.asarray(picture)
    draw = ImageDraw.Draw(picture)
    ids = sorted({int(token) for token in tokens})  # ascending ids run from coarse to fine
    places = [(_box(vocabulary, token, zoom), *vocabulary.locate(token)) for token in ids]
    pixels: dict[int, Image.Image] = {}
    for (left, top, right, bottom), level, row, column in places:
        scale, patch = vocabulary.scales[level], vocabulary.patch_size
        if level not in pixels:
            pixels[level] = original.resize((scale, scale), Image.Resampling.BOX)
        cut = pixels[level].crop((column * patch, row * patch, (column + 1) * patch, (row + 1) * patch))
        picture.paste(cut.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    for box, level, _, _ in places:
        left, top, right, bottom = box
        width = zoom + (2 if right - left >= 32 * zoom else 1)
        if zoom > 1:  # a dark hairline inside keeps the colour legible on bright content
            draw.rectangle((left + width, top + width, right - 1 - width, bottom - 1 - width), outline=GROUND)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=scale_colour(level), width=width)
    return np.asarray(picture)


def contact_sheet(
    pictures: Sequence[Picture],
    title: str,
    facts: str,
    threshold: float,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Image.Image:
    """Original, gazed patches and reconstruction of some frames: one frame per column, one kind per row.

    Args:
        pictures: one or more frames; all must have a reconstruction.
        title: the video's name.
        facts: one line under it.
        threshold: errors above it are marked.
    """
    side = vocabulary.frame_size
    header, footer = 84, 74
    left, top = MARGIN + LABEL_WIDTH, MARGIN + header
    columns = len(pictures)
    width = max(left + columns * (side + GAP) - GAP + MARGIN, left + 4 * (side + GAP) - GAP + MARGIN)
    height = top + 3 * (side + GAP) - GAP + footer + MARGIN
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)

    draw_text(draw, (MARGIN, MARGIN), fit(title, 28, width - 2 * MARGIN), 28)
    legend_width = draw_legend(None, (0, 0), vocabulary, 18)
    if 2 * MARGIN + legend_width + text_width(facts, 18) + 40 > width:
        facts = fit(facts, 18, width - 2 * MARGIN - legend_width - 40)
    draw_text(draw, (MARGIN, MARGIN + 42), facts, 18, QUIET)
    draw_legend(draw, (width - MARGIN - legend_width, MARGIN + 42), vocabulary, 18)

    for row, label in enumerate(("original", "gazed patches", "reconstruction")):
        draw_text(draw, (MARGIN, top + row * (side + GAP) + 2), label, 20)
    for column, picture in enumerate(pictures):
        x = left + column * (side + GAP)
        assert picture.reconstruction is not None
        for row, image in enumerate(
            (picture.frame, gazed_patches(picture.frame, picture.tokens, 1, vocabulary), picture.reconstruction)
        ):
            sheet.paste(Image.fromarray(image), (x, top + row * (side + GAP)))
        y = top + 3 * (side + GAP) - GAP + 10
        when = f"frame {picture.number}" + ("" if picture.seconds is None else f" · {picture.seconds:.2f} s")
        draw_text(draw, (x, y), fit(when, 18, side), 18, QUIET)
        draw_text(draw, (x, y + 24), plural(len(picture.tokens), "patch", "patches"), 20)
        colour = TEXT if picture.met else ALARM
        draw_text(draw, (x, y + 50), error_text(picture.error, picture.met, threshold), 20, colour)
    return sheet


def overlay_background(title: str, vocabulary: PatchVocabulary = VOCABULARY, zoom: int = 2) -> Image.Image:
    """What all frames of an overlay video share: the caption bar with the title and the legend."""
    side = vocabulary.frame_size * zoom
    width = 3 * side + 2 * GAP
    background = Image.new("RGB", (width + width % 2, BAR_TOP + side + side % 2 + BAR_BOTTOM), GROUND)
    draw = ImageDraw.Draw(background)
    legend_width = draw_legend(None, (0, 0), vocabulary, 18)
    draw_text(draw, (16, 13), fit(title, 20, width - legend_width - 72), 20)
    draw_legend(draw, (width - 16 - legend_width, 14), vocabulary, 18)
    return background


def overlay_frame(
    background: Image.Image,
    picture: Picture,
    threshold: float,
    vocabulary: PatchVocabulary = VOCABULARY,
    zoom: int = 2,
) -> np.ndarray:
    """One frame of the overlay video, uint8 [H, W, 3]: original, gazed patches, reconstruction, each captioned."""
    side = vocabulary.frame_size * zoom
    image = background.copy()
    draw = ImageDraw.Draw(image)
    assert picture.reconstruction is not None
    enlarged = Image.fromarray(picture.frame).resize((side, side), Image.Resampling.BICUBIC)
    rebuilt = Image.fromarray(picture.reconstruction).resize((side, side), Image.Resampling.NEAREST)
    gazed = Image.fromarray(gazed_patches(picture.frame, picture.tokens, zoom, vocabulary))
    when = f"frame {picture.number}" + ("" if picture.seconds is None else f" · {picture.seconds:.2f} s")
    captions = (
        (enlarged, "original", when, QUIET),
        (gazed, "gazed", f"{plural(len(picture.tokens), 'patch', 'patches')} of {vocabulary.size}", QUIET),
        (
            rebuilt,
            "reconstruction",
            error_text(picture.error, picture.met, threshold),
            QUIET if picture.met else ALARM,
        ),
    )
    for column, (panel, name, value, colour) in enumerate(captions):
        x = column * (side + GAP)
        image.paste(panel, (x, BAR_TOP))
        y = BAR_TOP + side + 10
        draw_text(draw, (x + 16, y), name, 18)
        draw_text(draw, (x + side - 16 - text_width(value, 18), y), value, 18, colour)
    return np.asarray(image)


def slate(background: Image.Image, lines: Sequence[str]) -> np.ndarray:
    """An overlay frame without pictures, uint8 [H, W, 3]: says what is missing where frames could not be had."""
    image = background.copy()
    draw = ImageDraw.Draw(image)
    y = image.height // 2 - 20 * len(lines)
    for number, line in enumerate(lines):
        shown = fit(line, 24, image.width - 64)
        place = ((image.width - text_width(shown, 24)) // 2, y + 40 * number)
        draw_text(draw, place, shown, 24, ALARM if number == 0 else QUIET)
    return np.asarray(image)


def error_text(error: float, met: bool, threshold: float) -> str:
    """'error 0.048', with the threshold when it was not met."""
    return f"error {error:.3f}" if met else f"error {error:.3f}, over {threshold:g}"


def _box(vocabulary: PatchVocabulary, token: int, zoom: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in output pixels, right and bottom exclusive."""
    top, left, bottom, right = vocabulary.box(token)
    return left * zoom, top * zoom, right * zoom, bottom * zoom
