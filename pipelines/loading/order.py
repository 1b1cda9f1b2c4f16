"""Which sample is trained when: numpy in, numpy out, a pure function of (seed, epoch, counts, window, global batch).

    order = epoch_order([Source(counts)], seed=0, epoch=3, window=16)   # every sample of the epoch, in order
    rows = batches(order, global_batch=256)                             # the same cut into global batches
    mine = rank_part(rows.places, rank=1, world=4)                      # what one rank takes of each

What an epoch is. A source is an endless stream of passes; each pass holds every sample once, shuffled anew: its shards,
then the samples within each window of shards. Epoch e takes the next `round(weight * samples)` of that stream. So with
weight 1 an epoch is every sample exactly once; with 0.5 one epoch is half of them and the next the other half; with 2
an epoch is everything twice. Whatever the weight, no sample is used an (n+1)-th time before all were used n times.

Several sources are interleaved evenly: the k-th of a source's n samples stands at (k + 1/2) / n of the epoch, so that
any stretch of the epoch holds the sources in the proportions of the whole.

Randomness is the raw output of Philox, which numpy keeps the same for ever; its shuffles it may change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.errors import PipelineError


@dataclass(frozen=True)
class DatasetCounts:
    """One dataset: `counts` int64 [shards], the usable samples of each shard, and how often an epoch uses each."""

    counts: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Order:
    """The samples of one epoch, in order.

    source int32 [N], shard int32 [N], sample int64 [N] (place among the shard's usable samples), and repeat bool [N]:
    the epoch has had this sample before.
    """

    source: np.ndarray
    shard: np.ndarray
    sample: np.ndarray
    repeat: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)


class Batches(NamedTuple):
    """An epoch cut into global batches: `places` int64 [steps, G] in the order; `repeat` bool [steps, G]."""

    places: np.ndarray
    repeat: np.ndarray


def epoch_samples(sources: Sequence[DatasetCounts]) -> int:
    """How many samples an epoch has. Raises PipelineError for a weight that is not positive, or without samples."""
    for number, source in enumerate(sources):
        if not 0 < source.weight < math.inf:
            raise PipelineError(f"weights: that of dataset {number + 1} is {source.weight}; it must be more than 0")
    total = sum(_taken(source) for source in sources)
    if not total:
        raise PipelineError("there is no sample to put in order: no dataset has a usable clip")
    return total


def epoch_order(sources: Sequence[DatasetCounts], *, seed: int, epoch: int, window: int) -> Order:
    """The order of an epoch (from 0); see above.

    window: how many shards, neighbours in the shuffled order, have their samples shuffled together.
    Raises PipelineError for a value out of range.
    """
    for name, value, least in (("seed", seed, 0), ("epoch", epoch, 0), ("window", window, 1)):
        if not least <= value < 1 << 63:
            raise PipelineError(f"{name}={value}: must be at least {least}, and less than 2**63")
    epoch_samples(sources)
    parts = [_stretch(source, number, seed, epoch, window) for number, source in enumerate(sources)]
    if len(parts) == 1:
        return parts[0]
    due = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts])
    mixed = np.argsort(due, kind="stable")
    names = ("source", "shard", "sample", "repeat")
    return Order(*(np.concatenate([getattr(part, name) for part in parts])[mixed] for name in names))


def batches(order: Order, *, global_batch: int) -> Batches:
    """Cut an epoch into global batches of `global_batch` samples. The last is completed from the epoch's beginning.

    What completes it is marked as repeats. Raises PipelineError for a global_batch under 1.
    """
    if global_batch < 1:
        raise PipelineError(f"global_batch={global_batch}: must be at least 1")
    steps = -(-len(order) // global_batch)
    flat = np.arange(steps * global_batch, dtype=np.int64)
    wrapped = flat >= len(order)
    flat %= len(order)
    shape = (steps, global_batch)
    return Batches(flat.reshape(shape), (order.repeat[flat] | wrapped).reshape(shape))


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


def _taken(source: DatasetCounts) -> int:
    samples = int(source.counts.sum())
    return max(1, round(source.weight * samples)) if samples else 0


def _stretch(source: DatasetCounts, number: int, seed: int, epoch: int, window: int) -> Order:
    """What one source gives to an epoch: a stretch of its endless stream of passes."""
    samples, taken = int(source.counts.sum()), _taken(source)
    shards, places = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    begin = epoch * taken
    end = begin + taken
    for turn in range(begin // samples, -(-end // samples)) if samples else ():
        part = slice(max(begin - turn * samples, 0), min(end - turn * samples, samples))
        shard, sample = _one_pass(source.counts, number, seed, turn, window)
        shards.append(shard[part])
        places.append(sample[part])
    shard, sample = np.concatenate(shards), np.concatenate(places)
    repeat = np.zeros(taken, bool)
    if len(shards) > 2:  # only another pass brings a sample again
        number_of = (np.cumsum(source.counts) - source.counts)[shard] + sample
        repeat[:] = True
        repeat[np.unique(number_of, return_index=True)[1]] = False
    return Order(np.full(taken, number, np.int32), shard, sample, repeat)


def _one_pass(counts: np.ndarray, source: int, seed: int, turn: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Every sample of a source once: shard int32 [N] and sample int64 [N]."""
    words = np.array([seed, turn], np.uint64), np.array([0, 0, 0, source], np.uint64)
    bits = np.random.Philox(key=words[0], counter=words[1])
    shards = np.argsort(bits.random_raw(len(counts)), kind="stable")
    held = counts[shards]
    total = int(held.sum())
    shard = np.repeat(shards, held).astype(np.int32)
    sample = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(held) - held, held)
    # One key to sort by, which is much faster than two: the window in its high bits, chance in the rest.
    high = np.arange(len(counts), dtype=np.uint64) // np.uint64(window)
    width = np.uint64(max(int(high[-1]).bit_length(), 1))
    keys = (bits.random_raw(total) >> width) | np.repeat(high << (np.uint64(64) - width), held)
    mixed = np.argsort(keys, kind="stable")
    return shard[mixed], sample[mixed]
