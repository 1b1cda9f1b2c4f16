"""The samples of a dataset: which there are, and their rows when they are wanted.

A sample is a clip whose outcome is ok; its number is its place among them, by shard and position. Of all shards only a
summary is kept (pipelines.dataset.summaries); rows are read shard by shard, and those of the last few shards stay.
Where a LocalCache holds the summary as a file, all processes of a machine map that file and share its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autogaze.patches import PatchVocabulary
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.dataset import shards
from pipelines.dataset.features import FeatureDataset
from pipelines.dataset.shards import Dataset, open_dataset
from pipelines.dataset.summaries import SampleSummary, draws_of, hashes_of, read_summary
from pipelines.dataset.versions import Version, newest_whole, version_named, versions_of
from pipelines.errors import PipelineError
from pipelines.storage.cache import LocalCache
from pipelines.storage.location import Location
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint

_KEPT_COLUMNS = ["clip", "shard", "position", "offset", "size", "sha256"]
_DRAWN_COLUMNS = ["video", "start", "stride", "tile"]
# What it takes to decode a clip again; the plan's `offset` becomes `object_offset`.
_PLAN_COLUMNS = [
    "object", "offset", "bytes", "fingerprint", "start", "stride", "frames", "video_frames", "width", "height", "tile",
]  # fmt: skip
_KEPT_SHARDS = 256  # whose rows stay: some windows of some datasets


@dataclass(frozen=True)
class Samples:
    """The samples of one dataset.

    Attributes:
        dataset: opened.
        summary: of all its shards.
    """

    dataset: Dataset | FeatureDataset
    summary: SampleSummary
    _rows: _Rows = field(repr=False)

    @property
    def url(self) -> Location:
        return self.dataset.url

    @property
    def about(self) -> dict[str, Any]:
        """dataset.json."""
        return self.dataset.about

    def __len__(self) -> int:
        return int(self.first_ids[-1])

    @property
    def shards(self) -> int:
        """Those of the version that is read."""
        return len(self.summary.samples)

    @property
    def frames(self) -> int:
        """T, the frames of each clip."""
        return int(self.about["config"]["clip"]["frames"])

    @property
    def vocabulary(self) -> PatchVocabulary:
        return self.dataset.vocabulary

    @cached_property
    def first_ids(self) -> np.ndarray:
        """Number of the first sample of each shard, and how many there are: int64 [shards + 1]."""
        return np.append(0, np.cumsum(self.summary.samples, dtype=np.int64))

    @cached_property
    def table(self) -> pa.Table:
        """The rows of all samples, some 150 bytes each, for what needs all of a small dataset: see `rows`."""
        return pa.concat_tables([self.rows(shard) for shard in range(self.shards)]).combine_chunks()

    def rows(self, shard: int) -> pa.Table:
        """A row per sample of a shard: clip, shard, position, offset, size, sha256 (32 bytes), and `draw` uint32, a
        hash of its video's name. Where frames are not stored, also what it takes to decode them (`object` ... `tile`);
        of features, `tokens`. Any thread may ask. Raises PipelineError.
        """
        return self._rows.of(shard)

    def row(self, number: int) -> dict[str, Any]:
        """A sample's row."""
        shard = int(np.searchsorted(self.first_ids, number, "right")) - 1
        row: dict[str, Any] = self.rows(shard).slice(number - int(self.first_ids[shard]), 1).to_pylist()[0]
        return row

    def shards_of(self, numbers: np.ndarray) -> np.ndarray:
        """The shard of each of these samples: int64 [n]."""
        return np.searchsorted(self.first_ids, numbers, "right") - 1

    def bytes_of(self, numbers: np.ndarray) -> int:
        """Bytes of these samples in their shards."""
        of, total = self.shards_of(numbers), 0
        for shard in np.unique(of).tolist():
            sizes = self.rows(shard)["size"].to_numpy()
            total += int(sizes[numbers[of == shard] - self.first_ids[shard]].sum())
        return total

    def split_counts(self, name: str, val_fraction: float) -> np.ndarray:
        """How many samples of a split (train, val or all) each shard has: int64 [shards]."""
        if name == "all" or (name == "train" and not val_fraction):
            return self.summary.samples.astype(np.int64)
        lengths = np.where(self._held_out(slice(None), val_fraction), self.summary.lengths, 0)
        of_run = np.append(0, np.cumsum(lengths, dtype=np.int64))
        held: np.ndarray = np.diff(of_run[self._first_runs])
        return held if name == "val" else self.summary.samples - held

    def split_places(self, shard: int, name: str, val_fraction: float) -> np.ndarray:
        """Places among a shard's samples of those of a split, ascending: int64 [n]."""
        if name == "all" or (name == "train" and not val_fraction):
            return np.arange(self.summary.samples[shard])
        runs = slice(int(self._first_runs[shard]), int(self._first_runs[shard + 1]))
        held = np.repeat(self._held_out(runs, val_fraction), self.summary.lengths[runs])
        return np.flatnonzero(held if name == "val" else ~held)

    def split(self, name: str, val_fraction: float) -> np.ndarray:
        """Numbers of the samples of a split (train, val or all), ascending: int64 [n].

        A pure function of the names of the videos: all clips of a video are on one side, in every dataset made of it,
        and a larger val_fraction only adds videos to val.
        """
        if name == "all":
            return np.arange(len(self), dtype=np.int64)
        held_out = np.repeat(self._held_out(slice(None), val_fraction), self.summary.lengths)
        return np.flatnonzero(held_out if name == "val" else ~held_out)

    def _held_out(self, runs: slice, val_fraction: float) -> np.ndarray:
        held: np.ndarray = self.summary.draws[runs] < val_fraction * 2.0**32
        return held

    @cached_property
    def _first_runs(self) -> np.ndarray:
        """The first of each shard's runs, and how many there are: int64 [shards + 1]."""
        return np.append(0, np.cumsum(self.summary.videos, dtype=np.int64))


