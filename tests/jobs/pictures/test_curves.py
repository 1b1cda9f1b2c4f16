"""The plot of evaluate: what a reader must be able to see."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from jobs.pictures.curves import Panel, PlottedSeries, draw_curves

POINTS = [(0.01, 0.1, None), (0.1, 0.02, None)]


def texts(svg: bytes) -> list[str]:
    tree = ElementTree.fromstring(svg.decode())
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_the_stored_ratio_has_a_tick_that_others_make_room_for() -> None:
    one = PlottedSeries("stored", POINTS, (0.0312, 0.05, None))
    shown = texts(draw_curves([Panel("y", [one])], [0.01, 0.03, 0.1], "t", "x", (0.0312, "stored")).svg)
    assert "3.12 %" in shown and "1 %" in shown and "10 %" in shown
    assert "3 %" not in shown, "its label would lie under that of the stored ratio"


def test_lines_that_lie_on_each_other_differ_in_their_dashes() -> None:
    both = [PlottedSeries(name, POINTS, (0.03, 0.05, None)) for name in ("stored", "greedy")]
    svg = draw_curves([Panel("y", both)], [0.01, 0.1], "t", "x").svg.decode()
    one = draw_curves([Panel("y", both[:1])], [0.01, 0.1], "t", "x").svg.decode()
    assert svg.count("stroke-dasharray") > 0
    assert svg.count("stroke-dasharray") == one.count("stroke-dasharray"), "the lower of two lines is solid"
