"""Lines of a mean with its standard error over a logarithmic axis, drawn once and given as SVG and as PNG.

The axes are those of jobs/pictures/charts.py. Methods differ in colour and in the shape of their marks: colour is never
the only cue.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import escape
from PIL import Image, ImageDraw, ImageFont

from jobs.pictures.charts import Axis
from jobs.pictures.render import PALETTE, printable

_WIDTH, _HEIGHT = 840, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 184, 66, 56
_INK, _QUIET, _GRID, _GROUND = "#1f2328", "#59636e", "#e4e7eb", "#ffffff"
_ZOOM, _OVER = 2, 2  # PNG pixels per unit, and how much finer it is drawn before it is scaled down

Place = tuple[float, float]

# Marks as polygons of radius 1; y points down.
_SHAPES: tuple[tuple[Place, ...], ...] = (
    tuple((math.cos(a * math.pi / 8), math.sin(a * math.pi / 8)) for a in range(16)),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    ((0, 1.1), (1.05, -0.8), (-1.05, -0.8)),
)


@dataclass(frozen=True)
class PlottedSeries:
    """One line: its name and its points (x, y, standard error of y or None), by rising x; and one beside the line."""

    name: str
    points: Sequence[tuple[float, float, float | None]]
    beside: tuple[float, float, float | None]


@dataclass
class Drawing:
    """Lines, polygons and text on a white ground, in units of one SVG pixel."""

    title: str
    lines: list[tuple[Sequence[Place], str, float, bool]] = field(default_factory=list)
    polygons: list[tuple[Sequence[Place], str]] = field(default_factory=list)
    texts: list[tuple[Place, str, int, str, str]] = field(default_factory=list)

    def line(self, places: Sequence[Place], colour: str, width: float = 1.0, dashed: bool = False) -> None:
        self.lines.append((places, colour, width, dashed))

    def polygon(self, places: Sequence[Place], colour: str) -> None:
        self.polygons.append((places, colour))

    def text(self, place: Place, text: str, size: int = 13, colour: str = _QUIET, anchor: str = "start") -> None:
        """anchor: which end of the text, or its middle, lies at the place; y is its base line."""
        self.texts.append((place, printable(text), size, colour, anchor))

    def svg(self) -> bytes:
        """A file of its own."""
        parts = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{_GROUND}"/>']
        for places, colour, width, dashed in self.lines:
            dash = ' stroke-dasharray="6 5"' if dashed else ""
            parts.append(
                f'<polyline points="{_points(places)}" fill="none" stroke="{colour}" stroke-width="{width:g}"'
                f' stroke-linejoin="round"{dash}/>'
            )
        for places, colour in self.polygons:
            parts.append(f'<polygon points="{_points(places)}" fill="{colour}"/>')
        for (x, y), text, size, colour, anchor in self.texts:
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
                f"{escape(text)}</text>"
            )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"'
            f' height="{_HEIGHT}" font-family="system-ui, sans-serif" role="img" aria-label="{escape(self.title)}">'
        )
        return "\n".join([head, *parts, "</svg>\n"]).encode()

    def png(self) -> bytes:
        """Twice as many pixels as units."""
        scale = _ZOOM * _OVER
        image = Image.new("RGB", (_WIDTH * scale, _HEIGHT * scale), _GROUND)
        draw = ImageDraw.Draw(image)
        for places, colour, width, dashed in self.lines:
            for part in _dashes(places) if dashed else [places]:
                draw.line([(x * scale, y * scale) for x, y in part], colour, round(width * scale), joint="curve")
        for places, colour in self.polygons:
            draw.polygon([(x * scale, y * scale) for x, y in places], colour)
        for (x, y), text, size, colour, anchor in self.texts:
            side = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
            font = ImageFont.load_default(size=size * scale)
            draw.text((x * scale, y * scale), text, colour, font, anchor=side)
        sink = io.BytesIO()
        image.resize((_WIDTH * _ZOOM, _HEIGHT * _ZOOM), Image.Resampling.LANCZOS).save(sink, "PNG", optimize=True)
        return sink.getvalue()


def draw_curves(
    series: Sequence[PlottedSeries],
    ticks: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
) -> Drawing:
    """Error bars are one standard error to each side. y begins at 0. Points at x = 0 have no place, and are left out.

    Args:
        ticks: values of x, in (0, 1], that are named, as percent.
        mark: a value of y to draw a line at, and a word for it.
    """
    drawing = Drawing(title)
    joined = [[point for point in one.points if point[0] > 0] for one in series]
    marks = [[*line, *([one.beside] if one.beside[0] > 0 else [])] for line, one in zip(joined, series, strict=True)]
    xs = [x for points in marks for x, _, _ in points] + list(ticks) or [1.0]
    low, high = math.log(min(xs)) - 0.08, math.log(max(xs)) + 0.08
    tops = [y + (spread or 0.0) for points in marks for _, y, spread in points]
    axis = Axis.to(y_label, max([*tops, mark[0] * 1.1 if mark else 0.0]))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> Place:
        across = (math.log(x) - low) / (high - low)
        return _LEFT + (right - _LEFT) * across, bottom - (bottom - _TOP) * y / axis.end

    drawing.text((_LEFT - 48, 24), title, 16, _INK)
    drawing.text((_LEFT - 48, 48), y_label)
    for tick in axis.ticks:
        y = at(min(xs), tick)[1]
        drawing.line([(_LEFT, y), (right, y)], _GRID if tick else _QUIET)
        drawing.text((_LEFT - 8, y + 4.5), f"{tick:.4g}", anchor="end")
    last = -math.inf
    for tick in sorted(ticks):
        x = at(tick, 0)[0]
        drawing.line([(x, bottom), (x, bottom + 5)], _QUIET)
        if x - last > 44:
            drawing.text((x, bottom + 20), f"{100 * tick:.4g} %", anchor="middle")
            last = x
    drawing.text(((_LEFT + right) / 2, _HEIGHT - 12), x_label, anchor="middle")
    legend = _TOP + 8
    if mark:
        y = at(min(xs), mark[0])[1]
        drawing.line([(_LEFT, y), (right, y)], _QUIET, 1.2, dashed=True)
        drawing.text((right + 6, y + 4.5), mark[1])
        if y < legend + 21 * len(series):
            legend = max(legend, round(y) + 24)
    for number, one in reversed(list(enumerate(series))):  # the first on top
        colour = "#{:02x}{:02x}{:02x}".format(*PALETTE[number % len(PALETTE)])
        shape = _SHAPES[number % len(_SHAPES)]
        if joined[number]:
            drawing.line([at(x, y) for x, y, _ in joined[number]], colour, 2.2)
        for x, y, spread in marks[number]:
            if spread:
                drawing.line([at(x, max(y - spread, 0.0)), at(x, y + spread)], colour, 1.2)
            _mark(drawing, shape, at(x, y), colour)
        x, y = right + 42, legend + 21 * number
        drawing.line([(x - 24, y), (x, y)], colour, 2.2)
        _mark(drawing, shape, (x - 12, y), colour)
        drawing.text((x + 8, y + 4.5), one.name, colour=_INK)
    return drawing


def _mark(drawing: Drawing, shape: Sequence[Place], place: Place, colour: str) -> None:
    for radius, fill in ((6.0, _GROUND), (4.6, colour)):  # a white rim, so that marks on lines stay apart
        drawing.polygon([(place[0] + radius * dx, place[1] + radius * dy) for dx, dy in shape], fill)


def _dashes(places: Sequence[Place]) -> list[Sequence[Place]]:
    """A straight line as pieces of 6 with gaps of 5 between."""
    (x0, y0), (x1, y1) = places
    length = math.hypot(x1 - x0, y1 - y0)

    def along(d: float) -> Place:
        return x0 + (x1 - x0) * d / length, y0 + (y1 - y0) * d / length

    return [(along(d), along(min(d + 6, length))) for d in range(0, int(length), 11)]


def _points(places: Sequence[Place]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
