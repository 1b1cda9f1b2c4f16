"""How a rank reads its batches: byte ranges, or whole shards through the cache; hash-checked, then decoded in threads.

A batch goes through three stages, each begun well before the next needs it: `fetch` (for a block of batches at once, so
that neighbours are read in one go), `decode` (each sample straight into its place in the batch) and `finish`, which
puts good samples in the places of bad ones.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from autogaze.gaze import Gaze
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames_into
from pipelines.dataset.members import BadSample, split_members
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.loading.config import LoaderConfig
from pipelines.loading.redecode import Redecoder, drawn_place
from pipelines.loading.samples import Samples
from pipelines.storage import store
from pipelines.storage.cache import LocalCache

_GAP = 256 << 10  # bytes between two samples that cost less to read along than another request
_MOST = 16 << 20  # bytes of one request
_READERS = 8  # requests at the same time: they mostly wait
_LOCATED = 1024  # shards whose rows have been asked for
_HOPELESS = 1000  # bad samples in a row after which none is looked for further
T = TypeVar("T")
ResultT = TypeVar("ResultT")
BatchT = TypeVar("BatchT")


class Skipped(NamedTuple):
    """A bad sample that was left out, and why."""

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
        skipped: the bad samples that others stand in for, with bad_samples=skip.
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


class Ids(Protocol):
    """Ids of an epoch's samples, by their places in its order."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> int: ...


class BatchRequest(NamedTuple):
    """What one rank reads for a batch: `ids` int64 [b], which are at `places` int64 [b] in the epoch's `order`."""

    step: int
    epoch: int
    ids: np.ndarray
    order: Ids
    places: np.ndarray
    repeat: np.ndarray


