"""Which sample is trained when: numpy in, numpy out, a pure function of (seed, epoch, counts, window, global batch).

    order = EpochOrder([DatasetCounts(counts)], seed=0, epoch=3, window=16)
    mine = batch_places(len(order), step, global_batch=256, rank=1, world=4)   # places in the epoch of one rank's part
    part = order.at(mine.places)                                               # the samples that are there

What an epoch is. A source is an endless stream of passes. Each pass holds every sample once, shuffled anew: first the
shards, then the samples within each window of shards. Epoch e takes the next `round(weight * samples)` samples of that
stream. So with weight 1 an epoch is every sample exactly once; with 0.5 one epoch is half of them and the next is the
other half; with 2 an epoch is everything twice. Whatever the weight, no sample is used an (n+1)-th time before all
samples were used n times.

Several sources are interleaved evenly: the k-th of a source's n samples stands at (k + 1/2) / n of the epoch, so that
any stretch of the epoch holds the sources in the proportions of the whole.

Any stretch of an epoch is computed by itself, from the windows that it touches: what is kept is the order of the shards
(some 30 bytes a shard), and never that of the samples.

Randomness is the raw output of Philox, which numpy promises never to change; its shuffles may change. Philox counts, so
a window's random numbers are there without those before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from pipelines.errors import PipelineError

_CHUNK = 1 << 15  # samples, about, that several sources are merged in at a time
_KEPT = 4  # windows, passes and merged chunks that are kept
T = TypeVar("T")


@dataclass(frozen=True)
class DatasetCounts:
    """One dataset: `counts` int64 [shards], the usable samples of each shard, and how often an epoch uses each."""

    counts: np.ndarray
    weight: float = 1.0

    @cached_property
    def samples(self) -> int:
        """Usable samples of all shards."""
        return int(self.counts.sum())

    @property
    def taken(self) -> int:
        """Samples that an epoch takes."""
        return max(1, round(self.weight * self.samples)) if self.samples else 0


@dataclass(frozen=True)
class Order:
    """A stretch of an epoch, in order.

    source int32 [N], shard int32 [N], sample int64 [N] (place among the shard's usable samples), and repeat bool [N]:
    the epoch has had this sample before.
    """

    source: np.ndarray
    shard: np.ndarray
    sample: np.ndarray
    repeat: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, places: np.ndarray | slice) -> Order:
        """The samples at some places of it."""
        return Order(self.source[places], self.shard[places], self.sample[places], self.repeat[places])


class Batches(NamedTuple):
    """An epoch cut into global batches: `places` int64 [steps, G] in the order; `repeat` bool [steps, G]."""

    places: np.ndarray
    repeat: np.ndarray


def epoch_samples(sources: Sequence[DatasetCounts]) -> int:
    """How many samples an epoch has. Raises PipelineError for a weight that is not positive, or without samples."""
    for number, source in enumerate(sources):
        if not 0 < source.weight < math.inf:
            raise PipelineError(f"weights: that of dataset {number + 1} is {source.weight}; it must be more than 0")
    total = sum(source.taken for source in sources)
    if not total:
        raise PipelineError("there is no sample to put in order: no dataset has a usable clip")
    return total


class EpochOrder:
    """The order of an epoch (from 0), any stretch of which can be asked for.

    window: how many shards, neighbours in the shuffled order, have their samples shuffled together.
    Raises PipelineError for a value out of range.
    """

    def __init__(self, sources: Sequence[DatasetCounts], *, seed: int, epoch: int, window: int) -> None:
        for name, value, least in (("seed", seed, 0), ("epoch", epoch, 0), ("window", window, 1)):
            if not least <= value < 1 << 63:
                raise PipelineError(f"{name}={value}: must be at least {least}, and less than 2**63")
        self._samples = epoch_samples(sources)
        self._stretches = [_Stretch(source, number, seed, epoch, window) for number, source in enumerate(sources)]
        self._merged: _Kept[Order] = _Kept()

    def __len__(self) -> int:
        return self._samples

    def at(self, places: np.ndarray) -> Order:
        """The samples at some places of the epoch, int64 [n]: fast where neighbours follow one another."""
        begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        ends = [*begins[1:].tolist(), len(places)]
        parts = [self.stretch(int(places[b]), int(places[e - 1]) + 1) for b, e in zip(begins, ends, strict=True)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def stretch(self, begin: int, end: int) -> Order:
        """The samples at places `begin` to `end` of the epoch."""
        if len(self._stretches) == 1:
            return self._stretches[0].part(begin, end)
        chunks = self._chunks
        first, last = (int(np.searchsorted(chunks, at, "right")) - 1 for at in (begin, max(end - 1, begin)))
        merged = [self._merged.get(chunk, lambda chunk=chunk: self._chunk(chunk)) for chunk in range(first, last + 1)]  # type: ignore[misc]
        return _joined(merged).take(slice(begin - int(chunks[first]), end - int(chunks[first])))

    @cached_property
    def _cuts(self) -> np.ndarray:
        """Samples of each source that are due before each chunk of the epoch: int64 [sources, chunks + 1]."""
        at = np.linspace(0.0, 1.0, self._samples // _CHUNK + 2)
        return np.stack([_due_before(one.taken, at) for one in self._stretches])

    @cached_property
    def _chunks(self) -> np.ndarray:
        """The place in the epoch at which each chunk begins, and the end: int64 [chunks + 1]."""
        places: np.ndarray = self._cuts.sum(axis=0)
        return places

    def _chunk(self, number: int) -> Order:
        spans = [(int(cut[number]), int(cut[number + 1])) for cut in self._cuts]
        parts = [one.part(*span) for one, span in zip(self._stretches, spans, strict=True)]
        due = [_due(np.arange(*span), one.taken) for one, span in zip(self._stretches, spans, strict=True)]
        return _joined(parts).take(np.argsort(np.concatenate(due), kind="stable"))


def epoch_order(sources: Sequence[DatasetCounts], *, seed: int, epoch: int, window: int) -> Order:
    """All of an epoch's order at once, some 17 bytes a sample: see EpochOrder."""
    order = EpochOrder(sources, seed=seed, epoch=epoch, window=window)
    return order.stretch(0, len(order))


def batches(order: Order, *, global_batch: int) -> Batches:
    """Cut an epoch into global batches of `global_batch` samples. The last one is filled up from the epoch's beginning.

    What fills it up is marked as repeats. Raises PipelineError for a global_batch under 1.
    """
    places, wrapped = _cut(len(order), 0, -(-len(order) // max(global_batch, 1)), global_batch)
    return Batches(places, order.repeat[places] | wrapped)


def batch_places(samples: int, step: int, *, global_batch: int, rank: int = 0, world: int = 1) -> Batches:
    """What one rank takes of one global batch of an epoch of `samples`: places int64 [G / world].

    repeat: which of them fill up the last batch from the epoch's beginning. Raises as `batches` and `rank_part` do.
    """
    places, wrapped = _cut(samples, step, step + 1, global_batch)
    return Batches(rank_part(places[0], rank, world), rank_part(wrapped[0], rank, world))


def _cut(samples: int, first: int, end: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of global batches `first` to `end`, int64 [steps, G], and which of them come from the beginning again."""
    if global_batch < 1:
        raise PipelineError(f"global_batch={global_batch}: must be at least 1")
    flat = np.arange(first * global_batch, end * global_batch, dtype=np.int64).reshape(end - first, global_batch)
    return flat % samples, flat >= samples


def rank_part(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """What one rank takes of global batches [..., G]: [..., G / world]. The ranks' parts, side by side, are the batch.

    Raises PipelineError when the batch cannot be shared evenly.
    """
    if not 0 <= rank < world:
        raise PipelineError(f"rank={rank}: must be 0 to {world - 1}, the ranks of a world of {world}")
    global_batch = rows.shape[-1]
    share, left = divmod(global_batch, world)
    if left:
        nearest = " or ".join(str(n) for n in (share * world, (share + 1) * world) if n)
        raise PipelineError(f"global_batch={global_batch}: {world} ranks cannot share it evenly; use {nearest}")
    return rows[..., rank * share : (rank + 1) * share]


def _due(number: np.ndarray, taken: int) -> np.ndarray:
    """Where samples of a source stand in an epoch that takes `taken` of it: 0 is its beginning, 1 its end."""
    due: np.ndarray = (number + 0.5) / max(taken, 1)
    return due


def _due_before(taken: int, at: np.ndarray) -> np.ndarray:
    """How many samples of a source are due before each of some moments: int64. Exact, as `_due` rounds."""
    count = np.clip(np.floor(at * taken - 0.5).astype(np.int64), 0, taken)
    for _ in range(3):  # the estimate is off by two at most
        count += (count < taken) & (_due(count, taken) < at)
    for _ in range(3):
        count -= (count > 0) & (_due(count - 1, taken) >= at)
    return count


class _Kept(OrderedDict[Hashable, T]):
    """The few values that were used last."""

    def get(self, key: Hashable, make: Callable[[], T]) -> T:  # type: ignore[override]
        if key not in self:
            self[key] = make()
            while len(self) > _KEPT:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


class _Pass:
    """One shuffle of a source: where each shard comes, and the samples of each window."""

    def __init__(self, counts: np.ndarray, source: int, seed: int, turn: int, window: int) -> None:
        self._key, self._counter = np.array([seed, turn], np.uint64), np.array([0, 0, 0, source], np.uint64)
        self.window = window
        self.shards = np.argsort(self._random(0, len(counts)), kind="stable").astype(np.int32)
        self._held = counts
        ends = np.cumsum(counts[self.shards])
        # Where each window begins, and the last one ends: int64 [windows + 1].
        self.begins = np.append(0, ends[[*range(window - 1, len(ends) - 1, window), len(ends) - 1]])
        self._kept: _Kept[tuple[np.ndarray, np.ndarray]] = _Kept()

    @cached_property
    def window_of(self) -> np.ndarray:
        """The window that each shard is in: int32 [shards]."""
        windows = np.empty(len(self.shards), np.int32)
        windows[self.shards] = np.arange(len(self.shards)) // self.window
        return windows

    def samples_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a window, in order: shard int32 [n] and sample int64 [n]."""
        return self._kept.get(number, lambda: self._shuffled(number))

    def _shuffled(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        shards = self.shards[number * self.window : (number + 1) * self.window]
        held = self._held[shards]
        shard = np.repeat(shards, held)
        sample = np.arange(len(shard), dtype=np.int64) - np.repeat(np.cumsum(held) - held, held)
        # The high bits make room for the window's number, by which a whole pass could be sorted at once.
        width = np.uint64(max((len(self.begins) - 2).bit_length(), 1))
        keys = self._random(len(self.shards) + int(self.begins[number]), len(shard)) >> width
        mixed = np.argsort(keys, kind="stable")
        return shard[mixed], sample[mixed]

    def _random(self, begin: int, count: int) -> np.ndarray:
        """Words `begin` to `begin + count` of the pass's random numbers: uint64 [count]."""
        bits = np.random.Philox(key=self._key, counter=self._counter)
        bits.advance(begin // 4)  # which gives four words at a time
        bits.random_raw(begin % 4)
        words: np.ndarray = bits.random_raw(count)
        return words


class _Stretch:
    """One source's part of an epoch: a stretch of its endless stream of passes."""

    def __init__(self, source: DatasetCounts, number: int, seed: int, epoch: int, window: int) -> None:
        self._counts, self._number, self._seed, self._window = source.counts, number, seed, window
        self._samples, self.taken = source.samples, source.taken
        self._begin = epoch * self.taken
        self._passes: _Kept[_Pass] = _Kept()

    def part(self, begin: int, end: int) -> Order:
        """Its samples number `begin` to `end`."""
        parts = [Order(*(np.zeros(0, kind) for kind in (np.int32, np.int32, np.int64, bool)))]
        at, end = self._begin + begin, self._begin + end
        while at < end:
            turn, within = divmod(at, self._samples)
            until = min(end - turn * self._samples, self._samples)
            shard, sample = self._of_pass(turn, within, until)
            repeat = self._had(turn, shard, sample)
            parts.append(Order(np.full(len(shard), self._number, np.int32), shard, sample, repeat))
            at = turn * self._samples + until
        return _joined(parts)

    def _pass(self, turn: int) -> _Pass:
        return self._passes.get(turn, lambda: _Pass(self._counts, self._number, self._seed, turn, self._window))

    def _of_pass(self, turn: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards and samples at places `begin` to `end` of a pass."""
        one = self._pass(turn)
        first = int(np.searchsorted(one.begins, begin, "right")) - 1
        last = int(np.searchsorted(one.begins, end, "left"))
        windows = [one.samples_of(number) for number in range(first, last)]
        shard, sample = (np.concatenate(parts) for parts in zip(*windows, strict=True))
        within = slice(begin - int(one.begins[first]), end - int(one.begins[first]))
        return shard[within], sample[within]

    def _had(self, turn: int, shard: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """Which samples of a pass the epoch has had before, in an earlier pass that it begins in or holds."""
        first, skipped = divmod(self._begin, self._samples)
        if turn == first:
            return np.zeros(len(shard), bool)
        if turn > first + 1 or not skipped:  # a whole pass lies before
            return np.ones(len(shard), bool)
        one = self._pass(first)
        edge = int(np.searchsorted(one.begins, skipped, "right")) - 1  # the window in which the epoch begins
        had: np.ndarray = one.window_of[shard] > edge
        shards, samples = (part[skipped - int(one.begins[edge]) :] for part in one.samples_of(edge))
        at_edge = one.window_of[shard] == edge
        most = int(self._counts.max())
        had[at_edge] = np.isin(
            shard[at_edge].astype(np.int64) * most + sample[at_edge], shards.astype(np.int64) * most + samples
        )
        return had


def _joined(parts: Sequence[Order]) -> Order:
    if len(parts) == 1:
        return parts[0]
    return Order(*(np.concatenate([getattr(part, name) for part in parts]) for name in Order.__dataclass_fields__))
