"""The samples of a dataset: which there are, as one table.

A sample is a clip whose outcome is ok; its number is its place among them, by shard and position. The table has one row
for each and is all that readers keep of a dataset's indexes: a hundred bytes a sample. Where a LocalCache holds it as a
file, all processes of a machine map that file and share its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autogaze.patches import PatchVocabulary
from pipelines.corpus.names import video_of_clip
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.dataset import shards
from pipelines.dataset.features import FeatureDataset
from pipelines.dataset.shards import Dataset, open_dataset
from pipelines.errors import PipelineError
from pipelines.storage import store, tables
from pipelines.storage.cache import LocalCache
from pipelines.storage.location import Location
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint

_KEPT_COLUMNS = ["clip", "shard", "position", "offset", "size", "sha256"]
_INDEX_COLUMNS = [*_KEPT_COLUMNS, "outcome", "video", "start", "stride", "tile"]
# What it takes to decode a clip again; the plan's `offset` becomes `object_offset`.
_PLAN_COLUMNS = [
    "object", "offset", "bytes", "fingerprint", "start", "stride", "frames", "video_frames", "width", "height", "tile",
]  # fmt: skip
_REPEATING = ("object", "fingerprint", "tile")
_READERS = 16
_TOGETHER = 512  # indexes made one table at a time: thousands of small tables would leave memory in pieces


@dataclass(frozen=True)
class Samples:
    """The samples of one dataset.

    Attributes:
        dataset: opened.
        table: a row per sample, in order: clip, shard, position, offset, size, sha256 (32 bytes), and `draw` uint32, a
            hash of its video's name. Where frames are not stored, also what it takes to decode them (`object` ...
            `tile`); of features, `tokens`.
    """

    dataset: Dataset | FeatureDataset
    table: pa.Table

    @property
    def url(self) -> Location:
        return self.dataset.url

    @property
    def about(self) -> dict[str, Any]:
        """dataset.json."""
        return self.dataset.about

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shards(self) -> int:
        return int(self.about["shards"])

    @property
    def frames(self) -> int:
        """T, the frames of each clip."""
        return int(self.about["config"]["clip"]["frames"])

    @property
    def vocabulary(self) -> PatchVocabulary:
        return self.dataset.vocabulary

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, without a copy."""
        return np.asarray(self.table.column(name).chunk(0).to_numpy(zero_copy_only=True))

    def row(self, number: int) -> dict[str, Any]:
        """A sample's row of the table."""
        return {name: self.table.column(name)[number].as_py() for name in self.table.column_names}

    def split(self, name: str, val_fraction: float) -> np.ndarray:
        """Numbers of the samples of a split (train, val or all), ascending: int64 [n].

        A pure function of the names of the videos: all clips of a video are on one side, in every dataset made of it,
        and a larger val_fraction only adds videos to val.
        """
        if name == "all":
            return np.arange(len(self), dtype=np.int64)
        held_out = self.column("draw") < val_fraction * 2.0**32
        return np.flatnonzero(held_out if name == "val" else ~held_out)


def open_samples(url: str, cache: LocalCache | None = None) -> Samples:
    """The samples of the gaze dataset at `url`, from all its indexes, or from the cache.

    Raises PipelineError, in one line: no dataset, not finished, damaged, or no clip of it is ok.
    """
    return samples_of(open_dataset(url), cache)