class _Inline(Executor):
    """An executor without threads: `submit` does the work before it returns."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (result() raises it, as with any executor)
            future.set_exception(error)
        return future


_Bytes = dict[int, memoryview]
"""The bytes of some samples of a shard, by offset."""


@dataclass
class Sample:
    id: int
    epoch: int
    source: Samples
    row: dict[str, Any]
    read: Future[_Bytes] | None = None


@dataclass
class Decoded(Generic[ResultT]):
    """A batch whose samples are decoded, bad ones replaced. The attributes are those of Batch and Begun."""

    step: BatchRequest
    samples: list[Sample]
    out: Any
    results: list[ResultT]
    repeat: np.ndarray
    skipped: list[Skipped]

    @property
    def ids(self) -> np.ndarray:
        return np.array([sample.id for sample in self.samples], np.int64)

    @property
    def keys(self) -> list[str]:
        return [sample.row["clip"] for sample in self.samples]


@dataclass
class Begun(Generic[ResultT]):
    """A batch that is being decoded. out: what `Reading.outputs` made for it."""

    step: BatchRequest
    samples: list[Sample]
    out: Any
    decoded: list[Future[ResultT]]


class Reading(AbstractContextManager["Reading[ResultT, BatchT]"], ABC, Generic[ResultT, BatchT]):
    """The threads, decoders and cache of one iteration; closed when it ends.

    What a sample's bytes become, and samples a batch, is for those that derive from it: `outputs`, `decoded`, `batch`.
    """

    def __init__(self, config: LoaderConfig, datasets: Sequence[Samples], first_ids: np.ndarray) -> None:
        self.config, self.datasets, self.first_ids = config, datasets, first_ids
        self.cache = LocalCache(config.cache_dir, config.cache_mb) if config.cache_mb else None
        self.readers: Executor = ThreadPoolExecutor(_READERS, "autogaze-read") if config.workers else _Inline()
        self.decoders: Executor = ThreadPoolExecutor(config.workers, "autogaze-decode") if config.workers else _Inline()
        self.row_readers: Executor = ThreadPoolExecutor(_READERS, "autogaze-rows") if config.workers else _Inline()
        self.located: OrderedDict[tuple[int, int], Future[Any]] = OrderedDict()
        self.of_thread, self.lock, self.opened = threading.local(), threading.Lock(), ExitStack()

    @abstractmethod
    def outputs(self, count: int) -> Any:
        """Room for a batch of so many samples: anything that gives the room of sample i as its item i."""

    @abstractmethod
    def decoded(self, sample: Sample, data: memoryview, out: Any) -> ResultT:
        """What a sample is, from its bytes, their hash checked; and in `out`, its room. Raises BadSample."""

    @abstractmethod
    def batch(self, whole: Decoded[ResultT]) -> BatchT:
        """A batch of decoded samples."""

    def __exit__(self, *details: Any) -> None:
        pools = (self.decoders, self.readers, self.row_readers)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)
        self.opened.close()

    # -- a batch, stage by stage -------------------------------------------------------------------------------------

    def locate(self, step: BatchRequest) -> BatchRequest:
        """Begin to read the index rows of a batch's shards."""
        of = np.searchsorted(self.first_ids, step.ids, "right") - 1
        for number in np.unique(of).tolist():
            source = self.datasets[number]
            for shard in np.unique(source.shards_of(step.ids[of == number] - self.first_ids[number])).tolist():
                if (number, shard) not in self.located:
                    self.located[number, shard] = self.row_readers.submit(source.rows, shard)
                    while len(self.located) > _LOCATED:
                        self.located.popitem(last=False)
        return step

    def fetch(self, steps: list[BatchRequest]) -> list[tuple[BatchRequest, list[Sample]]]:
        """Begin to read the bytes of these batches."""
        begun = [(step, [self._sample(id_, step.epoch) for id_ in step.ids.tolist()]) for step in steps]
        groups: dict[tuple[str, int], list[Sample]] = {}
        for _, samples in begun:
            for sample in samples:
                groups.setdefault((sample.source.url, sample.row["shard"]), []).append(sample)
        for group in groups.values():  # in the order they are first needed
            for run in [group] if self.cache else _runs(group):
                read = self.readers.submit(self._read, run)
                for sample in run:
                    sample.read = read
        return begun

    def decode(self, fetched: tuple[BatchRequest, list[Sample]]) -> Begun[ResultT]:
        """Begin to decode a batch."""
        step, samples = fetched
        out = self.outputs(len(samples))
        decoded = [self.decoders.submit(self._decode, sample, out[i]) for i, sample in enumerate(samples)]
        return Begun(step, samples, out, decoded)

    def finish(self, begun: Begun[ResultT]) -> BatchT:
        """Wait for a batch, and fill the places of bad samples. Raises PipelineError with bad_samples=fail."""
        step, samples, repeat = begun.step, begun.samples, begun.step.repeat.copy()
        results, skipped = [], []
        for i, future in enumerate(begun.decoded):
            try:
                results.append(future.result())
            except BadSample as error:
                skipped.append(self._skip(samples[i], str(error)))
                samples[i], result = self._stand_in(step, int(step.places[i]), begun.out[i])
                results.append(result)
                repeat[i] = True
        return self.batch(Decoded(step, samples, begun.out, results, repeat, skipped))

    def _skip(self, sample: Sample, reason: str) -> Skipped:
        url, shard = sample.source.url, sample.row["shard"]
        skipped = Skipped(sample.id, sample.row["clip"], shards.tar_url(url, shard), reason)
        if self.config.bad_samples == "fail":
            raise PipelineError(
                f"{skipped.shard}: {skipped.clip} (sample {skipped.id}): {reason}; run: autogaze verify {url}, or go "
                "on without such samples: loader.bad_samples=skip"
            )
        return skipped

    def _stand_in(self, step: BatchRequest, place: int, out: Any) -> tuple[Sample, ResultT]:
        """The next good sample in the epoch's order after a bad one's place; after the last comes the first."""
        count = len(step.order)
        for further in range(1, min(count, _HOPELESS)):
            sample = self._sample(int(step.order[(place + further) % count]), step.epoch)
            try:
                return sample, self._decode(sample, out)
            except BadSample:
                continue
        url = self._sample(int(step.order[place]), step.epoch).source.url
        raise PipelineError(
            f"{url}: {min(count, _HOPELESS)} samples in a row cannot be read; run autogaze verify on the datasets"
        )

    # -- a sample, in a thread ---------------------------------------------------------------------------------------

    def _sample(self, id_: int, epoch: int) -> Sample:
        number = int(np.searchsorted(self.first_ids, id_, "right")) - 1
        return Sample(id_, epoch, self.datasets[number], self.datasets[number].row(id_ - int(self.first_ids[number])))

    def _read(self, samples: Sequence[Sample]) -> _Bytes:
        """The bytes of samples of one shard. Raises BadSample when there is no such shard."""
        url, rows = shards.tar_url(samples[0].source.url, samples[0].row["shard"]), [s.row for s in samples]
        try:
            if self.cache is None:
                begin, end = min(row["offset"] for row in rows), max(row["offset"] + row["size"] for row in rows)
                data = memoryview(store.read(url, begin, end - begin))
                return {row["offset"]: data[row["offset"] - begin :][: row["size"]] for row in rows}
            size = functools.cache(lambda: store.size(url))
            data_of: _Bytes = {}
            with (
                self.cache.local(_cached(samples[0]), lambda path: store.fetch(url, path, 0, size()), size) as path,
                open(path, "rb") as file,
            ):
                for row in rows:
                    file.seek(row["offset"])
                    data_of[row["offset"]] = memoryview(file.read(row["size"]))
            return data_of
        except FileNotFoundError:
            raise BadSample("its shard is missing") from None

    def _decode(self, sample: Sample, out: Any) -> ResultT:
        """Check the bytes of a sample, and decode them. Raises BadSample."""
        row = sample.row
        data = (sample.read.result() if sample.read else self._read([sample]))[row["offset"]]
        sample.read = None  # frees the bytes as soon as they are decoded
        if hashlib.sha256(data).digest() != row["sha256"]:
            data = self._read_again(sample)
        return self.decoded(sample, data, out)

    def _read_again(self, sample: Sample) -> memoryview:
        """The bytes of a sample, from the store again: the cache or the network may have damaged them."""
        if self.cache is not None:
            self.cache.forget(_cached(sample))
        row, url = sample.row, shards.tar_url(sample.source.url, sample.row["shard"])
        try:
            data = store.read(url, row["offset"], row["size"])
        except FileNotFoundError:
            raise BadSample("its shard is missing") from None
        if hashlib.sha256(data).digest() != row["sha256"]:
            raise BadSample("its bytes differ from the hash in the index")
        return memoryview(data)


