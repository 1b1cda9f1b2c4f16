"""Simulated machines against what can be computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sizing.machines import ClipCost, Machine, PieceCost, endless, simulate

FREE = ClipCost(jpeg=0.0, search=0.0, write=0.0, shard=0.0, stored=0.0)
NODE = Machine(
    cores=64,
    actors=1,
    decoders=4,
    gazers=1,
    on_cores=True,
    batch=32,
    window=10**9,
    at_once=2,
    in_flight=3,
    bytes_per_s=1e9,
)


def shards(count: int, pieces: int, clips: int = 32, decode: float = 1.0, fetched: float = 0.0) -> list:
    numbers = iter(range(10**9))
    return [
        tuple(PieceCost(next(numbers), clips, 16 * clips, decode, fetched) for _ in range(pieces)) for _ in range(count)
    ]


@pytest.mark.parametrize(("decoders", "pieces", "rounds"), [(1, 6, 6), (4, 6, 2), (4, 8, 2), (8, 6, 1)])
def test_decoders_that_each_have_a_core_take_rounds(decoders: int, pieces: int, rounds: int) -> None:
    trace = simulate(replace(NODE, decoders=decoders), 1, shards(1, pieces), FREE)
    assert trace.now == pytest.approx(rounds)
    assert trace.busy["decode"] == pytest.approx(pieces)


def test_more_decoders_than_cores_share_the_cores() -> None:
    trace = simulate(replace(NODE, cores=2, decoders=8), 1, shards(4, 8), FREE)
    assert trace.now == pytest.approx(16, abs=0.2)


def test_a_slow_gpu_is_busy_from_the_first_piece_to_the_end() -> None:
    clip = replace(FREE, search=0.05)
    trace = simulate(replace(NODE, on_cores=False), 1, shards(5, 10), clip)
    assert trace.now == pytest.approx(1 + 5 * 10 * 32 * 0.05)
    assert trace.busy["gazers"] == pytest.approx(5 * 10 * 32 * 0.05)


def test_a_slow_line_is_what_a_job_waits_for() -> None:
    trace = simulate(replace(NODE, bytes_per_s=100e6), 1, shards(4, 5, fetched=800e6), FREE)
    assert trace.now == pytest.approx(4 * 5 * 8 + 1, rel=0.02)
    sent = simulate(replace(NODE, bytes_per_s=100e6), 1, shards(4, 5), replace(FREE, stored=10e6))
    assert sent.now == pytest.approx(4 * 5 * 32 * 10e6 / 100e6 + 2, rel=0.02)


def test_the_next_shard_is_decoded_while_one_is_sent() -> None:
    """Nothing is lost at the end of a shard: only the last one's upload is waited for."""
    trace = simulate(replace(NODE, bytes_per_s=10e6), 1, shards(6, 16), replace(FREE, stored=1e4))
    assert trace.now == pytest.approx(6 * 4 + 16 * 32 * 1e4 / 10e6, rel=0.03)


def test_a_full_window_keeps_decoders_from_working_ahead() -> None:
    clip, node, jobs = replace(FREE, search=0.25), replace(NODE, on_cores=False), shards(1, 4, decode=20)
    assert simulate(node, 1, jobs, clip).now == pytest.approx(20 + 4 * 32 * 0.25)  # all four at once
    assert simulate(replace(node, window=512), 1, jobs, clip).now == pytest.approx(4 * 20 + 32 * 0.25)  # one by one


def test_a_video_of_several_pieces_is_fetched_once_by_a_node() -> None:
    pieces = [PieceCost(number // 3, 32, 512, 1.0, 1e6) for number in range(12)]
    jobs = [tuple(pieces[:5]), tuple(pieces[5:])]  # the second video lies in both
    assert simulate(NODE, 1, jobs, FREE).fetches == 4
    assert simulate(NODE, 2, jobs, FREE).fetches == 5


costs = st.floats(0.01, 3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 40), costs), min_size=1, max_size=5), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    costs,
)
def test_every_shard_is_made_once_and_no_sooner_than_it_can(
    jobs: list, nodes: int, actors: int, cores: int, search: float
) -> None:
    node = replace(NODE, cores=cores, actors=actors, decoders=2, window=2 * 640)
    made = [tuple(PieceCost(0, clips, 16 * clips, decode, 0.0) for clips, decode in job) for job in jobs]
    clip = replace(FREE, search=search / 32, write=0.001)
    trace = simulate(node, nodes, made, clip)
    assert sorted(shard for _, shard, _ in trace.commits) == list(range(len(jobs)))
    assert trace.clips == sum(clips for job in jobs for clips, _ in job)
    work = sum(decode + clips * (clip.search + clip.write) for job in jobs for clips, decode in job)
    assert sum(trace.busy[part] for part in ("decode", "search", "write")) == pytest.approx(work)
    assert work / (cores * nodes) - 1e-9 <= trace.now <= work + 1e-6


def test_a_simulation_ends_when_enough_is_committed() -> None:
    trace = simulate(NODE, 1, endless(shards(2, 4)), FREE, lambda trace: len(trace.commits) == 7)
    assert len(trace.commits) == 7 and trace.now == pytest.approx(7)


def test_each_decoder_starts_once() -> None:
    trace = simulate(replace(NODE, decoders=3), 1, shards(2, 9), replace(FREE, start=2.0))
    assert trace.busy["decode"] == pytest.approx(18 + 3 * 2)
    assert trace.now == pytest.approx(6 + 2)


def test_what_runs_beside_the_actors_has_its_share_of_the_cores() -> None:
    node = replace(NODE, cores=2, decoders=2, beside=0.5)
    trace = simulate(node, 1, shards(4, 8), FREE)
    assert trace.busy["Ray"] / trace.now == pytest.approx(0.5, rel=0.1)
    assert trace.now == pytest.approx(32 / 1.5, rel=0.05)
