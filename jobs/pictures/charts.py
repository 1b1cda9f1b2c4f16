"""Charts as inline SVG: no script, no font of their own; colours come from the page's CSS variables.

Every chart says what its axes are and in which unit, and repeats each bar's value as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 480, 256
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 32, 46


@dataclass(frozen=True)
class Axis:
    """A linear axis: its label with the unit, its end, values at which to draw ticks, and where it begins."""

    label: str
    end: float
    ticks: tuple[float, ...]
    begin: float = 0.0

    @classmethod
    def to(cls, label: str, largest: float, about: int = 5, whole: bool = False) -> Axis:
        """From 0 to a round number at or above `largest`; whole: ticks at whole numbers only, for counts."""
        step = nice_step(largest, about)
        if whole:
            step = max(1.0, math.ceil(step))
        count = max(1, math.ceil(largest / step - 1e-9))
        return cls(label, count * step, tuple(i * step for i in range(count + 1)))


def nice_step(largest: float, about: int) -> float:
    """A step of 1, 2, 2.5 or 5 times a power of ten that cuts [0, largest] in about `about` parts."""
    if largest <= 0:
        return 1.0
    raw = largest / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return min((f for f in (1, 2, 2.5, 5, 10)), key=lambda f: abs(math.log(f * magnitude / raw))) * magnitude


def histogram(
    values: np.ndarray, label: str, what: str, scale: float = 1.0, mark: tuple[float, str] | None = None
) -> Markup:
    """How many of `values` fall in each of some 25 equal bins, from 0 or, if some are below, from the smallest.

    Args:
        values: [N] numbers.
        label: the axis label, with the unit.
        what: what is counted, plural.
        scale: multiplies values for show, e.g. 100 for percent.
        mark: a value (before scaling) to draw a line at, and its name.
    """
    shown = np.asarray(values, dtype=np.float64) * scale
    smallest = float(shown.min(initial=0.0))
    largest = max(float(shown.max(initial=0.0)), mark[0] * scale * 1.1 if mark else 0.0)
    width = nice_step(largest - smallest or 1.0, 25)
    begin = math.floor(smallest / width + 1e-9) * width
    bins = max(1, math.ceil((largest - begin) / width + 1e-9))
    end = begin + bins * width
    # A value that rounding puts outside the outermost edges belongs to the outermost bins.
    counts, edges = np.histogram(np.clip(shown, begin, end), bins=bins, range=(begin, end))
    step = nice_step(end - begin, 6)
    ticks = tuple(i * step for i in range(math.ceil(begin / step - 1e-9), math.floor(end / step + 1e-9) + 1))
    x_axis = Axis(label, end, ticks, begin)
    y_axis = Axis.to(what, float(counts.max(initial=0)), 4, whole=True)
    parts = _frame(x_axis, y_axis)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count:
            tip = f"{_number(low)} to {_number(high)}: {count:,} {what}"
            parts.append(_column(x_axis, y_axis, low, high, 0, float(count), "var(--bar)", tip))
    if mark:
        x = _x(x_axis, mark[0] * scale)
        anchor, nudge = ("end", -6) if mark[0] * scale > begin + 0.6 * (end - begin) else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 12}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="marked" x="{x + nudge:.1f}" y="{_TOP - 4}" text-anchor="{anchor}">{escape(mark[1])}</text>'
        )
    return _svg(parts, f"Histogram of {len(shown):,} {what} by {label}")


def stacked_columns(
    heights: np.ndarray, colours: Sequence[str], names: Sequence[str], x_label: str, y_label: str
) -> Markup:
    """Columns [N, K] of K stacked parts each, numbered from 0."""
    count = len(heights)
    totals = heights.sum(axis=1)
    step = max(1, math.ceil(count / 16))
    x_axis = Axis(x_label, float(count), ())
    y_axis = Axis.to(y_label, float(totals.max(initial=0.0)) or 1.0, 4)
    parts = _frame(x_axis, y_axis)
    for column in range(count):
        base = 0.0
        for part, colour in enumerate(colours):
            height = float(heights[column, part])
            if height > 0:
                tip = f"frame {column}, {names[part]}: {height:.2f} of {totals[column]:.2f}"
                parts.append(_column(x_axis, y_axis, column, column + 1, base, base + height, colour, tip))
            base += height
        if column % step == 0:
            x = (_x(x_axis, column) + _x(x_axis, column + 1)) / 2
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{column}</text>')
    return _svg(parts, f"{y_label} by {x_label}")


def rows(values: Sequence[tuple[str, float, str, str]], label: str) -> Markup:
    """Horizontal bars: (name, value, text beside the bar, colour) each."""
    largest = max((value for _, value, _, _ in values), default=0.0) or 1.0
    height = 38
    parts = []
    for number, (name, value, text, colour) in enumerate(values):
        y = 8 + number * height
        length = (_WIDTH - 96 - 165) * value / largest
        parts.append(f'<text class="name" x="86" y="{y + 19}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="96" y="{y + 3}" width="{max(length, 1.5):.1f}" height="22" rx="2" fill="{colour}"/>')
        parts.append(f'<text class="value" x="{96 + length + 8:.1f}" y="{y + 19}">{escape(text)}</text>')
    return _svg(parts, label, 12 + height * len(values))


def _svg(parts: Sequence[str], title: str, height: int = _HEIGHT) -> Markup:
    return Markup(  # noqa: S704 (every text in parts is escaped where it is made)
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )


def _frame(x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_number(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_axis.label)}</text>'
    )
    parts.append(f'<text class="label" x="2" y="12">{escape(y_axis.label)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _column(
    x_axis: Axis, y_axis: Axis, left: float, right: float, low: float, high: float, colour: str, tip: str
) -> str:
    x0, x1 = _x(x_axis, left), _x(x_axis, right)
    y0, y1 = _y(y_axis, high), _y(y_axis, low)
    gap = min(1.0, (x1 - x0) * 0.1)
    return (
        f'<rect x="{x0 + gap:.1f}" y="{y0:.1f}" width="{x1 - x0 - 2 * gap:.1f}" height="{y1 - y0:.1f}" fill="{colour}">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _x(axis: Axis, value: float) -> float:
    return _LEFT + (_WIDTH - _RIGHT - _LEFT) * (value - axis.begin) / (axis.end - axis.begin)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (value - axis.begin) / (axis.end - axis.begin)


def _number(value: float) -> str:
    """Short: 0.05, 12, 12k."""
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{float(f'{value:.4g}'):g}"
