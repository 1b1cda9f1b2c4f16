"""Stream one rank's samples from the shards that preprocess made: in a fixed order, hash-checked, ready as batches.

    loader = ShardLoader(LoaderConfig(data=["s3://bucket/gaze"], global_batch=256), rank=0, world=8, consumed=51200)
    for batch in loader:                       # from step 200 on; epoch after epoch
        batch.frames, batch.gaze, batch.ids    # of this rank's 32 samples

- The order is pipelines.loading.order's: a function of the config alone, the same for any number of ranks and workers.
  The position is one integer: samples consumed = steps done * global_batch, counted over epochs.
- Without cache_mb only the rank's own samples are read, as byte ranges, neighbours in one go. With it whole shards are
  fetched into a folder on local disk that all processes of the machine share (pipelines.storage.cache).
- `workers` are threads: reading waits for the network, and decoding JPEGs, which takes most of the time, runs outside
  Python's lock. Where a rank has many cores to keep busy, a torch DataLoader(loader, batch_size=None, num_workers=N)
  gives it processes; each makes every N-th batch, and the order stays the same. From an object store that is not s3://,
  add multiprocessing_context="spawn": a forked child inherits the locks of the store's client, and not its threads.
- A sample whose bytes are not those of the index stops the loader, or with bad_samples=skip is named in
  `Batch.skipped`, and its place is filled by the next good sample of the epoch's order, marked as a repeat. That
  depends on the data alone, so every rank keeps its shapes, and any number of ranks trains on the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.loading.config import LoaderConfig
from pipelines.loading.order import DatasetCounts, EpochOrder, Order, batch_places, epoch_samples, rank_part
from pipelines.loading.reading import Batch, BatchRequest, FrameReading, Reading, Skipped
from pipelines.loading.samples import Samples, fingerprint_of_rows, open_samples
from pipelines.schema import check
from pipelines.storage.cache import LocalCache

__all__ = ["Batch", "LoaderConfig", "ShardLoader", "Skipped"]

SPLITS = ("train", "val", "all")
_READ_AHEAD = 4  # batches whose bytes are fetched as one block, for each batch that is decoded ahead
_BLOCK_BYTES = 256 << 20  # a block has fewer batches if it comes to this size; two blocks are in memory at once
T = TypeVar("T")
BatchT = TypeVar("BatchT")


class OrderedLoader(IterableDataset[BatchT], ABC, Generic[BatchT]):
    """An endless (or `epochs` long) stream of one rank's batches. Each iteration starts at `consumed`.

    What a dataset is opened as, and its samples read to, is for those that derive from it: `open` and `reading`.

    Attributes:
        datasets: the samples of each dataset, those of other splits included.
        sources: what the order is made of: how many samples of the split each shard has, and weights.
        samples: in one epoch.
        steps_per_epoch: batches in one epoch; the last one is filled up from the epoch's beginning.
        num_frames, vocabulary: of every clip.
        fingerprint: of all that the order depends on. A position is good only for the order it was counted in.
    """

    def __init__(
        self,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world: int = 1,
        consumed: int = 0,
        epochs: int | None = None,
        split: str = "train",
        datasets: list[Samples] | None = None,
    ) -> None:
        """Read the summaries of the indexes.

        Args:
            rank, world: of this process.
            consumed: samples that the run has consumed before, over all ranks.
            epochs: at which the stream ends, counted from the run's beginning and not from `consumed`; None: never.
            split: train, val or all.
            datasets: those of config.data, if another loader has read their indexes.
        Raises PipelineError, in one line: a value out of range, no dataset or none that fits the others, no sample.
        """
        _check(config, split)
        rank_part(np.empty(config.global_batch, bool), rank, world)
        if consumed < 0 or consumed % config.global_batch:
            raise PipelineError(
                f"consumed={consumed}: must be a multiple of global_batch={config.global_batch}, the samples of a step"
            )
        self.config, self.rank, self.world, self.consumed, self.epochs = config, rank, world, consumed, epochs
        cache = LocalCache(config.cache_dir, config.cache_mb) if config.cache_mb else None
        versions: list[int | None] = [*config.versions] or [None] * len(config.data)
        self.datasets = datasets or [
            self.open(url, cache, version) for url, version in zip(config.data, versions, strict=True)
        ]
        _require_alike(self.datasets)
        self.num_frames, self.vocabulary = self.datasets[0].frames, self.datasets[0].vocabulary
        self._first_ids = np.cumsum([0, *map(len, self.datasets)])
        self._split = split
        counts = [dataset.split_counts(split, config.val_fraction) for dataset in self.datasets]
        weights = config.weights or [1.0] * len(counts)
        self.sources = [DatasetCounts(count, weight) for count, weight in zip(counts, weights, strict=True)]
        if not any(count.any() for count in counts):
            raise PipelineError(
                f"split={split}: no sample is in it with val_fraction={config.val_fraction}: "
                f"{sum(map(len, self.datasets))} samples, of too few videos"
            )
        self.samples = epoch_samples(self.sources)
        self.steps_per_epoch = -(-self.samples // config.global_batch)
        self.fingerprint = "2-" + self._fingerprint(self._digests())
        self._reading: Reading[Any, BatchT] | None = None

    @abstractmethod
    def open(self, url: str, cache: LocalCache | None, version: int | None) -> Samples:
        """The samples of a version of a dataset: see open_samples. Raises PipelineError."""

    @abstractmethod
    def reading(self) -> Reading[Any, BatchT]:
        """What reads the samples of `datasets`."""

    def ids(self) -> Iterator[np.ndarray]:
        """Ids of the split's samples, ascending, shard by shard: int64 [n]. At weight 1 an epoch uses each once."""
        for number, dataset in enumerate(self.datasets):
            for shard in range(dataset.shards):
                yield self._ids_of_shard(number, shard)

    def row_fingerprint(self) -> str:
        """What `fingerprint` was for versions that read the rows of all samples; it reads them all."""
        return self._fingerprint(itertools.chain.from_iterable(map(fingerprint_of_rows, self.datasets)))

    def read(self, ids: Sequence[int], epoch: int = 0) -> BatchT:
        """A batch of the samples with these ids, apart from the order; its step is -1.

        The reader it uses stays open until `close`. Raises PipelineError, naming the sample, if one cannot be read.
        """
        if self._reading is None:
            self._reading = self.reading()
        order = np.asarray(ids, np.int64)
        step = BatchRequest(-1, epoch, order, order, np.arange(len(order)), np.zeros(len(order), bool))
        [fetched] = self._reading.fetch([step])
        return self._reading.finish(self._reading.decode(fetched))

    def close(self) -> None:
        """Close the reader that `read` uses."""
        if self._reading is not None:
            self._reading.__exit__()
            self._reading = None

    def steps(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Step, epoch and ids int64 [b] of each batch to come, without reading it.

        Which samples will stand in for bad ones is not known before they are read.
        """
        for step in self._steps():
            yield step.step, step.epoch, step.ids

    def __iter__(self) -> Iterator[BatchT]:
        info = get_worker_info()
        part, parts = (info.id, info.num_workers) if info else (0, 1)
        steps = itertools.islice(self._steps(), part, None, parts)
        threads = self.config.workers
        with self.reading() as reading:
            ahead = self.config.prefetch if threads else 0
            block = _READ_AHEAD * max(ahead, 1) if threads else 1
            located = _ahead(map(reading.locate, steps), 2 * block if threads else 0)
            fetched = itertools.chain.from_iterable(
                _ahead(map(reading.fetch, self._blocks(located, block)), 1 if threads else 0)
            )
            for begun in _ahead(map(reading.decode, fetched), ahead):
                yield reading.finish(begun)

    def _steps(self) -> Iterator[BatchRequest]:
        config = self.config
        epoch, first = divmod(self.consumed // config.global_batch, self.steps_per_epoch)
        while self.epochs is None or epoch < self.epochs:
            order = EpochOrder(self.sources, seed=config.seed, epoch=epoch, window=config.window)
            ids = _EpochIds(order, self._ids)
            for row in range(first, self.steps_per_epoch):
                places, wrapped = batch_places(
                    self.samples, row, global_batch=config.global_batch, rank=self.rank, world=self.world
                )
                mine = order.at(places)
                step = epoch * self.steps_per_epoch + row
                yield BatchRequest(step, epoch, self._ids(mine), ids, places, mine.repeat | wrapped)
            epoch, first = epoch + 1, 0

    def _blocks(self, steps: Iterator[BatchRequest], most: int) -> Iterator[list[BatchRequest]]:
        """Batches that are fetched together: `most`, or fewer that come to _BLOCK_BYTES."""
        block: list[BatchRequest] = []
        held = 0
        for step in steps:
            block.append(step)
            held += self._bytes(step)
            if len(block) == most or held >= _BLOCK_BYTES:
                yield block
                block, held = [], 0
        if block:
            yield block

    def _bytes(self, step: BatchRequest) -> int:
        """Bytes of a batch's samples in their shards."""
        of = np.searchsorted(self._first_ids, step.ids, "right") - 1
        return sum(
            dataset.bytes_of(step.ids[of == number] - self._first_ids[number])
            for number, dataset in enumerate(self.datasets)
        )

    def _ids(self, order: Order) -> np.ndarray:
        """The ids of the samples of a stretch of the order: int64 [n]."""
        ids = np.empty(len(order), np.int64)
        most = max(dataset.shards for dataset in self.datasets)
        shards, which = np.unique(order.source.astype(np.int64) * most + order.shard, return_inverse=True)
        for place, shard in enumerate(shards.tolist()):
            mine = which == place
            ids[mine] = self._ids_of_shard(*divmod(shard, most))[order.sample[mine]]
        return ids

    def _ids_of_shard(self, number: int, shard: int) -> np.ndarray:
        """The ids of the split's samples of a shard, ascending: int64 [n]."""
        dataset = self.datasets[number]
        places = dataset.split_places(shard, self._split, self.config.val_fraction)
        ids: np.ndarray = self._first_ids[number] + dataset.first_ids[shard] + places
        return ids

    def _digests(self) -> Iterator[bytes]:
        for dataset in self.datasets:
            summary = dataset.summary
            yield hashlib.sha256(summary.samples.astype("<u4").tobytes() + summary.digests.tobytes()).digest()

    def _fingerprint(self, digests: Iterable[bytes]) -> str:
        config = self.config
        settings = [config.seed, config.window, config.global_batch, self._split, config.val_fraction, config.weights]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for one in digests:
            digest.update(one)
        return digest.hexdigest()[:16]


class _EpochIds:
    """The ids of an epoch's samples by their places in its order, computed when they are asked for."""

    def __init__(self, order: EpochOrder, ids: Callable[[Order], np.ndarray]) -> None:
        self._order, self._ids = order, ids

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> int:
        return int(self._ids(self._order.stretch(place, place + 1))[0])


class ShardLoader(OrderedLoader[Batch]):
    """The loader of gaze datasets: frames and gaze."""

    def open(self, url: str, cache: LocalCache | None, version: int | None) -> Samples:
        samples = open_samples(url, cache, version)
        moved = self.config.starts or self.config.max_stride
        if moved and isinstance(samples.dataset, Dataset) and samples.dataset.frames_stored:
            key = "augment.starts=true" if self.config.starts else f"augment.max_stride={self.config.max_stride}"
            raise PipelineError(
                f"{key}: {samples.url} stores the frames of its clips, and no others; give a dataset made with "
                "frames=none, whose videos are decoded again"
            )
        return samples

    def reading(self) -> Reading[Any, Batch]:
        return FrameReading(self.config, self.datasets, self._first_ids)


def _check(config: LoaderConfig, split: str) -> None:
    check(config)
    if config.weights and len(config.weights) != len(config.data):
        raise PipelineError(f"weights: {len(config.weights)} for {len(config.data)} datasets; give one for each")
    if config.versions and len(config.versions) != len(config.data):
        raise PipelineError(f"versions: {len(config.versions)} for {len(config.data)} datasets; give one for each")
    if split not in SPLITS:
        raise PipelineError(f"split={split}: must be one of {', '.join(SPLITS)}")


def _require_alike(datasets: Sequence[Samples]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        for what, name in (("frames per clip", "frames"), ("patch vocabulary", "vocabulary")):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise PipelineError(
                    f"{first.url} and {other.url} differ in their {what}: {here} and {there}; give datasets that agree"
                )


def _ahead(items: Iterator[T], n: int) -> Iterator[T]:
    """The same items, `n` behind: each is given out when the n after it have been taken."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > n:
            yield begun.popleft()
    yield from begun