def open_samples(url: str, cache: LocalCache | None = None, version: int | None = None) -> Samples:
    """The samples of the gaze dataset at `url`, from all its indexes, or from the cache.

    version: of the dataset; None: the newest that is whole.
    Raises PipelineError, in one line: no dataset, not finished, damaged, or no clip of it is ok.
    """
    return samples_of(open_dataset(url), cache, version)


def samples_of(
    dataset: Dataset | FeatureDataset, cache: LocalCache | None = None, version: int | None = None
) -> Samples:
    """The samples of an opened dataset. Raises PipelineError as `open_samples` does."""
    for name in ("config", "shards", "vocabulary"):
        if name not in dataset.about:
            raise PipelineError(f"{dataset.url}/dataset.json: has no {name}; made by an unknown version of autogaze")
    listing = dataset.indexes.listing(fresh=True)
    planned = whole_version(dataset, listing.committed, version).shards
    if cache is None:
        summary = read_summary(dataset.indexes, planned)
    else:
        versions = [[*file.span, file.entry.bytes, file.entry.version] for file in listing.files]
        name = "samples 2 " + json.dumps([dataset.url, dataset.about, planned, versions], sort_keys=True)
        with cache.local(name, lambda path: _write(read_summary(dataset.indexes, planned), path)) as path:
            summary = _mapped(path)
    if not summary.samples.any():
        raise PipelineError(
            f"{dataset.url}: no clip of it is ok, so there is nothing to read; see: autogaze report {dataset.url}"
        )
    if isinstance(dataset, Dataset) and not dataset.frames_stored:
        require_decoder(dataset)
    return Samples(dataset, summary, _Rows(dataset))


def whole_version(dataset: Dataset | FeatureDataset, committed: Sequence[int], number: int | None = None) -> Version:
    """The version of a dataset that is to be read: of this number, or the newest that is whole.

    committed: shards, ascending. Raises PipelineError where there is none, or it is not whole.
    """
    versions = versions_of(dataset.about, dataset.url)
    wanted = versions[-1] if number is None else version_named(dataset.about, dataset.url, number)
    found = newest_whole(versions if number is None else [wanted], committed)
    if found is None:
        there = sum(shard < wanted.shards for shard in committed)
        job = "encode" if isinstance(dataset, FeatureDataset) else "preprocess"
        raise PipelineError(
            f"{dataset.url}: {there} of its {wanted.shards} shards are committed; finish it with autogaze {job}"
        )
    return found


