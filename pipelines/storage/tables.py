"""Parquet in and out of stores: fixed schemas, bytes that depend on the rows alone, damage named in one line."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store

_TAIL_BYTES = 256 << 10  # of a file, read at once: mostly all of its metadata
_NEXT_STRING = 0x18  # Thrift's compact protocol: the field after the last one, a string


def to_bytes(frame: pd.DataFrame, schema: pa.Schema, groups: list[int] | None = None) -> bytes:
    """Rows as parquet. `groups` are the row numbers at which row groups start (None: one group).

    pandas' own metadata, which carries its version, is left out.
    """
    return table_bytes(as_table(frame, schema), groups)


def as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """Rows as a table, without pandas' own metadata."""
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)


def table_bytes(table: pa.Table, groups: list[int] | None = None) -> bytes:
    """A table as parquet; `groups` as in to_bytes."""
    starts = groups or [0]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for low, high in zip(starts, [*starts[1:], len(table)], strict=True):
            writer.write_table(table.slice(low, high - low))
    return sink.getvalue()


def read(
    url: str,
    schema: pa.Schema,
    what: str,
    columns: Sequence[str] | None = None,
    dictionaries: Collection[str] = (),
    optional: Collection[str] = (),
) -> pa.Table:
    """A table that to_bytes wrote, perhaps rewritten since by pandas, polars or DuckDB.

    Those keep the values and change the rest: the order of columns, text as large_string, string_view or dictionary,
    whole numbers of another width, or as floats where some are null. The table comes in the types of `schema`.

    Args:
        schema: the columns it must have; others are left out.
        what: it is, for the error: "not <what>".
        columns: to read, in their order; None: all.
        dictionaries: columns whose few texts repeat, to be kept as dictionaries.
        optional: columns that older versions did not write: null where they are missing.
    Raises FileNotFoundError; PipelineError when it is damaged or something else.
    """
    return from_bytes(store.read(url), url, schema, what, columns, dictionaries, optional)


def from_bytes(
    data: bytes,
    url: str,
    schema: pa.Schema,
    what: str,
    columns: Sequence[str] | None = None,
    dictionaries: Collection[str] = (),
    optional: Collection[str] = (),
) -> pa.Table:
    """As `read`, of bytes that were read from `url`."""
    with _reading(url, what):
        names = schema.names if columns is None else list(columns)
        # Not pq.read_table: what it starts in the background now and then aborts the process at its exit.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=[name for name in names if name in dictionaries])
        there = _there(file, schema, optional)
        rows = file.read([name for name in names if name in there], use_threads=False)
        return _conformed(rows, names, schema, dictionaries)


def stream(
    url: str,
    schema: pa.Schema,
    what: str,
    columns: Sequence[str] | None = None,
    optional: Collection[str] = (),
    rows: int = 1 << 14,
) -> Iterator[pa.Table]:
    """As `read`, some rows at a time, so that a table of any size is read in little memory."""
    names = schema.names if columns is None else list(columns)
    with store.open_read(url) as raw, _reading(url, what):
        file = pq.ParquetFile(raw, buffer_size=1 << 20)
        wanted = [name for name in names if name in _there(file, schema, optional)]
        for batch in file.iter_batches(rows, columns=wanted, use_threads=False):
            yield _conformed(pa.Table.from_batches([batch]), names, schema)


