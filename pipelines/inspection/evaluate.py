"""Error against gazing ratio: how far frames that are rebuilt from each method's patches are from the frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.inspection.gazes import Chooser
from pipelines.inspection.reading import ClipBatch


@dataclass(frozen=True)
class Point:
    """One method at one ratio.

    Attributes:
        asked: the ratio asked for; None: each frame has as many patches as in the stored gaze.
        ratio: gazed patches over all patches, mean over clips. Below `asked` where a stored gaze has fewer patches.
        error: mean over frames and clips.
        standard_error: of that mean, over clips; None for a single clip.
    """

    asked: float | None
    ratio: float
    error: float
    standard_error: float | None


@dataclass(frozen=True)
class Curve:
    """One method: its points by rising ratio, and `as_stored`, the point with the lengths of the stored gaze.

    For the stored gaze that is its last point. For the other methods it is no point of the curve: with lengths that
    suit each clip they reach another error than with equal ones.
    """

    method: str
    points: list[Point]
    as_stored: Point

    def needed(self, error: float) -> float | None:
        """The ratio at which the curve comes down to an error; between two points error is linear in log(ratio).

        The first point's ratio if its error is low enough; None if no point's is.
        """
        for place, point in enumerate(self.points):
            if point.error <= error:
                if place == 0:
                    return point.ratio
                before = self.points[place - 1]
                share = (before.error - error) / (before.error - point.error)
                between: float = before.ratio * (point.ratio / before.ratio) ** share
                return between
        return None


class ErrorMeasure:
    """Adds up the reconstruction errors of methods at ratios, batch after batch."""

    def __init__(self, chooser: Chooser, ratios: Sequence[float], methods: Sequence[str]) -> None:
        """ratios: gazing ratios in (0, 1]. methods: names of METHODS, or POLICY."""
        self._chooser, self._ratios, self._methods = chooser, sorted(set(ratios)), list(methods)
        # (ratio, error) of each clip, by method and ratio asked for.
        asked = itertools.product(self._methods, [*self._ratios, None])
        self._measured: dict[tuple[str, float | None], list[tuple[float, float]]] = {key: [] for key in asked}

    def add(self, batch: ClipBatch) -> None:
        """Measure some clips."""
        chooser = self._chooser
        chooser.begin(batch)
        for (method, ratio), found in self._measured.items():
            gaze = chooser.gaze(method, ratio).gaze
            errors = chooser.reconstructor.reconstruct(chooser.frames, gaze).error.double().mean(dim=1)
            found += zip(gaze.ratio().tolist(), errors.tolist(), strict=True)

    def curves(self) -> list[Curve]:
        """The curve of each method over the clips so far."""
        curves = []
        for name in self._methods:
            whole = self._measured[name, None]
            points = [_point(ratio, self._measured[name, ratio]) for ratio in self._ratios]
            if name == "stored":
                # A ratio at which no stored gaze was cut is the point of the whole gaze once more.
                points = [point for point in points if self._measured[name, point.asked] != whole]
                points.append(_point(None, whole))
            curves.append(Curve(name, points, _point(None, whole)))
        return curves


def _point(asked: float | None, values: Sequence[tuple[float, float]]) -> Point:
    ratios, errors = np.array(values).T
    return Point(asked, float(ratios.mean()), float(errors.mean()), standard_error(errors))


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of values [N]; None for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
