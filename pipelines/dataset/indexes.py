"""The files in a dataset's index/: one a shard while a job runs, later one for a thousand shards; read alike.

    index/000042.parquet           the rows of shard 42
    index/000000-000999.parquet    those of shards 0 to 999, in order; merged from a thousand of the former

A file's name says which shards it commits, so a listing tells what is committed. Where files overlap, as while a merge
is under way or after it was killed, they agree; the one of fewer shards counts. A shard may move from one file to
another at any time: whoever does not find a file any more looks once more where the shard is now.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.storage import store, tables
from pipelines.storage.location import Entry, Location
from pipelines.storage.tables import TableFile

BLOCK = 1000
"""Shards whose indexes become one file: those of the same thousand."""
_AT_ONCE = 16  # files read
_MOVES = 4  # times that a shard may be looked for anew
_KEPT_FILES, _KEPT_GROUPS = 16, 4  # groups of each file


PLACE_SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("video", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stride", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("padded", pa.int32(), nullable=False),
        pa.field("tile", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # ok | filtered | failed
        pa.field("reason", pa.string()),  # a name of pipelines.video.decode.REASONS when not ok
        pa.field("detail", pa.string()),
    ]
)
"""What the index of any dataset says of a clip: where it comes from, and what became of it.

Columns beyond these have a value for each ok clip.
"""
BYTES_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64()),  # the clip's members in the tar, headers included ...
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),  # ... and the hash of those bytes
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        *PLACE_SCHEMA,
        pa.field("tokens", pa.int32()),  # gazed patches of the clip
        pa.field("ratio", pa.float32()),  # tokens / (frames * vocabulary)
        pa.field("loss", pa.float32()),  # final error, mean over frames, in the units that dataset.json names
        pa.field("met", pa.float32()),  # share of frames that end at or under the threshold; predicted where `loss` is
        *BYTES_SCHEMA,
    ]
)
"""Of a gaze dataset."""


class Span(NamedTuple):
    """The shards of an index file, both included."""

    first: int
    last: int

    @property
    def shards(self) -> range:
        return range(self.first, self.last + 1)


class IndexFile(NamedTuple):
    """A file in index/: which shards it commits, and its entry in the listing."""

    span: Span
    entry: Entry


def span_of(url: str) -> Span | None:
    """The shards that a file in index/ commits; None for another file."""
    stem, _, suffix = url.rsplit("/", 1)[-1].rpartition(".")
    first, _, last = stem.partition("-")
    if suffix != "parquet" or not all(part.isdigit() for part in (first, last or first)):
        return None
    span = Span(int(first), int(last or first))
    return span if span.first <= span.last else None


def span_url(dataset: str, span: Span) -> Location:
    """Where the index of these shards is."""
    first, last = (f"{number:06d}" for number in span)
    return Location(dataset) / "index" / f"{first if first == last else f'{first}-{last}'}.parquet"


def block_of(shard: int) -> int:
    """The thousand that a shard is of."""
    return shard // BLOCK


def blocks(shards: int) -> list[Span]:
    """The thousands of a dataset of so many shards; what is left over at its end is none."""
    return [Span(first, first + BLOCK - 1) for first in range(0, shards - BLOCK + 1, BLOCK)]


class IndexListing:
    """What was in index/ when it was listed. files: in order of their shards."""

    def __init__(self, dataset: str) -> None:
        entries = store.list_objects(Location(dataset) / "index")
        found = [IndexFile(span, entry) for entry in entries if (span := span_of(entry.url)) is not None]
        self.files = sorted(found, key=lambda file: file.span)
        self._single = {file.span.first: file for file in self.files if file.span.first == file.span.last}
        self._merged = [file for file in self.files if file.span.first < file.span.last]
        self._widest = max((len(file.span.shards) for file in self._merged), default=0)

    @property
    def committed(self) -> list[int]:
        """Numbers of the committed shards, ascending."""
        merged = itertools.chain.from_iterable(file.span.shards for file in self._merged)
        return sorted(self._single.keys() | set(merged))

    def within(self, block: Span) -> list[IndexFile]:
        """The files of a thousand shards."""
        first, end = (
            bisect.bisect_left(self.files, shard, key=lambda file: file.span.first)
            for shard in (block.first, block.last + 1)
        )
        return self.files[first:end]

    def file_of(self, shard: int) -> IndexFile | None:
        """The file whose rows of a shard count; None where it is not committed."""
        if shard in self._single:
            return self._single[shard]
        found: IndexFile | None = None
        place = bisect.bisect_right(self._merged, shard, key=lambda file: file.span.first)
        for file in reversed(self._merged[:place]):
            if file.span.first + self._widest <= shard:
                break
            if shard in file.span.shards and (found is None or len(file.span.shards) < len(found.span.shards)):
                found = file
        return found


class Indexes:
    """The indexes of a dataset, opened for reading by any number of threads. schema: of its kind."""

    def __init__(self, dataset: Location, schema: pa.Schema) -> None:
        self.dataset, self.schema = dataset, schema
        self._begin()

    def _begin(self) -> None:
        self._listing: IndexListing | None = None
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], _MergedFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "schema": self.schema}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()

    @property
    def _valued(self) -> list[str]:
        return list(self.schema.names[len(PLACE_SCHEMA) :])

    def listing(self, fresh: bool = False) -> IndexListing:
        """What is there: as it was listed first, or with `fresh` now."""
        if fresh or self._listing is None:
            self._listing = IndexListing(self.dataset)
        return self._listing

    def table(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a committed shard, in order of position.

        Raises FileNotFoundError, and PipelineError when the file is damaged.
        """
        for attempt in range(_MOVES):
            fresh = attempt > 0 or self._listing is None
            file = self.listing(fresh).file_of(shard)
            if file is None and fresh:
                break
            if file is not None:
                try:
                    return self.read(file, shard, columns)
                except FileNotFoundError:
                    continue  # it was merged, or taken back, since it was listed
        raise FileNotFoundError(errno.ENOENT, "no index", span_url(self.dataset, Span(shard, shard)))

    def tables(self, shards: Sequence[int], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of these shards, a table each, in their order. Some are read ahead. Raises as `table` does."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for begin in range(0, len(shards), 4 * _AT_ONCE):
                yield from pool.map(lambda shard: self.table(shard, columns), shards[begin : begin + 4 * _AT_ONCE])

    def metadata(self, file: IndexFile, name: str) -> bytes | None:
        """What a merged file says of itself under a name; None of one shard's. Raises as `table` does."""
        if file.span.first == file.span.last:
            return None
        return tables.stated(file.entry.url, file.entry.bytes, name, "an index")

    def read(self, file: IndexFile, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard in one of its files: see `table`, which knows which one counts."""
        if file.span.first == file.span.last:
            # All of it, whatever was asked for: damage is told alike.
            table = tables.read(file.entry.url, self.schema, "an index")
            tables.require_values(file.entry.url, table, self._valued, "an index")
            return table if columns is None else table.select(columns)
        return self._merged(file).shard(shard, columns)

    def _merged(self, file: IndexFile) -> _MergedFile:
        key = file.entry.url, file.entry.version
        with self._lock:
            if key not in self._files:
                self._files[key] = _MergedFile(file, self.schema, self._valued)
                while len(self._files) > _KEPT_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]


class _MergedFile:
    """A file with the rows of many shards: those of one are found by the range of shards of each row group."""

    def __init__(self, file: IndexFile, schema: pa.Schema, valued: Sequence[str]) -> None:
        self._url, self._valued = file.entry.url, valued
        self.file = TableFile(file.entry.url, file.entry.bytes, schema, "an index")
        everything = (file.span.first, file.span.last)
        self._ranges = self.file.ranges("shard") or [everything] * self.file.groups
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()

    def shard(self, shard: int, columns: Sequence[str] | None) -> pa.Table:
        names = self.file.schema.names if columns is None else list(columns)
        needed = tuple(dict.fromkeys(["shard", *names]))
        parts = [
            self._group(group, needed) for group, (least, most) in enumerate(self._ranges) if least <= shard <= most
        ]
        table = pa.concat_tables([part.filter(pc.equal(part["shard"], shard)) for part in parts])
        return table.select(names)

    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        with self._lock:
            kept = self._groups.get((group, columns))
        if kept is None:
            kept = self.file.read(group, columns)
            valued = [name for name in self._valued if name in columns]
            if {"outcome", "clip"}.issubset(columns):
                tables.require_values(self._url, kept, valued, "an index")
        with self._lock:
            self._groups[group, columns] = kept
            self._groups.move_to_end((group, columns))
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        return kept