class FrameReading(Reading["tuple[Gaze, bytes | None]", Batch]):
    """Reads frames and gaze of a gaze dataset's samples."""

    def __init__(self, config: LoaderConfig, datasets: Sequence[Samples], first_ids: np.ndarray) -> None:
        super().__init__(config, datasets, first_ids)
        self.side, self.frames = datasets[0].vocabulary.scales[-1], datasets[0].frames

    def outputs(self, count: int) -> np.ndarray:
        shape = (count, self.frames, self.side, self.side, 3)
        if self.config.pinned and torch.cuda.is_available():
            # PyTorch keeps such memory for the next batch, since the system takes long to give it.
            pinned: np.ndarray = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        # numpy asks the system for huge pages. Touching 40 MB of small ones first takes as long as a few JPEGs.
        return np.empty(shape, np.uint8)

    def decoded(self, sample: Sample, data: memoryview, out: np.ndarray) -> tuple[Gaze, bytes | None]:
        """The frames of a sample into `out`; its gaze and targets."""
        row, source = sample.row, sample.source
        assert isinstance(source.dataset, Dataset)
        members = split_members(data, row["clip"])
        try:
            gaze = Gaze.from_npz(bytes(members["gaze.npz"]), source.vocabulary)
        except (ValueError, KeyError) as error:
            raise BadSample(f"its gaze is unreadable: {error!r}") from error
        if gaze.num_frames != self.frames:
            raise BadSample(f"its gaze has {gaze.num_frames} frames, not {self.frames}")
        if source.dataset.frames_stored:
            decode_frames_into(members, out)
        else:
            self._redecoder(source).decode_into(self._placed(sample), out)
        targets = members.get("targets.npz")
        if self.config.targets and targets is None:
            raise PipelineError(f"{source.url}: keeps no targets; make it with targets, or do not ask for them")
        return gaze, bytes(targets) if targets is not None else None

    def _placed(self, sample: Sample) -> dict[str, Any]:
        """The sample's row, or that of the other frames of its video that this epoch has in its place."""
        config = self.config
        if not config.starts and not config.max_stride:
            return sample.row
        return drawn_place(
            sample.row, config.seed, sample.epoch, sample.id, starts=config.starts, max_stride=config.max_stride
        )

    def batch(self, whole: Decoded[tuple[Gaze, bytes | None]]) -> Batch:
        gazes = [gaze for gaze, _ in whole.results]
        if len({gaze.origins is None for gaze in gazes}) > 1:  # of verified and other datasets: nothing else differs
            gazes = [replace(gaze, origins=None) for gaze in gazes]
        try:
            gaze = Gaze.cat(gazes)
        except ValueError as error:
            urls = ", ".join(dict.fromkeys(sample.source.url for sample in whole.samples))
            raise PipelineError(f"{urls}: {error}; give datasets whose gaze is of one kind") from error
        targets = [data for _, data in whole.results if data is not None] if self.config.targets else None
        step, frames = whole.step, torch.from_numpy(whole.out)
        return Batch(step.step, step.epoch, whole.ids, whole.keys, frames, gaze, whole.repeat, whole.skipped, targets)

    def _redecoder(self, source: Samples) -> Redecoder:
        """This thread's own decoder, for one dataset."""
        mine: dict[str, Redecoder] = self.of_thread.__dict__
        if source.url not in mine:
            mine[source.url] = Redecoder(source.dataset.config["decoder"], self.side, self.cache)
            with self.lock:
                self.opened.enter_context(mine[source.url])
        return mine[source.url]


def _cached(sample: Sample) -> str:
    """The cache's name for a sample's shard."""
    return f"shard {sample.source.about['plan']} {shards.tar_url(sample.source.url, sample.row['shard'])}"


def _runs(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples of one shard in groups that are read in one go."""
    run: list[Sample] = []
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
