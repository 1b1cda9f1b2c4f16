"""How a rank's batches are read: bytes by ranges or through the cache, checked, decoded in threads, bad ones replaced.

A batch goes through three stages, each begun well before the next is needed: `fetch` (whole blocks of batches, so that
neighbours are read in one go), `decode` (each sample straight into its place in the batch) and `finish`.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from autogaze.gaze import Gaze
from pipelines.dataset import shards
from pipelines.dataset.members import BadSample, members_of, read_frames
from pipelines.errors import PipelineError
from pipelines.loading.redecode import Redecoder
from pipelines.loading.samples import Samples
from pipelines.storage import store
from pipelines.storage.cache import LocalCache

_GAP = 256 << 10  # bytes that are cheaper to read along than to ask again after
_MOST = 16 << 20  # bytes asked for at once
_READERS = 8  # ranges fetched at the same time; they wait more than they work
_HOPELESS = 1000  # bad samples in a row
T = TypeVar("T")


@dataclass
class LoaderConfig:
    """What is read and how. All ranks have the same."""

    data: list[str] = field(default_factory=list, metadata={"help": "datasets made by preprocess"})
    weights: list[float] = field(
        default_factory=list, metadata={"help": "uses of each dataset's samples in an epoch ([] = 1 each)"}
    )
    seed: int = field(default=0, metadata={"help": "fixes the order of samples"})
    window: int = field(default=16, metadata={"help": "shards whose samples are shuffled together"})
    global_batch: int = field(default=256, metadata={"help": "samples of one step, over all ranks"})
    workers: int = field(default=2, metadata={"help": "decoding threads (0 = read and decode when asked)"})
    prefetch: int = field(default=2, metadata={"help": "batches decoded ahead, where there are workers"})
    cache_mb: int = field(default=0, metadata={"help": "keep whole shards on local disk, this much (0 = read ranges)"})
    cache_dir: str = field(default="", metadata={"help": "where, shared by all ranks ('' = in the temporary folder)"})
    bad_samples: str = field(default="fail", metadata={"help": "fail, or skip and count, what cannot be read"})
    val_fraction: float = field(default=0.0, metadata={"help": "share of the videos held out for validation"})
    targets: bool = field(default=False, metadata={"help": "also give the stored targets of each sample"})


class Skipped(NamedTuple):
    """A sample that was left out, and why."""

    id: int
    clip: str
    shard: str
    reason: str


@dataclass
class Batch:
    """One rank's part of a global batch, b samples.

    Attributes:
        step: which global batch, counted over epochs; after it step + 1 batches are consumed.
        epoch: from 0.
        ids: int64 [b], numbers of the samples, counted over all datasets: the same in every run over them.
        keys: names of the clips.
        frames: uint8 [b, T, S, S, 3].
        gaze: of the b clips.
        repeat: bool [b], true where the epoch has had the sample before, or it stands in for a skipped one.
        skipped: what should have been in this batch, with bad_samples=skip.
        targets: the bytes of each sample's targets (autogaze.reconstruction.targets), if asked for.
    """

    step: int
    epoch: int
    ids: np.ndarray
    keys: list[str]
    frames: torch.Tensor
    gaze: Gaze
    repeat: np.ndarray
    skipped: list[Skipped]
    targets: list[bytes] | None = None


class BatchRequest(NamedTuple):
    """What a rank is to read for a batch: `places` in the epoch's `order` int64 [N] of sample ids."""

    step: int
    epoch: int
    order: np.ndarray
    places: np.ndarray
    repeat: np.ndarray


