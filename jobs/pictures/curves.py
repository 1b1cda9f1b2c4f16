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

_WIDTH, _HEIGHT, _DPI = 8.4, 4.4, 200  # of a picture with one panel, in inches
_INK, _QUIET, _GRID = "#1f2328", "#59636e", "#e4e7eb"
_COLOURS = (*("#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE), "#1f2328", "#2b5fa8", "#8a7a1c")
_MARKS = "os^DvPX<>"
# From the top line to the lowest: through the gaps of one, a line that lies just under it shows.
_LINES: Any = ((0, (5, 2)), "-", (0, (1, 1.4)), (0, (7, 2, 1.5, 2)), (0, (3, 3)), "-")
_LABEL_GAP = 0.075  # least distance between the labels of two ticks, as a share of the axis
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
    """One method: its name, the points of its line by rising x, and one point beside the line, if there is one."""

    name: str
    points: Sequence[Place]
    beside: Place | None


@dataclass(frozen=True)
class Panel:
    """One plot of a picture. label: of y. mark: a value of y at which a line is drawn, and its name.

    from_zero: whether y begins at 0; otherwise at the lowest point, so that curves which lie close can be told apart.
    """

    label: str
    series: Sequence[PlottedSeries]
    mark: tuple[float, str] | None = None
    from_zero: bool = True


class Plot(NamedTuple):
    """The same picture as two files."""

    svg: bytes
    png: bytes


def draw_curves(
    panels: Sequence[Panel],
    ticks: Sequence[float],
    title: str,
    x_label: str,
    x_mark: tuple[float, str] | None = None,
) -> Plot:
    """Draw panels side by side, each of up to nine series, the same in all. Error bars are one standard error each way.

    Points at x = 0 have no place on the axis, and are left out.

    Args:
        ticks: values of x, in (0, 1], that are labelled, as percent.
        x_label: may have several lines.
        x_mark: a value of x that has a tick and a thin line of its own, and its name.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it draws a box
        figure = Figure((_WIDTH + 0.5 * _WIDTH * (len(panels) - 1), _HEIGHT), layout="constrained")
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=11, wrap=True)
        figure.supxlabel("\n".join(map(printable, x_label.split("\n"))), color=_QUIET, fontsize=9)
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=True):
            _draw_panel(axes, panel, ticks, x_mark)
        places[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=2.4)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Title": printable(title), "Date": None})
        figure.savefig(png, format="png", dpi=_DPI)
    return Plot(svg.getvalue(), png.getvalue())


def _draw_panel(axes: Axes, panel: Panel, ticks: Sequence[float], x_mark: tuple[float, str] | None) -> None:
    axes.set_title(printable(panel.label), loc="left", fontsize=9, color=_QUIET)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if panel.mark:
        label = printable(panel.mark[1])
        axes.axhline(panel.mark[0], color=_QUIET, linewidth=1, linestyle=(0, (6, 5)), label=label)
    for number, one in enumerate(panel.series):
        _draw_series(axes, number, one)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    positions = [x for one in panel.series for x, _, _ in (*one.points, *([one.beside] if one.beside else []))]
    named = {tick: f"{100 * tick:.4g} %" for tick in ticks}
    own = x_mark[0] if x_mark and x_mark[0] > 0 else None
    if x_mark and own:
        axes.axvline(own, color=_QUIET, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        named[own] = f"{100 * own:.3g} %"
        # Beside the line, where curves leave room (errors fall, cosines rise): under a tick, two lines stand askew.
        at: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8, "color": _QUIET}
        high, offset = (1, -8) if panel.from_zero else (0, 4)
        axes.annotate(printable(x_mark[1]), (own, high), (3, offset), **at)
    _scale_x(axes, [x for x in (*positions, *named) if x > 0] or [1.0], named, own)


def _draw_series(axes: Axes, number: int, series: PlottedSeries) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    beside = [series.beside] if series.beside else []
    for points, line in ((series.points, _LINES[number % len(_LINES)]), (beside, "none")):
        shown = [point for point in points if point[0] > 0]
        axes.errorbar(
            [x for x, _, _ in shown],
            [y for _, y, _ in shown],
            [spread or 0.0 for _, _, spread in shown],
            color=colour,
            linestyle=line,
            linewidth=1.8 + 0.2 * min(number, 5),
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
