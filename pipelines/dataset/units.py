"""What errors and thresholds measure: the units that datasets and reconstructors name, and whether two of them fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import PipelineError
from pipelines.gazing.policy import UNITS as PREDICTED

CANVAS = "mean absolute difference of RGB, as a share of 255"
"""Those of the canvas, which all datasets of format 1 have without saying so."""


def units_of(about: Mapping[str, Any]) -> str:
    """The units of a dataset's errors and threshold. about: its dataset.json."""
    return str(about.get("units", CANVAS))


def units_fit(one: str, other: str) -> bool:
    """Whether numbers in these units may be compared, mixed, or held against each other's threshold.

    What a policy predicts fits nothing that was measured: its checkpoint does not say what it was trained to predict.
    """
    return one == other


def are_predicted(units: str) -> bool:
    """Whether errors in these units are a policy's predictions, not measured."""
    return units_fit(units, PREDICTED)


def require_one_units(places: Sequence[str], abouts: Sequence[Mapping[str, Any]]) -> str:
    """The units of datasets whose errors are learned from together. Raises PipelineError where they differ.

    places, abouts: where each dataset is, and its dataset.json.
    """
    first = units_of(abouts[0])
    for place, about in zip(places[1:], abouts[1:], strict=True):
        if not units_fit(first, units_of(about)):
            raise PipelineError(
                f"data: the errors of {places[0]} and {place} are in different units ({first}; {units_of(about)}), and "
                "one policy cannot learn both; measure one anew: autogaze import-labels ... measure="
            )
    return first
