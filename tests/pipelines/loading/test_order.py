"""The order of samples: what an epoch holds, how it is cut, and that it never changes."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.loading import order as order_module
from pipelines.loading.order import (
    DatasetCounts,
    EpochOrder,
    Order,
    batch_places,
    batches,
    epoch_order,
    epoch_samples,
    rank_part,
)
from tests.pipelines.loading import plain_order

COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=20).filter(any).map(np.array)


def digest(order: Order) -> str:
    parts = (order.source, order.shard, order.sample, order.repeat)
    return hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()[:16]


def names(order: Order) -> list[tuple[int, int, int]]:
    return list(zip(order.source.tolist(), order.shard.tolist(), order.sample.tolist(), strict=True))


def every(sources: list[DatasetCounts]) -> list[tuple[int, int, int]]:
    return [(s, d, n) for s, source in enumerate(sources) for d, c in enumerate(source.counts) for n in range(c)]


def test_the_order_is_the_one_it_has_always_been() -> None:
    """A run that resumes relies on it. If this fails, the order changed: do not write down the new one."""
    counts = np.arange(40) % 9
    assert digest(epoch_order([DatasetCounts(counts)], seed=7, epoch=3, window=4)) == "fcdedbffc907d010"
    mixed = [DatasetCounts(counts), DatasetCounts(counts[::-1], 1.5), DatasetCounts(counts[:3], 0.5)]
    assert digest(epoch_order(mixed, seed=2**40, epoch=11, window=1)) == "31e116260ffc91f9"


@settings(deadline=None, max_examples=150)
@given(COUNTS, st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(1, 30))
def test_an_epoch_is_every_sample_once(counts: np.ndarray, seed: int, epoch: int, window: int) -> None:
    source = DatasetCounts(counts)
    order = epoch_order([source], seed=seed, epoch=epoch, window=window)
    assert sorted(names(order)) == every([source]) and not order.repeat.any()
    assert [part.dtype for part in (order.source, order.shard, order.sample, order.repeat)] == [
        np.int32, np.int32, np.int64, bool,
    ]  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 15))
def test_samples_stay_within_their_window_of_shards(shards: int, each: int, window: int) -> None:
    order = epoch_order([DatasetCounts(np.full(shards, each))], seed=5, epoch=1, window=window)
    for begin in range(0, len(order), window * each):
        held, many = np.unique(order.shard[begin : begin + window * each], return_counts=True)
        assert len(held) <= window and (many == each).all()


def test_epochs_seeds_and_sources_are_shuffled_differently_and_evenly() -> None:
    counts = np.full(64, 16)
    first = epoch_order([DatasetCounts(counts)], seed=0, epoch=0, window=8)
    for other in (
        epoch_order([DatasetCounts(counts)], seed=0, epoch=1, window=8),
        epoch_order([DatasetCounts(counts)], seed=1, epoch=0, window=8),
    ):
        assert (other.shard == first.shard).mean() < 0.1
    twins = epoch_order([DatasetCounts(counts), DatasetCounts(counts)], seed=0, epoch=0, window=8)
    one, two = (np.flatnonzero(twins.source == s) for s in (0, 1))
    assert (twins.shard[one] == twins.shard[two]).mean() < 0.1
    whole = epoch_order([DatasetCounts(counts)], seed=0, epoch=0, window=64)
    number = whole.shard * 16 + whole.sample
    assert abs(np.corrcoef(number, np.arange(1024))[0, 1]) < 0.1
    # Of 1024 neighbours two are of one shard 15 times in expectation, and always when nothing is shuffled.
    assert (np.diff(whole.shard) == 0).sum() < 40
    assert (np.diff(epoch_order([DatasetCounts(counts)], seed=0, epoch=0, window=1).shard) == 0).sum() == 64 * 15


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(COUNTS, st.sampled_from([0.1, 0.5, 1.0, 1.5, 3.0])), min_size=1, max_size=4),
    st.integers(0, 100),
)
def test_sources_appear_at_their_weight_all_along_and_use_their_samples_evenly(
    made: list[tuple[np.ndarray, float]], seed: int
) -> None:
    sources = [DatasetCounts(counts, weight) for counts, weight in made]
    taken = [max(1, round(s.weight * int(s.counts.sum()))) for s in sources]
    uses: dict[tuple[int, int, int], int] = dict.fromkeys(every(sources), 0)
    for epoch in range(4):
        order = epoch_order(sources, seed=seed, epoch=epoch, window=3)
        assert len(order) == sum(taken) == epoch_samples(sources)
        so_far = np.array([np.cumsum(order.source == s) for s in range(len(sources))])
        share = np.array(taken)[:, None] * np.arange(1, len(order) + 1) / len(order)
        assert np.abs(so_far - share).max() <= len(sources)
        met: set[tuple[int, int, int]] = set()
        for name, repeat in zip(names(order), order.repeat.tolist(), strict=True):
            assert repeat == (name in met)
            met.add(name)
            uses[name] += 1
        for s in range(len(sources)):
            counts = [n for name, n in uses.items() if name[0] == s]
            assert max(counts) - min(counts) <= 1


def test_every_rank_has_the_same_number_of_batches_and_their_union_is_the_epoch() -> None:
    for n, world in itertools.product(range(1, 201), range(1, 9)):
        order = epoch_order([DatasetCounts(np.array([n // 2, n - n // 2]))], seed=n, epoch=0, window=2)
        rows, repeat = batches(order, global_batch=8 * world)
        parts = [rank_part(rows, rank, world) for rank in range(world)]
        assert {part.shape for part in parts} == {(-(-n // (8 * world)), 8)}
        union = np.concatenate(parts, axis=1)
        np.testing.assert_array_equal(union, rows)
        np.testing.assert_array_equal(union.reshape(-1)[:n], np.arange(n))
        np.testing.assert_array_equal(union.reshape(-1)[n:], np.arange(rows.size - n) % n)  # from the beginning again
        assert repeat.sum() == rows.size - n and not repeat.reshape(-1)[:n].any()


def test_the_order_of_a_run_does_not_depend_on_the_number_of_ranks() -> None:
    order = epoch_order([DatasetCounts(np.full(9, 11)), DatasetCounts(np.full(3, 5), 2.0)], seed=3, epoch=5, window=4)
    rows = batches(order, global_batch=12).places
    orders = set()
    for world in (1, 2, 3, 4, 6, 12):
        trained = [rank_part(row, rank, world) for row in rows for rank in range(world)]
        orders.add(hashlib.sha256(np.concatenate(trained).tobytes()).hexdigest())
    assert len(orders) == 1


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda: rank_part(np.zeros((3, 10)), 0, 4), "global_batch=10: 4 ranks cannot share it evenly; use 8 or 12"),
        (lambda: rank_part(np.zeros((3, 3)), 0, 4), "global_batch=3: 4 ranks cannot share it evenly; use 4"),
        (lambda: rank_part(np.zeros((3, 8)), 4, 4), "rank=4: must be 0 to 3"),
        (
            lambda: epoch_order([DatasetCounts(np.array([3]), 0.0)], seed=0, epoch=0, window=1),
            "weights: that of dataset 1",
        ),
        (
            lambda: epoch_order([DatasetCounts(np.array([0]))], seed=0, epoch=0, window=1),
            "no dataset has a usable clip",
        ),
        (
            lambda: epoch_order([DatasetCounts(np.array([3]))], seed=0, epoch=0, window=0),
            "window=0: must be at least 1",
        ),
        (
            lambda: epoch_order([DatasetCounts(np.array([3]))], seed=-1, epoch=0, window=1),
            "seed=-1: must be at least 0",
        ),
    ],
)
def test_what_cannot_work_is_told_in_one_line(act: object, told: str) -> None:
    with pytest.raises(PipelineError) as error:
        act()  # type: ignore[operator]
    assert told in str(error.value) and "\n" not in str(error.value)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(COUNTS, st.sampled_from([0.1, 0.5, 0.7, 1.0, 1.5, 3.0])), min_size=1, max_size=4),
    st.integers(0, 2**63 - 1),
    st.integers(0, 50),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_any_stretch_of_an_epoch_is_that_of_the_whole_order_written_out(
    made: list[tuple[np.ndarray, float]], seed: int, epoch: int, window: int, chance: random.Random
) -> None:
    plain = plain_order.epoch_order(
        [plain_order.DatasetCounts(*one) for one in made], seed=seed, epoch=epoch, window=window
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "_CHUNK", 5)
        order = EpochOrder([DatasetCounts(*one) for one in made], seed=seed, epoch=epoch, window=window)
        begin = chance.randrange(len(plain))
        end = chance.randrange(begin, len(plain)) + 1
        places = np.array([*range(begin, end), *range(min(3, begin)), chance.randrange(len(plain))])
        for part, wanted in (
            (order.stretch(0, len(order)), np.arange(len(plain))),
            (order.at(places), places),
            (order.stretch(begin, end), np.arange(begin, end)),
        ):
            for name in ("source", "shard", "sample", "repeat"):
                np.testing.assert_array_equal(getattr(part, name), getattr(plain, name)[wanted])


def test_a_rank_finds_its_part_of_a_batch_without_the_others() -> None:
    order = epoch_order([DatasetCounts(np.array([9, 4]))], seed=1, epoch=0, window=2)
    cut = batches(order, global_batch=6)
    for step, rank in itertools.product(range(3), range(2)):
        mine = batch_places(len(order), step, global_batch=6, rank=rank, world=2)
        np.testing.assert_array_equal(mine.places, rank_part(cut.places[step], rank, 2))
        np.testing.assert_array_equal(mine.repeat, rank_part(cut.repeat[step], rank, 2))
