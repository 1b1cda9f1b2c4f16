"""Pictures of gaze: which patches of a frame were looked at, at which resolution, and what they rebuild.

Only Pillow and numpy, and Pillow's built-in font, so that a picture is the same on every machine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autogaze.patches import VOCABULARY, PatchVocabulary

Colour = tuple[int, int, int]

# Coarse to fine. Chosen so that any two of the first four stay apart (CIE76 difference of 35 or more) for normal,
# protan, deutan and tritan vision, and all lie in the middle of the lightness range, so that they show on light and
# dark footage alike. A patch's size says its scale as well: colour is never the only cue.
PALETTE: tuple[Colour, ...] = (
    (0x8C, 0x6B, 0xFF),  # violet
    (0x56, 0xB4, 0xE9),  # sky blue
    (0xFF, 0xB0, 0x00),  # amber
    (0xEE, 0x33, 0x77),  # magenta
    (0x40, 0xB0, 0xA6),  # teal
    (0xD5, 0x5E, 0x00),  # vermilion
)
_GROUND: Colour = (0x14, 0x16, 0x1A)
_TEXT: Colour = (0xF1, 0xF3, 0xF5)
_QUIET: Colour = (0x9A, 0xA3, 0xAD)
_ALARM: Colour = (0xFF, 0x8A, 0x65)

_MARGIN = 28
_GAP = 8
_LABELS = 160  # width of the contact sheet's row labels
_BAR_TOP = 48  # heights of the overlay's caption bars; even, as H.264 4:2:0 asks
_BAR_BOTTOM = 40


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


def scale_colour(scale_index: int) -> Colour:
    """RGB of a scale, 0 = the coarsest."""
    return PALETTE[scale_index % len(PALETTE)]


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
            draw.rectangle((left + width, top + width, right - 1 - width, bottom - 1 - width), outline=_GROUND)
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
    left, top = _MARGIN + _LABELS, _MARGIN + header
    columns = len(pictures)
    width = max(left + columns * (side + _GAP) - _GAP + _MARGIN, left + 4 * (side + _GAP) - _GAP + _MARGIN)
    height = top + 3 * (side + _GAP) - _GAP + footer + _MARGIN
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)

    _text(draw, (_MARGIN, _MARGIN), fit(title, 28, width - 2 * _MARGIN), 28)
    legend_width = _legend(None, (0, 0), vocabulary, 18)
    if 2 * _MARGIN + legend_width + text_width(facts, 18) + 40 > width:
        facts = fit(facts, 18, width - 2 * _MARGIN - legend_width - 40)
    _text(draw, (_MARGIN, _MARGIN + 42), facts, 18, _QUIET)
    _legend(draw, (width - _MARGIN - legend_width, _MARGIN + 42), vocabulary, 18)

    for row, label in enumerate(("original", "gazed patches", "reconstruction")):
        _text(draw, (_MARGIN, top + row * (side + _GAP) + 2), label, 20)
    for column, picture in enumerate(pictures):
        x = left + column * (side + _GAP)
        assert picture.reconstruction is not None
        for row, image in enumerate(
            (picture.frame, gazed_patches(picture.frame, picture.tokens, 1, vocabulary), picture.reconstruction)
        ):
            sheet.paste(Image.fromarray(image), (x, top + row * (side + _GAP)))
        y = top + 3 * (side + _GAP) - _GAP + 10
        when = f"frame {picture.number}" + ("" if picture.seconds is None else f" · {picture.seconds:.2f} s")
        _text(draw, (x, y), fit(when, 18, side), 18, _QUIET)
        _text(draw, (x, y + 24), plural(len(picture.tokens), "patch", "patches"), 20)
        colour = _TEXT if picture.met else _ALARM
        _text(draw, (x, y + 50), error_text(picture.error, picture.met, threshold), 20, colour)
    return sheet


def overlay_background(title: str, vocabulary: PatchVocabulary = VOCABULARY, zoom: int = 2) -> Image.Image:
    """What all frames of an overlay video share: the caption bar with the title and the legend."""
    side = vocabulary.frame_size * zoom
    width = 3 * side + 2 * _GAP
    background = Image.new("RGB", (width + width % 2, _BAR_TOP + side + side % 2 + _BAR_BOTTOM), _GROUND)
    draw = ImageDraw.Draw(background)
    legend_width = _legend(None, (0, 0), vocabulary, 18)
    _text(draw, (16, 13), fit(title, 20, width - legend_width - 72), 20)
    _legend(draw, (width - 16 - legend_width, 14), vocabulary, 18)
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
        (enlarged, "original", when, _QUIET),
        (gazed, "gazed", f"{plural(len(picture.tokens), 'patch', 'patches')} of {vocabulary.size}", _QUIET),
        (
            rebuilt,
            "reconstruction",
            error_text(picture.error, picture.met, threshold),
            _QUIET if picture.met else _ALARM,
        ),
    )
    for column, (panel, name, value, colour) in enumerate(captions):
        x = column * (side + _GAP)
        image.paste(panel, (x, _BAR_TOP))
        y = _BAR_TOP + side + 10
        _text(draw, (x + 16, y), name, 18)
        _text(draw, (x + side - 16 - text_width(value, 18), y), value, 18, colour)
    return np.asarray(image)


def slate(background: Image.Image, lines: Sequence[str]) -> np.ndarray:
    """An overlay frame without pictures, uint8 [H, W, 3]: says what is missing where frames could not be had."""
    image = background.copy()
    draw = ImageDraw.Draw(image)
    y = image.height // 2 - 20 * len(lines)
    for number, line in enumerate(lines):
        shown = fit(line, 24, image.width - 64)
        place = ((image.width - text_width(shown, 24)) // 2, y + 40 * number)
        _text(draw, place, shown, 24, _ALARM if number == 0 else _QUIET)
    return np.asarray(image)


def plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def error_text(error: float, met: bool, threshold: float) -> str:
    """'error 0.048', with the threshold when it was not met."""
    return f"error {error:.3f}" if met else f"error {error:.3f}, over {threshold:g}"


def text_width(text: str, size: int) -> int:
    """Pixels a line takes."""
    return int(np.ceil(_font(size).getlength(printable(text))))


def fit(text: str, size: int, width: int) -> str:
    """The text, its middle replaced by an ellipsis where it would be wider than `width` pixels."""
    text = printable(text)
    if text_width(text, size) <= width:
        return text
    kept = len(text)
    while kept > 1 and text_width(shown := _elide(text, kept), size) > width:
        kept -= max(1, kept // 16)
    return shown if kept > 1 else "…"


def _elide(text: str, kept: int) -> str:
    tail = kept // 2
    return text[: kept - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()


def printable(text: str) -> str:
    """The text as one line the built-in font can draw: letters it lacks lose their accents, the rest become boxes."""
    return "".join(character if character.isascii() else _drawable(character) for character in _one_line(text))


def _one_line(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates of names that are not UTF-8
    return "".join(character if character.isprintable() else "\ufffd" for character in clean)


@cache
def _drawable(character: str) -> str:
    if _glyph(character) != _glyph("\ufffd"):
        return character
    bases = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    return "".join(base if _glyph(base) != _glyph("\ufffd") else "\ufffd" for base in bases)


def _glyph(character: str) -> bytes:
    return bytes(_font(24).getmask(character))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _text(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, size: int, fill: Colour = _TEXT) -> None:
    draw.text(xy, printable(text), font=_font(size), fill=fill)


def _legend(draw: ImageDraw.ImageDraw | None, xy: tuple[int, int], vocabulary: PatchVocabulary, size: int) -> int:
    """Draw (or only measure, with draw=None) which colour is which scale; its width in pixels."""
    x, y = xy
    begin = x
    if draw is not None:
        _text(draw, (x, y), "scale", size, _QUIET)
    x += text_width("scale", size) + 14
    for level, scale in enumerate(vocabulary.scales):
        if draw is not None:
            draw.rectangle((x, y + 3, x + size - 4, y + size - 1), outline=scale_colour(level), width=4)
        x += size + 3
        if draw is not None:
            _text(draw, (x, y), str(scale), size, _QUIET)
        x += text_width(str(scale), size) + 18
    return x - 18 - begin


def _box(vocabulary: PatchVocabulary, token: int, zoom: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in output pixels, right and bottom exclusive."""
    top, left, bottom, right = vocabulary.box(token)
    return left * zoom, top * zoom, right * zoom, bottom * zoom