def samples_of(dataset: Dataset | FeatureDataset, cache: LocalCache | None = None) -> Samples:
    """The samples of an opened dataset. Raises PipelineError as `open_samples` does."""
    for name in ("config", "shards", "vocabulary"):
        if name not in dataset.about:
            raise PipelineError(f"{dataset.url}/dataset.json: has no {name}; made by an unknown version of autogaze")
    planned = dataset.about["shards"]
    entries = list(store.list_objects(dataset.url / "index"))
    committed = sum(shards.shard_of_index(entry.url) is not None for entry in entries)
    if committed != planned:
        job = "encode" if isinstance(dataset, FeatureDataset) else "preprocess"
        raise PipelineError(
            f"{dataset.url}: {committed} of its {planned} shards are committed; finish it with autogaze {job}"
        )
    if cache is None:
        table = _table(dataset)
    else:
        versions = [[entry.url, entry.bytes, entry.version] for entry in entries]
        name = "samples " + json.dumps([dataset.url, dataset.about, versions], sort_keys=True)
        with cache.local(name, lambda path: _write(_table(dataset), path)) as path:
            table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    if not len(table):
        raise PipelineError(
            f"{dataset.url}: no clip of it is ok, so there is nothing to read; see: autogaze report {dataset.url}"
        )
    if isinstance(dataset, Dataset) and not dataset.frames_stored:
        require_decoder(dataset)
    return Samples(dataset, table)


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


def _table(dataset: Dataset | FeatureDataset) -> pa.Table:
    """The table of Samples, from all indexes and, where it takes that to find the frames, from the plan."""
    planned = dataset.about["shards"]
    with ThreadPoolExecutor(_READERS) as pool:
        parts = []
        for first in range(0, planned, _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, planned))
            read = pool.map(lambda shard: _samples_of_shard(dataset, shard), numbers)
            parts.append(pa.concat_tables(read).combine_chunks())
    table = pa.concat_tables(parts).combine_chunks()
    if isinstance(dataset, Dataset) and not dataset.frames_stored:
        rows = _planned(dataset, table)
        for name in _PLAN_COLUMNS:
            table = table.append_column("object_offset" if name == "offset" else name, rows[name])
    return table.unify_dictionaries().combine_chunks()


def _samples_of_shard(dataset: Dataset | FeatureDataset, shard: int) -> pa.Table:
    """The ok rows of one shard's index: hashes as bytes, and `draw`."""
    url, more = dataset.url, ["tokens"] if isinstance(dataset, FeatureDataset) else []
    try:
        index = dataset.read_index(shard, [*_INDEX_COLUMNS, *more])
        index = index.filter(pc.equal(index["outcome"], "ok"))
        hashes = pa.py_buffer(bytes.fromhex("".join(index["sha256"].to_pylist())))
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(index), [None, hashes])
    except FileNotFoundError as error:
        raise PipelineError(f"{shards.index_url(url, shard)}: missing; was it taken back just now?") from error
    except (pa.ArrowException, ValueError, TypeError) as error:  # a hash that is none
        raise PipelineError(f"{shards.index_url(url, shard)}: damaged, or not an index: {error}") from error
    table = index.select([*_KEPT_COLUMNS, *more]).set_column(_KEPT_COLUMNS.index("sha256"), "sha256", column)
    return table.append_column("draw", pa.array(_draws(index)))


def _draws(index: pa.Table) -> np.ndarray:
    """A hash of the name of each row's video: uint32 [rows]."""
    videos = index["video"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, firsts, which = np.unique(videos, return_index=True, return_inverse=True)
    rows = index.select(["clip", "start", "stride", "tile"]).take(pa.array(firsts)).to_pylist()
    return np.array([_draw(video_of_clip(**row)) for row in rows], np.uint32)[which]


def _draw(video: str) -> int:
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:4], "big")


def _planned(dataset: Dataset, table: pa.Table) -> pa.Table:
    """The plan's rows of the samples, without what is not needed to decode them."""
    kinds = [PLAN_SCHEMA.field(name) for name in _PLAN_COLUMNS]
    schema = pa.schema([f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in _REPEATING else f for f in kinds])
    shards, positions = table["shard"].to_numpy(), table["position"].to_numpy()
    ends = [*np.flatnonzero(np.diff(shards)) + 1, len(shards)]
    found = [schema.empty_table()]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        if end > begin:
            rows = dataset.plan.clips_of(int(shards[begin]))[_PLAN_COLUMNS].iloc[positions[begin:end]]
            found.append(tables.as_table(rows, schema))
    return pa.concat_tables(found).unify_dictionaries().combine_chunks()


def _write(table: pa.Table, path: str) -> None:
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
