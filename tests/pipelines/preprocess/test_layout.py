"""Decoders and gazers become actors that fit on the nodes there are."""

from __future__ import annotations

import pytest

from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.layout import Layout, NodeRoom, Wanted, lay_out
from pipelines.preprocess.workers import share_workers


@pytest.mark.parametrize(
    ("nodes", "shards", "expected"),
    [
        ([NodeRoom(2)], 100, (1, 2, 1)),
        ([NodeRoom(64)], 100, (32, 2, 1)),
        ([NodeRoom(15)] * 2, 100, (14, 2, 1)),
        ([NodeRoom(3)] * 3, 100, (3, 3, 1)),
        ([NodeRoom(64)], 1, (1, 64, 32)),  # all of a node works at the only shard
        ([NodeRoom(2)] * 3, 100, (3, 2, 1)),
        ([NodeRoom(1)] * 4, 100, (4, 1, 1)),  # a decoder and a gazer take turns
    ],
)
def test_canvas_on_cpus(nodes: list[NodeRoom], shards: int, expected: tuple[int, int, int]) -> None:
    cpus = int(sum(node.cpus for node in nodes))
    layout = lay_out(share_workers(PreprocessConfig(), cpus, 0, len(nodes)).wanted, shards, nodes)
    assert (layout.actors, layout.decoders, layout.gazers) == expected
    require_room(layout, nodes)


def test_a_gpu_has_an_actor_with_its_share_of_the_decoders() -> None:
    nodes = [NodeRoom(128, 8)] * 2
    layout = lay_out(share_workers(PreprocessConfig(), 256, 16, 2).wanted, 1000, nodes)
    assert layout == Layout(16, 16, 1, 12.0, 1.0)
    require_room(layout, nodes)
    few = lay_out(share_workers(PreprocessConfig(), 256, 16, 2).wanted, 2, nodes)
    assert (few.actors, few.gazers) == (2, 1) and few.decoders > 100
    require_room(few, nodes)


def test_nodes_of_several_kinds_hold_what_is_asked_for() -> None:
    nodes = [NodeRoom(16, 4), NodeRoom(64), NodeRoom(8)]
    for shards in (1, 3, 1000):
        for wanted in (Wanted(88, 22, 77.0), Wanted(88, 4, 66.0, 4.0, on_gpu=True), Wanted(11, 88, 71.5)):
            layout = lay_out(wanted, shards, nodes)
            assert 1 <= layout.actors <= shards
            require_room(layout, nodes)


def require_room(layout: Layout, nodes: list[NodeRoom]) -> None:
    """Ray would wait for ever for an actor that has no place."""
    places = sum(
        min(int(node.cpus / layout.cpus + 1e-9), int(node.gpus / layout.gpus) if layout.gpus else 10**6)
        for node in nodes
    )
    assert layout.actors <= places, layout