class TableFile:
    """A table that is read a row group at a time, each in one request: for files that hold more than is wanted.

    Any number of threads may read it. Of an object that was replaced since its size was seen nothing can be read.

    Attributes:
        schema: of its tables.
        groups: how many row groups it has.

    Raises FileNotFoundError; PipelineError when it is damaged or something else.
    """

    def __init__(self, url: str, size: int, schema: pa.Schema, what: str) -> None:
        self._url, self._size, self.schema, self._what = url, size, schema, what
        with _reading(url, what):
            self._metadata = _footer(url, size)
        self.groups: int = self._metadata.num_row_groups

    def ranges(self, column: str) -> list[tuple[int, int]] | None:
        """The least and the largest number of a column in each row group; None where the file does not say."""
        with _reading(self._url, self._what):
            place = self._metadata.schema.names.index(column)
            stated = [self._metadata.row_group(group).column(place).statistics for group in range(self.groups)]
        if not all(one is not None and one.has_min_max for one in stated):
            return None
        return [(int(one.min), int(one.max)) for one in stated]

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a row group, in the types of the schema."""
        names = self.schema.names if columns is None else list(columns)
        with _reading(self._url, self._what):
            about = self._metadata.row_group(group)
            chunks = [about.column(place) for place in range(about.num_columns)]
            starts = [min(one.dictionary_page_offset or one.data_page_offset, one.data_page_offset) for one in chunks]
            begin = min(starts)
            end = max(start + one.total_compressed_size for start, one in zip(starts, chunks, strict=True))
            data = store.read(self._url, begin, end - begin)
            file = pq.ParquetFile(_Part(data, begin, self._size), metadata=self._metadata)
            _there(file, self.schema, ())
            return _conformed(file.read_row_group(group, names, use_threads=False), names, self.schema)


def require_values(url: str, table: pa.Table, columns: Sequence[str], what: str) -> None:
    """Raise PipelineError where an ok clip has no value in one of these columns."""
    ok = pc.equal(table["outcome"], "ok")
    for name in columns:
        if table[name].null_count and (len(bad := table.filter(pc.and_(ok, pc.is_null(table[name]))))):
            raise PipelineError(f"{url}: damaged, or not {what}: {bad['clip'][0]} is ok and has no {name}")


@contextmanager
def _reading(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{url}: damaged, or not {what}: {' '.join(str(error).split())}") from error


def _there(file: pq.ParquetFile, schema: pa.Schema, optional: Collection[str]) -> list[str]:
    """The columns of a parquet file. Raises ValueError where one of the schema's is missing."""
    there: list[str] = file.schema_arrow.names
    if missing := [name for name in schema.names if name not in there and name not in optional]:
        raise ValueError(f"no column {missing[0]}")
    return there


def _conformed(
    table: pa.Table, names: Sequence[str], schema: pa.Schema, dictionaries: Collection[str] = ()
) -> pa.Table:
    """The columns by these names in the schema's types; null where the table lacks one."""
    for name in set(names).difference(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    fields = [schema.field(name) for name in names]
    fields = [f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in dictionaries else f for f in fields]
    return table.select(names).cast(pa.schema(fields))


def stated(url: str, size: int, name: str, what: str) -> bytes | None:
    """What a parquet file says of itself under a name; None where it says nothing.

    Found in the file's end without making objects of all that is there: of a thousand files with a thousand row groups
    those would take gigabytes. A name and what it stands for are two strings in Thrift's compact protocol, one after
    the other, behind all row groups. Raises as TableFile does.
    """
    with _reading(url, what):
        footer, _ = _footer_bytes(url, size)
        key = bytes([len(name)]) + name.encode()  # a length below 128 is one byte
        at = footer.rfind(key) + len(key)
        if at < len(key) or footer[at] != _NEXT_STRING:
            return None
        length = shift = 0
        for place in range(at + 1, at + 6):
            length, shift = length | (footer[place] & 127) << shift, shift + 7
            if footer[place] < 128:
                return footer[place + 1 : place + 1 + length]
        return None


def _footer(url: str, size: int) -> pq.FileMetaData:
    """The metadata at the end of a parquet file."""
    tail, begin = _footer_bytes(url, size)
    return pq.ParquetFile(_Part(tail, begin, size)).metadata


def _footer_bytes(url: str, size: int) -> tuple[bytes, int]:
    """The end of a parquet file, all of its metadata with it, and where that begins; in one request or two."""
    begin = max(size - _TAIL_BYTES, 0)
    tail = store.read(url, begin, size - begin)
    if tail[-4:] != b"PAR1" or len(tail) != size - begin:
        raise ValueError("it does not end as a parquet file")
    wanted = int.from_bytes(tail[-8:-4], "little") + 8
    if wanted > len(tail):
        begin = max(size - wanted, 0)
        tail = store.read(url, begin, size - begin)
    return tail, begin


class _Part(io.RawIOBase):
    """Some bytes of a file, as if it were all of it."""

    def __init__(self, data: bytes, begin: int, size: int) -> None:
        self._data, self._begin, self._size, self._at = memoryview(data), begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, length: int = -1) -> bytes:
        first = self._at - self._begin
        length = self._size - self._at if length < 0 else length
        if not 0 <= first <= first + length <= len(self._data):
            raise ValueError(f"bytes {self._at} to {self._at + length} were not read")
        self._at += length
        return bytes(self._data[first : first + length])