class _Inline(Executor):
    """An executor that does what it is given at once, in the thread that gives it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (it comes out of result(), as from any executor)
            future.set_exception(error)
        return future


_Bytes = dict[int, memoryview]
"""The bytes of some samples of a shard, by offset."""


@dataclass
class _Sample:
    id: int
    dataset: Samples
    row: dict[str, Any]
    read: Future[_Bytes] | None = None


@dataclass
class Begun:
    """A batch that is being decoded."""

    step: BatchRequest
    samples: list[_Sample]
    frames: torch.Tensor
    decoded: list[Future[tuple[Gaze, bytes | None]]]


class Reading(AbstractContextManager["Reading"]):
    """One iteration's threads, decoders and cache; they end with it."""

    def __init__(self, config: LoaderConfig, datasets: Sequence[Samples], first_ids: np.ndarray) -> None:
        self.config, self.datasets, self.first_ids = config, datasets, first_ids
        self.cache = LocalCache(config.cache_dir, config.cache_mb) if config.cache_mb else None
        self.side, self.frames = datasets[0].vocabulary.scales[-1], datasets[0].frames
        self.readers: Executor = ThreadPoolExecutor(_READERS, "autogaze-read") if config.workers else _Inline()
        self.decoders: Executor = ThreadPoolExecutor(config.workers, "autogaze-decode") if config.workers else _Inline()
        self.of_thread, self.lock, self.opened = threading.local(), threading.Lock(), ExitStack()

    def __exit__(self, *details: Any) -> None:
        for pool in (self.decoders, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self.decoders, self.readers):
            pool.shutdown(wait=True)
        self.opened.close()

    # -- a batch, stage by stage -------------------------------------------------------------------------------------

    def fetch(self, steps: list[BatchRequest]) -> list[tuple[BatchRequest, list[_Sample]]]:
        """Begin to read the bytes of these batches."""
        begun = [(step, [self._sample(int(step.order[place])) for place in step.places]) for step in steps]
        groups: dict[tuple[str, int], list[_Sample]] = {}
        for _, samples in begun:
            for sample in samples:
                groups.setdefault((sample.dataset.url, sample.row["shard"]), []).append(sample)
        for group in groups.values():  # in the order they are first needed
            for run in [group] if self.cache else _runs(group):
                read = self.readers.submit(self._read, run)
                for sample in run:
                    sample.read = read
        return begun

    def decode(self, fetched: tuple[BatchRequest, list[_Sample]]) -> Begun:
        """Begin to decode a batch."""
        step, samples = fetched
        # Memory of numpy, which asks for huge pages: first touching 40 MB of small ones takes as long as a few JPEGs.
        frames = np.empty((len(samples), self.frames, self.side, self.side, 3), np.uint8)
        decoded = [self.decoders.submit(self._decode, *pair) for pair in zip(samples, frames, strict=True)]
        return Begun(step, samples, torch.from_numpy(frames), decoded)

    def finish(self, begun: Begun) -> Batch:
        """Wait for a batch, and fill the places of bad samples. Raises PipelineError with bad_samples=fail."""
        step, samples, repeat = begun.step, begun.samples, begun.step.repeat.copy()
        results, skipped = [], []
        for i, future in enumerate(begun.decoded):
            try:
                results.append(future.result())
            except BadSample as error:
                skipped.append(self._skip(samples[i], str(error)))
                samples[i], result = self._stand_in(step, int(step.places[i]), begun.frames[i].numpy())
                results.append(result)
                repeat[i] = True
        try:
            gaze = Gaze.cat([gaze for gaze, _ in results])
        except ValueError as error:
            urls = ", ".join(dict.fromkeys(sample.dataset.url for sample in samples))
            raise PipelineError(f"{urls}: {error}; give datasets whose gaze is of one kind") from error
        targets = [data for _, data in results if data is not None] if self.config.targets else None
        ids = np.array([sample.id for sample in samples], np.int64)
        keys = [sample.row["clip"] for sample in samples]
        return Batch(step.step, step.epoch, ids, keys, begun.frames, gaze, repeat, skipped, targets)

    def _skip(self, sample: _Sample, reason: str) -> Skipped:
        url, shard = sample.dataset.url, sample.row["shard"]
        skipped = Skipped(sample.id, sample.row["clip"], shards.tar_url(url, shard), reason)
        if self.config.bad_samples == "fail":
            raise PipelineError(
                f"{skipped.shard}: {skipped.clip} (sample {skipped.id}): {reason}; run: autogaze verify {url}, or go "
                "on without such samples: loader.bad_samples=skip"
            )
        return skipped

    def _stand_in(self, step: BatchRequest, place: int, out: np.ndarray) -> tuple[_Sample, tuple[Gaze, bytes | None]]:
        """The next good sample of the epoch's order after a bad one's place, around its end."""
        count = len(step.order)
        for further in range(1, min(count, _HOPELESS)):
            sample = self._sample(int(step.order[(place + further) % count]))
            try:
                return sample, self._decode(sample, out)
            except BadSample:
                continue
        raise PipelineError(
            f"{self._sample(int(step.order[place])).dataset.url}: {min(count, _HOPELESS)} samples in a row cannot be "
            "read; run autogaze verify on the datasets"
        )

    # -- a sample, in a thread ---------------------------------------------------------------------------------------

    def _sample(self, id_: int) -> _Sample:
        number = int(np.searchsorted(self.first_ids, id_, "right")) - 1
        return _Sample(id_, self.datasets[number], self.datasets[number].row(id_ - int(self.first_ids[number])))

    def _read(self, samples: Sequence[_Sample]) -> _Bytes:
        """The bytes of samples of one shard. Raises BadSample when there is no such shard."""
        url, rows = shards.tar_url(samples[0].dataset.url, samples[0].row["shard"]), [s.row for s in samples]
        try:
            if self.cache is None:
                begin, end = min(row["offset"] for row in rows), max(row["offset"] + row["size"] for row in rows)
                data = memoryview(store.read(url, begin, end - begin))
                return {row["offset"]: data[row["offset"] - begin :][: row["size"]] for row in rows}
            size = functools.cache(lambda: store.size(url))
            found = {}
            with (
                self.cache.local(_cached(samples[0]), lambda path: store.fetch(url, path, 0, size()), size) as path,
                open(path, "rb") as file,
            ):
                for row in rows:
                    file.seek(row["offset"])
                    found[row["offset"]] = memoryview(file.read(row["size"]))
            return found
        except FileNotFoundError:
            raise BadSample("its shard is missing") from None

    def _decode(self, sample: _Sample, out: np.ndarray) -> tuple[Gaze, bytes | None]:
        """The frames of a sample into `out`; its gaze and targets. Raises BadSample."""
        row, dataset = sample.row, sample.dataset
        data = (sample.read.result() if sample.read else self._read([sample]))[row["offset"]]
        sample.read = None  # the bytes go as soon as they are decoded
        if hashlib.sha256(data).digest() != row["sha256"]:
            data = self._read_again(sample)
        try:
            members = members_of(data, row["clip"])
            gaze = Gaze.from_npz(bytes(members["gaze.npz"]), dataset.vocabulary)
            if gaze.num_frames != self.frames:
                raise BadSample(f"its gaze has {gaze.num_frames} frames, not {self.frames}")
            if dataset.frames_stored:
                read_frames(members, out)
            else:
                self._redecoder(dataset).read_frames(row, out)
        except (ValueError, KeyError, OSError, SyntaxError) as error:  # what Pillow and numpy say of damage
            raise BadSample(f"unreadable: {error!r}") from error
        targets = members.get("targets.npz")
        if self.config.targets and targets is None:
            raise PipelineError(f"{dataset.url}: keeps no targets; make it with targets, or do not ask for them")
        return gaze, bytes(targets) if targets is not None else None

    def _read_again(self, sample: _Sample) -> memoryview:
        """The bytes from where they come from: what was wrong may have been the cache, or the network."""
        if self.cache is not None:
            self.cache.forget(_cached(sample))
        row, url = sample.row, shards.tar_url(sample.dataset.url, sample.row["shard"])
        try:
            data = store.read(url, row["offset"], row["size"])
        except FileNotFoundError:
            raise BadSample("its shard is missing") from None
        if hashlib.sha256(data).digest() != row["sha256"]:
            raise BadSample("its bytes differ from the hash in the index")
        return memoryview(data)

    def _redecoder(self, dataset: Samples) -> Redecoder:
        """This thread's own decoder, for one dataset."""
        mine: dict[str, Redecoder] = self.of_thread.__dict__
        if dataset.url not in mine:
            mine[dataset.url] = Redecoder(dataset.about["config"]["decoder"], self.side, self.cache)
            with self.lock:
                self.opened.enter_context(mine[dataset.url])
        return mine[dataset.url]


def _cached(sample: _Sample) -> str:
    """The cache's name for a sample's shard."""
    return f"shard {sample.dataset.about['plan']} {shards.tar_url(sample.dataset.url, sample.row['shard'])}"


def _runs(samples: Sequence[_Sample]) -> Iterator[list[_Sample]]:
    """Samples of one shard in groups that are read in one go."""
    run: list[_Sample] = []
    begin = end = 0
    for sample in sorted(samples, key=lambda sample: sample.row["offset"]):
        first, last = sample.row["offset"], sample.row["offset"] + sample.row["size"]
        if run and (first > end + _GAP or last - begin > _MOST):
            yield run
            run = []
        if not run:
            begin = first
        run.append(sample)
        end = max(end, last) if len(run) > 1 else last
    yield run
