"""What all pictures of gaze share: colours, measures, and text in one line.

The font is Pillow's built-in one, so that a picture is the same on every machine.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from PIL import ImageDraw, ImageFont

from autogaze.patches import PatchVocabulary

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
GROUND: Colour = (0x14, 0x16, 0x1A)
TEXT: Colour = (0xF1, 0xF3, 0xF5)
QUIET: Colour = (0x9A, 0xA3, 0xAD)
ALARM: Colour = (0xFF, 0x8A, 0x65)

MARGIN = 28
GAP = 8
LABEL_WIDTH = 160  # width of the contact sheet's row labels
BAR_TOP = 48  # heights of the overlay's caption bars; even, as H.264 4:2:0 asks
BAR_BOTTOM = 40


def scale_colour(scale_index: int) -> Colour:
    """RGB of a scale, 0 = the coarsest."""
    return PALETTE[scale_index % len(PALETTE)]


def text_width(text: str, size: int) -> int:
    """The width of a line in pixels."""
    return int(np.ceil(_font(size).getlength(printable(text))))


def fit(text: str, size: int, width: int) -> str:
    """The text; if it is wider than `width` pixels, with an ellipsis for its middle."""
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
    """The text as one line that the font can draw. Letters it lacks lose their accents, or become boxes."""
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


def draw_text(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, size: int, fill: Colour = TEXT) -> None:
    """Draw a line of text; xy: its left and top."""
    draw.text(xy, printable(text), font=_font(size), fill=fill)


def draw_legend(draw: ImageDraw.ImageDraw | None, xy: tuple[int, int], vocabulary: PatchVocabulary, size: int) -> int:
    """Draw which colour is which scale, or with draw=None only measure it. Returns its width in pixels."""
    x, y = xy
    begin = x
    if draw is not None:
        draw_text(draw, (x, y), "scale", size, QUIET)
    x += text_width("scale", size) + 14
    for level, scale in enumerate(vocabulary.scales):
        if draw is not None:
            draw.rectangle((x, y + 3, x + size - 4, y + size - 1), outline=scale_colour(level), width=4)
        x += size + 3
        if draw is not None:
            draw_text(draw, (x, y), str(scale), size, QUIET)
        x += text_width(str(scale), size) + 18
    return x - 18 - begin
