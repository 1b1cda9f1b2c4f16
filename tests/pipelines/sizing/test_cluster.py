"""Shards over actors, against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sizing.cluster import schedule_shards


@pytest.mark.parametrize(("shards", "nodes", "actors"), [(7, 1, 1), (100, 2, 8), (6_000, 1000, 2000), (9, 4, 16)])
def test_equal_shards_take_rounds(shards: int, nodes: int, actors: int) -> None:
    found = schedule_shards([2.0] * shards, shards, nodes, actors, in_flight=3)
    assert found.seconds == pytest.approx(2 * -(-shards // min(actors, shards)))
    assert set(found.node.tolist()) == set(range(min(nodes, shards)))


def test_a_shard_that_waits_at_a_busy_actor_stays_there() -> None:
    """Ray Data gives an actor its next shards ahead: nobody else takes them, however idle."""
    slow = [10.0, 1.0, 1.0, 1.0]  # the third waits behind the first
    assert schedule_shards(slow, 4, 1, 2, in_flight=1).seconds == 10
    assert schedule_shards(slow, 4, 1, 2, in_flight=2).seconds == 11


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 3))
def test_every_shard_is_made_once_between_what_is_possible_and_what_lists_allow(
    seconds: list[float], actors: int, in_flight: int
) -> None:
    found = schedule_shards(seconds, len(seconds), 1, actors, in_flight)
    assert (found.ends > 0).all() and len(found.ends) == len(seconds)
    for worker in range(actors):
        mine = found.worker == worker
        assert found.ends[mine].max(initial=0.0) == pytest.approx(np.array(seconds)[mine].sum())
    assert found.seconds >= max(sum(seconds) / actors, max(seconds)) - 1e-9
    assert found.seconds <= sum(seconds) / actors + in_flight * max(seconds) + 1e-9


def test_a_thousand_nodes_keep_to_the_bounds_of_a_list() -> None:
    """Shards of different sizes on 4,000 actors: no sooner than the work allows, no later than one queue at each."""
    seconds, actors = np.random.default_rng(0).gamma(4, 15, 10_000), 4000
    found = schedule_shards(seconds.tolist(), len(seconds), 1000, actors, in_flight=3)
    least = seconds.sum() / actors
    assert least <= found.seconds <= least + 3 * seconds.max()
    assert found.last_of_workers().mean() <= found.seconds