def require_decoder(dataset: Dataset) -> None:
    """Raise PipelineError unless this machine decodes exactly as the one that made the dataset."""
    try:
        here = decoder_fingerprint(DecodeConfig(decoder=dataset.config["decoder"]))
    except ImportError as error:
        raise PipelineError(f"{dataset.url}: keeps no frames, and cannot be decoded here: {error}") from error
    there = dataset.about["software"]["decoder"]
    if here != there:
        raise PipelineError(
            f"{dataset.url}: keeps no frames, and was decoded by {there}, here is {here}; install that, or preprocess "
            "with frames=jpeg"
        )


def fingerprint_of_rows(samples: Samples) -> Iterator[bytes]:
    """What the fingerprint of a loader was made of before there were summaries: hashes over all samples' rows."""
    places, hashes = hashlib.sha256(), hashlib.sha256()
    numbers = range(samples.shards)
    for shard, table in zip(numbers, samples.dataset.indexes.tables(numbers, ["outcome", "sha256"]), strict=True):
        with _telling(samples.dataset, shard):
            ok = table.filter(pc.equal(table["outcome"], "ok"))
            places.update(np.full(len(ok), shard, "<i4").tobytes())
            hashes.update(hashes_of(ok))
    yield from (places.digest(), hashes.digest())


class _Rows:
    """The rows of the samples of shards, read when they are wanted."""

    def __init__(self, dataset: Dataset | FeatureDataset) -> None:
        self.dataset = dataset
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()

    def of(self, shard: int) -> pa.Table:
        if self._process != os.getpid():  # forked: a thread of the parent may have held the locks
            self._begin()
        with self._lock:
            kept = self._kept.setdefault(shard, _Shard())
            self._kept.move_to_end(shard)
            while len(self._kept) > _KEPT_SHARDS:
                self._kept.popitem(last=False)
        with kept.lock:  # one thread reads a shard, and the others wait for it
            if kept.table is None:
                kept.table = self._read(shard)
            return kept.table

    def _read(self, shard: int) -> pa.Table:
        dataset, more = self.dataset, ["tokens"] if isinstance(self.dataset, FeatureDataset) else []
        with _telling(dataset, shard):
            index = dataset.read_index(shard, [*_KEPT_COLUMNS, *more, *_DRAWN_COLUMNS, "outcome"])
            index = index.filter(pc.equal(index["outcome"], "ok"))
            buffers = [None, pa.py_buffer(hashes_of(index))]
            hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(index), buffers)
        table = index.select([*_KEPT_COLUMNS, *more]).set_column(_KEPT_COLUMNS.index("sha256"), "sha256", hashes)
        table = table.append_column("draw", pa.array(draws_of(index)))
        if isinstance(dataset, Dataset) and not dataset.frames_stored:
            rows = self._planned(dataset, shard, index["position"].to_numpy())
            for name in _PLAN_COLUMNS:
                table = table.append_column("object_offset" if name == "offset" else name, rows[name])
        return table.combine_chunks()

    def _planned(self, dataset: Dataset, shard: int, positions: np.ndarray) -> pa.Table:
        """The plan's rows of a shard at these positions, without what is not needed to decode them."""
        rows = dataset.plan.clips_of(shard).iloc[positions][_PLAN_COLUMNS]
        schema = pa.schema([PLAN_SCHEMA.field(name) for name in _PLAN_COLUMNS])
        return pa.Table.from_pandas(rows, schema=schema, preserve_index=False)


class _Shard:
    """The rows of a shard, once they are read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table: pa.Table | None = None


@contextmanager
def _telling(dataset: Dataset | FeatureDataset, shard: int) -> Iterator[None]:
    """Turn what an index can have wrong into one line."""
    url = shards.index_url(dataset.url, shard)
    try:
        yield
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: missing; was it taken back just now?") from error
    except (pa.ArrowException, ValueError, TypeError) as error:  # a hash that is none
        raise PipelineError(f"{url}: damaged, or not an index: {error}") from error


def _write(summary: SampleSummary, path: str) -> None:
    """One row of lists, since a mapped Arrow file gives these without a copy."""
    columns = {one.name: getattr(summary, one.name).reshape(-1) for one in fields(SampleSummary)}
    table = pa.table({name: pa.LargeListArray.from_arrays([0, len(each)], each) for name, each in columns.items()})
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: str) -> SampleSummary:
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    columns = {name: table[name].chunk(0).values.to_numpy(zero_copy_only=True) for name in table.column_names}
    return SampleSummary(**columns | {"digests": columns["digests"].reshape(len(columns["samples"]), -1)})
