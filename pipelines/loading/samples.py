"""The samples of a dataset: which there are, as one table, and what the bytes of one hold.

A sample is a clip whose outcome is ok; its number is its place among them, by shard and position. The table has a row
for each, and is all that readers keep of a dataset's indexes: a hundred bytes a sample, or none of their own where a
LocalCache holds it as a file that all processes of a machine map.
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
import pyarrow.parquet as pq

from autogaze.patches import PatchVocabulary
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.storage import store, urls
from pipelines.storage.cache import LocalCache
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint

_INDEX_COLUMNS = ["clip", "shard", "position", "outcome", "offset", "size", "sha256"]
# What it takes to decode a clip again; `object_offset` is the plan's `offset`.
_PLAN_COLUMNS = [
    "object", "offset", "bytes", "fingerprint", "start", "stride", "frames", "video_frames", "width", "height", "tile",
]  # fmt: skip
_REPEATING = ["object", "fingerprint", "tile"]
_CLIP_OF_VIDEO = r"-\d{6,}(-s\d+)?(-r\d+c\d+)?$"  # what a clip's name adds to its video's (docs/formats.md)
_READERS = 16
_TOGETHER = 512  # indexes


@dataclass(frozen=True)
class Samples:
    """The samples of one dataset.

    Attributes:
        url: its place.
        about: dataset.json.
        table: a row per sample, in order: clip, shard, position, offset, size, sha256 (32 bytes), and `draw` uint32, a
            hash of its video. Where frames are not stored, also what it takes to decode them (`object` ... `tile`).
    """

    url: str
    about: dict[str, Any]
    table: pa.Table

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
    def frames_stored(self) -> bool:
        return bool(self.about["config"]["frames"] != "none")

    @property
    def vocabulary(self) -> PatchVocabulary:
        about = self.about["vocabulary"]
        return PatchVocabulary(tuple(about["scales"]), about["patch_size"])

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, without a copy."""
        return np.asarray(self.table.column(name).chunk(0).to_numpy(zero_copy_only=True))

    def row(self, number: int) -> dict[str, Any]:
        """All that the table has of a sample."""
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
    """The samples of the dataset at `url`, from all its indexes, or from the cache.

    Raises PipelineError, in one line: no dataset, not finished, damaged, or no clip of it is ok.
    """
    url = urls.normalise(url)
    about = _about(url)
    entries = list(store.list_objects(urls.join(url, "index")))
    numbers = [number for entry in entries if (number := entry.url.rsplit("/", 1)[-1][:-8]).isdigit()]
    if len(numbers) != about["shards"]:
        raise PipelineError(
            f"{url}: {len(numbers)} of its {about['shards']} shards are committed; finish it with autogaze preprocess"
        )
    if cache is None:
        table = _table(url, about)
    else:
        versions = [[entry.url, entry.bytes, entry.version] for entry in entries]
        name = "samples " + json.dumps([url, about, versions], sort_keys=True)
        with cache.local(name, lambda path: _write(_table(url, about), path)) as path:
            table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    if not len(table):
        raise PipelineError(f"{url}: no clip of it is ok, so there is nothing to read; see: autogaze report {url}")
    samples = Samples(url, about, table)
    if not samples.frames_stored:
        _require_decoder(samples)
    return samples


def _about(url: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(store.read(urls.join(url, "dataset.json")))
        missing = [name for name in ("config", "shards", "vocabulary") if name not in about]
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no dataset here (no dataset.json); make one with: autogaze preprocess") from error
    except ValueError as error:
        raise PipelineError(f"{url}/dataset.json: damaged: {error}") from error
    if missing:
        raise PipelineError(f"{url}/dataset.json: has no {missing[0]}; made by an unknown version of autogaze")
    return about


def _require_decoder(samples: Samples) -> None:
    config = samples.about["config"]
    try:
        here = decoder_fingerprint(DecodeConfig(decoder=config["decoder"]))
    except ImportError as error:
        raise PipelineError(f"{samples.url}: keeps no frames, and cannot be decoded here: {error}") from error
    there = samples.about["software"]["decoder"]
    if here != there:
        raise PipelineError(
            f"{samples.url}: keeps no frames, and was decoded by {there}, here is {here}; install that, or preprocess "
            "with frames=jpeg"
        )


def _table(url: str, about: dict[str, Any]) -> pa.Table:
    with ThreadPoolExecutor(_READERS) as pool:
        parts = []
        for first in range(0, about["shards"], _TOGETHER):  # thousands of small tables would leave memory in pieces
            some = range(first, min(first + _TOGETHER, about["shards"]))
            read = pool.map(lambda shard: _index(shards.index_url(url, shard)), some)
            parts.append(pa.concat_tables(read).combine_chunks())
    table = pa.concat_tables(parts).combine_chunks()
    videos = pc.replace_substring_regex(table["clip"], _CLIP_OF_VIDEO, "").combine_chunks().dictionary_encode()
    draws = np.array([_draw(name) for name in videos.dictionary.to_pylist()], np.uint32)
    table = table.append_column("draw", pa.array(draws[videos.indices.to_numpy()]))
    if about["config"]["frames"] == "none":
        planned = _planned(url, table)
        for name in _PLAN_COLUMNS:
            table = table.append_column("object_offset" if name == "offset" else name, planned[name])
    return table.unify_dictionaries().combine_chunks()


def _draw(video: str) -> int:
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:4], "big")


def _index(url: str) -> pa.Table:
    """The ok rows of an index, hashes as bytes."""
    try:
        file = pq.ParquetFile(pa.BufferReader(store.read(url)))
        table = file.read(_INDEX_COLUMNS, use_threads=False)
        table = table.filter(pc.equal(table["outcome"], "ok")).drop_columns(["outcome"])
        hashes = pa.py_buffer(bytes.fromhex("".join(table["sha256"].to_pylist())))
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(table), [None, hashes])
        return table.set_column(table.column_names.index("sha256"), "sha256", column)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{url}: damaged, or not an index: {' '.join(str(error).split())}") from error


def _planned(url: str, table: pa.Table) -> pa.Table:
    """The plan's rows of the samples."""
    place = urls.join(url, "plan.parquet")
    try:
        data = pa.BufferReader(store.read(place))
        plan = pq.read_table(data, columns=["shard", *_PLAN_COLUMNS], read_dictionary=_REPEATING)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PipelineError(f"{place}: damaged, or not a plan: {' '.join(str(error).split())}") from error
    first = np.searchsorted(plan["shard"].to_numpy(), table["shard"].to_numpy())
    return plan.unify_dictionaries().combine_chunks().take(pa.array(first + table["position"].to_numpy()))


def _write(table: pa.Table, path: str) -> None:
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


# -- one sample ------------------------------------------------------------------------------------------------------
