"""The manifest of a store: a row per video, in one parquet file or, within a dataset, in a folder of parts.

Rows are in order of object and uri where we wrote them. They are read as a stream, whatever program wrote the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store, tables
from pipelines.storage.location import Location

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # object, or object#member for a video inside a tar
        pa.field("object", pa.string(), nullable=False),  # URL of the object that holds the bytes
        pa.field("offset", pa.int64(), nullable=False),  # first byte in the object; 0 unless in a tar
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),  # the object's ETag or mtime when scanned
        pa.field("fingerprint", pa.string(), nullable=False),  # hash of the size and of both ends of the bytes
        pa.field("container", pa.string(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # coded size, before rotation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int32(), nullable=False),  # degrees clockwise to turn for display
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),  # seconds
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("reason", pa.string()),  # a name of pipelines.video.decode.REASONS when failed
        pa.field("detail", pa.string()),
        pa.field("passed_over", pa.string()),  # of a tar, in its first row: what a scan left out of it, JSON by reason
        pa.field("mirrored", pa.bool_()),  # to be mirrored left to right for display, before it is turned
        pa.field("fps_source", pa.string()),  # what says the rate: timestamps, header, or nothing ("")
        pa.field("duration_source", pa.string()),
    ]
)
OPTIONAL_COLUMNS = ("passed_over", "mirrored", "fps_source", "duration_source")  # null where older versions wrote
_WHAT = "a manifest; make one with `autogaze scan`"
_ORDER = ("object", "uri")
_GROUP_ROWS = 1 << 17


def manifest_bytes(manifest: pa.Table | pd.DataFrame) -> bytes:
    """Rows of a manifest as parquet."""
    return tables.table_bytes(
        manifest if isinstance(manifest, pa.Table) else tables.as_table(manifest, MANIFEST_SCHEMA)
    )


def write_manifest(rows: Iterable[pa.Table], url: str) -> None:
    """Write a manifest as one file, some rows at a time. It appears when it is complete."""
    with store.publishing(url) as out, pq.ParquetWriter(out, MANIFEST_SCHEMA, compression="zstd") as writer:
        for part in in_parts(rows, _GROUP_ROWS):
            writer.write_table(part.combine_chunks())


def in_parts(rows: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of some tables, in tables of `size` rows; fewer in the last."""
    waiting: list[pa.Table] = []
    count = 0
    for table in rows:
        waiting.append(table)
        count += len(table)
        if count >= size:
            joined = pa.concat_tables(waiting)
            whole = count // size * size
            for begin in range(0, whole, size):
                yield joined.slice(begin, size)
            waiting, count = [joined.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(waiting)


def manifest_files(url: str) -> list[Location]:
    """The file of a manifest, or its parts in order; [] where there is none."""
    place = Location(url)
    if store.entry(place) is not None:
        return [place]
    return [entry.url for entry in store.list_objects(place) if entry.url.endswith(".parquet")]


def manifest_tables(url: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a manifest, or some columns of it, as they are stored, some thousand at a time.

    Raises PipelineError when it is not one.
    """
    files = manifest_files(url)
    if not files:
        raise PipelineError(f"{url}: no such manifest")
    for file in files:
        try:
            yield from tables.stream(file, MANIFEST_SCHEMA, _WHAT, columns, OPTIONAL_COLUMNS)
        except FileNotFoundError as error:
            raise PipelineError(f"{file}: removed while it was read") from error


def read_manifest(url: str) -> pd.DataFrame:
    """A whole manifest. Raises PipelineError when it is not one."""
    return pa.concat_tables([*manifest_tables(url), MANIFEST_SCHEMA.empty_table()]).to_pandas()


@dataclass
class OrderedManifest:
    """A manifest to be planned.

    Attributes:
        tables: its rows in order of object and uri, each video once.
        folder: the deepest folder that holds all its videos.
        videos: how many rows it has, and `repeated`: the uris of those that are left out, since an earlier one names
            the same video.
    """

    tables: Iterator[pa.Table]
    folder: str
    videos: int
    repeated: list[str]


def ordered_manifest(url: str) -> OrderedManifest:
    """Read a manifest in order. One that is not in order is sorted in memory.

    Raises PipelineError when it is not one.
    """
    count, in_order, prefix = 0, True, ""
    last: tuple[str, str] | None = None
    for table in manifest_tables(url, _ORDER):
        if not len(table):
            continue
        ends = pc.min_max(table["uri"])
        names = [ends["min"].as_py(), ends["max"].as_py(), *([prefix] if count else [])]
        prefix = os.path.commonprefix(names)  # noqa: RUF071 (of letters: it ends at a folder below)
        count += len(table)
        in_order = in_order and _rising(table, last)
        last = (table["object"][-1].as_py(), table["uri"][-1].as_py())
    folder = prefix.rpartition("/")[0]
    if in_order:
        return OrderedManifest(manifest_tables(url), folder, count, [])
    table = pa.concat_tables(manifest_tables(url))
    table = table.take(pc.sort_indices(table, [(name, "ascending") for name in _ORDER]))
    uri = table["uri"].combine_chunks()
    same = pa.concat_arrays([pa.array([False] * min(count, 1)), pc.equal(uri[1:], uri[:-1])])
    return OrderedManifest(iter([table.filter(pc.invert(same))]), folder, count, table["uri"].filter(same).to_pylist())


def _rising(table: pa.Table, last: tuple[str, str] | None) -> bool:
    """Whether each row of a table, and its first after `last`, comes after the one before it, by object and uri."""
    keys = [table[name].combine_chunks() for name in _ORDER]
    if last is not None and last >= tuple(key[0].as_py() for key in keys):
        return False
    (lower, higher), (before, after) = ((key[:-1], key[1:]) for key in keys)
    rising = pc.or_(pc.less(lower, higher), pc.and_(pc.equal(lower, higher), pc.less(before, after)))
    return bool(pc.all(rising, min_count=0).as_py())
