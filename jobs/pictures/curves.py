"""Curves: means with their standard errors over a logarithmic axis, drawn by matplotlib as SVG and as PNG.

Methods differ in colour and in the shape of their marks, so that colour is never the only cue. The same values give the
same bytes. Matplotlib is imported when the first curves are drawn, so that commands without curves start without it.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.pictures.lettering import PALETTE, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (8.4, 4.4), 200
_INK, _QUIET, _GRID = "#1f2328", "#59636e", "#e4e7eb"
_MARKS = "os^DvP"
# From the top line to the lowest: through the gaps of one, a line that lies just under it shows.
_LINES: Any = ((0, (5, 2)), "-", (0, (1, 1.4)), (0, (7, 2, 1.5, 2)), (0, (3, 3)), "-")
_LABEL_GAP = 0.05  # least distance between the labels of two ticks, as a share of the axis
_STYLE: Any = {
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _QUIET,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": _GRID,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "autogaze",  # the same ids each time
    "text.color": _INK,
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}

Place = tuple[float, float, float | None]
"""x, y, and the standard error of y, if it is known."""


@dataclass(frozen=True)
class PlottedSeries:
    """One method: its name, the points of its line by rising x, and one point beside the line."""

    name: str
    points: Sequence[Place]
    beside: Place


class Plot(NamedTuple):
    """The same picture as two files."""

    svg: bytes
    png: bytes


def draw_curves(
    series: Sequence[PlottedSeries],
    ticks: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
    x_mark: tuple[float, str] | None = None,
) -> Plot:
    """Draw up to six series. Error bars are one standard error to each side; y begins at 0.

    Points at x = 0 have no place on the axis, and are left out.

    Args:
        ticks: values of x, in (0, 1], that are labelled, as percent.
        mark: a value of y at which a line is drawn, and its name.
        x_mark: a value of x that has a tick and a thin line of its own, and its name.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it draws a box
        figure = Figure(_INCHES, layout="constrained")
        axes = figure.add_subplot()
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=11, wrap=True)
        axes.set_title(printable(y_label), loc="left", fontsize=9, color=_QUIET)
        axes.set_xlabel(printable(x_label))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if mark:
            axes.axhline(mark[0], color=_QUIET, linewidth=1, linestyle=(0, (6, 5)), label=printable(mark[1]))
        for number, one in enumerate(series):
            _draw_series(axes, number, one)
        axes.set_ylim(bottom=0)
        positions = [point[0] for one in series for point in (*one.points, one.beside)]
        named = {tick: f"{100 * tick:.4g} %" for tick in ticks}
        if x_mark and x_mark[0] > 0:
            axes.axvline(x_mark[0], color=_QUIET, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
            named[x_mark[0]] = f"{100 * x_mark[0]:.3g} %\n{printable(x_mark[1])}"
        own = x_mark[0] if x_mark else None
        _scale_x(axes, [x for x in (*positions, *named) if x > 0] or [1.0], named, own)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=2.4)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Title": printable(title), "Date": None})
        figure.savefig(png, format="png", dpi=_DPI)
    return Plot(svg.getvalue(), png.getvalue())


def _draw_series(axes: Axes, number: int, series: PlottedSeries) -> None:
    colour = "#{:02x}{:02x}{:02x}".format(*PALETTE[number % len(PALETTE)])
    for points, line in ((series.points, _LINES[number % len(_LINES)]), ([series.beside], "none")):
        shown = [point for point in points if point[0] > 0]
        axes.errorbar(
            [x for x, _, _ in shown],
            [y for _, y, _ in shown],
            [spread or 0.0 for _, _, spread in shown],
            color=colour,
            linestyle=line,
            linewidth=1.8 + 0.2 * number,
            elinewidth=1,
            marker=_MARKS[number % len(_MARKS)],
            markersize=7,
            markeredgecolor="white",  # a rim, so that marks on lines stay apart
            markeredgewidth=1,
            label=printable(series.name) if line != "none" else "_beside",
            zorder=3 - 0.1 * number,  # the first on top
        )


def _scale_x(axes: Axes, positions: Sequence[float], names: Mapping[float, str], kept: float | None) -> None:
    """A logarithmic axis over the positions. names: of its ticks.

    Labels that would touch their left neighbour, or that of the tick `kept`, are left out.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = math.log(min(positions)) - 0.08, math.log(max(positions)) + 0.08
    axes.set_xscale("log")
    axes.set_xlim(math.exp(low), math.exp(high))
    labels, last, gap = [], -math.inf, _LABEL_GAP * (high - low)
    for tick in sorted(names):
        near = kept is not None and kept > 0 and tick != kept and abs(math.log(tick / kept)) <= gap
        shown = tick == kept or (math.log(tick) - last > gap and not near)
        labels.append(names[tick] if shown else "")
        last = math.log(tick) if shown else last
    axes.xaxis.set_major_locator(FixedLocator(sorted(names)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(labels)
