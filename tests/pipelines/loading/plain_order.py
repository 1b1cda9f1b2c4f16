"""The order of an epoch, all of it written out at once: what pipelines.loading.order computes stretch by stretch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def _taken(source: DatasetCounts) -> int:
    samples = int(source.counts.sum())
    return max(1, round(source.weight * samples)) if samples else 0


def _stretch(source: DatasetCounts, number: int, seed: int, epoch: int, window: int) -> Order:
    """One source's part of an epoch: a stretch of its endless stream of passes."""
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
    if len(shards) > 2:  # within one pass no sample comes twice
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
    # Sorting by one key is much faster than by two: its high bits are the window, the rest is random.
    high = np.arange(len(counts), dtype=np.uint64) // np.uint64(window)
    width = np.uint64(max(int(high[-1]).bit_length(), 1))
    keys = (bits.random_raw(total) >> width) | np.repeat(high << (np.uint64(64) - width), held)
    mixed = np.argsort(keys, kind="stable")
    return shard[mixed], sample[mixed]
