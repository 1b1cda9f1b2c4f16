"""What evaluate says of reconstruction errors: a table, and their part of evaluate.json, .csv, .svg and .png."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from autogaze.reconstruction.base import Reconstructor
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from jobs.pictures.curves import Panel, PlottedSeries, draw_curves
from pipelines.dataset.shards import Dataset
from pipelines.dataset.units import units_of
from pipelines.inspection.evaluate import Curve, Point
from pipelines.inspection.policy_gaze import OwnLimits


@dataclass(frozen=True)
class ErrorResults:
    """Curves of reconstruction error over clips of a dataset.

    clips: how many. ratios: asked for, rising. threshold: an error to find the ratio for; None: there is none in these
    units. names: of the methods, as shown. own: what the policy does by itself.
    """

    dataset: Dataset
    reconstructor: Reconstructor
    clips: int
    curves: list[Curve]
    ratios: list[float]
    threshold: float | None
    names: dict[str, str]
    own: OwnLimits | None

    def show(self, console: Console) -> None:
        """Print the table; where no method has an error, nothing."""
        if self.curves:
            console.print(self._table())
            how = " (labels measure each frame alone)" if rebuilt(self.reconstructor) == TOGETHER else ""
            tell(console, f"error: {self.reconstructor.units}; frames rebuilt {rebuilt(self.reconstructor)}{how}")
            if self.threshold is None:
                stated = self.dataset.config.get("threshold")
                why = (
                    "the dataset names no threshold"
                    if stated is None
                    else f"the dataset's threshold measures something else ({units_of(self.dataset.about)})"
                )
                tell(
                    console,
                    f"{why}; give threshold= to see the ratio needed for an error",
                    "yellow",
                )
        if self.own is not None:
            tell(console, _own_limits(self.own))

    def _table(self) -> Table:
        table = Table(
            title=f"{self.reconstructor.name} error at each gazing ratio, mean of {self.clips} clips ± standard error",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("ratio", min_width=len("as stored"))
        for curve in self.curves:
            name = self.names[curve.method]
            # At 80 characters a cell is two lines, the second from its ± on: words are never cut.
            table.add_column(name, justify="right", min_width=max(map(len, [*name.split(), "at 6.83 %"])))
        for ratio in self.ratios:  # a row each: there are always as few columns as methods
            cells = [[_cell(point) for point in curve.points if point.asked == ratio] for curve in self.curves]
            table.add_row(percent(ratio), *(cell[0] if cell else "" for cell in cells))
        stored = f"as stored ({percent(self.curves[0].as_stored.ratio)})"
        table.add_row(stored, *(_cell(curve.as_stored) for curve in self.curves))
        if self.threshold is not None:
            needed = (_needed(curve, self.threshold) for curve in self.curves)
            table.add_row(f"ratio for {self.threshold:g}", *needed)
        return table

    def record(self) -> dict[str, Any]:
        """Of evaluate.json: the methods, and what the policy does by itself."""
        methods = {
            curve.method: {
                "points": [asdict(point) for point in curve.points],
                "with_stored_lengths": asdict(curve.as_stored),
                "ratio_for_threshold": None if self.threshold is None else curve.needed(self.threshold),
            }
            for curve in self.curves
        }
        return {"methods": methods} | ({} if self.own is None else {"policy": asdict(self.own)})

    def files(self) -> dict[str, bytes]:
        """evaluate.csv, .svg and .png, by name; none where no method has an error."""
        if not self.curves:
            return {}
        sheet = io.StringIO()
        writer = csv.writer(sheet, lineterminator="\n")
        writer.writerow(["method", "asked", "ratio", "error", "standard_error", "clips"])
        for curve in self.curves:
            for point in [*(point for point in curve.points if point.asked is not None), curve.as_stored]:
                row = [curve.method, point.asked, point.ratio, point.error, point.standard_error, self.clips]
                writer.writerow(row)
        plot = draw_curves(
            [
                Panel(
                    f"{self.reconstructor.name} error ({self.reconstructor.units})",
                    [
                        PlottedSeries(self.names[c.method], list(map(_place, c.points)), _place(c.as_stored))
                        for c in self.curves
                    ],
                    None if self.threshold is None else (self.threshold, "threshold"),
                )
            ],
            sorted({point.asked for curve in self.curves for point in curve.points if point.asked is not None}),
            f"{self.dataset.url.name}: error at each gazing ratio, mean of {self.clips} clips",
            X_LABEL,
            (self.curves[0].as_stored.ratio, "stored"),
        )
        return {"evaluate.csv": sheet.getvalue().encode(), "evaluate.svg": plot.svg, "evaluate.png": plot.png}


X_LABEL = (
    "share of all patches that is gazed at (logarithmic)\n"
    "marks beside the lines: every frame has as many patches as in the stored gaze"
)


TOGETHER, ALONE = "together", "alone"


def rebuilt(reconstructor: Reconstructor) -> str:
    """How a clip's frames are rebuilt to be measured here. A VideoMAE's see each other, as in RL's rewards."""
    return TOGETHER if isinstance(reconstructor, VideoMAE) else ALONE


def percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def tell(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, however long."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _own_limits(own: OwnLimits) -> str:
    """One line: what the policy does where it ends frames itself."""
    text = f"the policy by itself: {percent(own.ratio)} of the patches, error {own.error:.4f}"
    if own.threshold is None:
        return text + " (its checkpoint names no threshold)"
    text += f"; it ends a frame where it predicts {own.threshold:g}, and predicts {own.predicted:.4f} on average"
    return text + ("" if own.met is None else f"; {own.met:.0%} of frames are measured at or under that")


def _needed(curve: Curve, threshold: float) -> str:
    """'3.1 %', '≤ 1 %' or '> 20 %'."""
    ratio = curve.needed(threshold)
    if ratio is None:
        return f"> {percent(curve.points[-1].ratio)}"
    return ("≤ " if curve.points[0].error <= threshold else "") + percent(ratio)


def _place(point: Point) -> tuple[float, float, float | None]:
    return point.ratio, point.error, point.standard_error


def _cell(point: Point) -> str:
    """'0.0512 ±0.0021', and the ratio where it differs from the column's."""
    text = f"{point.error:.4f}" + ("" if point.standard_error is None else f" ±{point.standard_error:.4f}")
    same = point.asked is None or abs(point.ratio / point.asked - 1) < 0.05
    return text if same else f"{text} at {percent(point.ratio)}"
