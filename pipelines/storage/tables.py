"""Parquet in and out of stores: fixed schemas, bytes that depend on the rows alone, damage named in one line."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store


def to_bytes(frame: pd.DataFrame, schema: pa.Schema, groups: list[int] | None = None) -> bytes:
    """Rows as parquet. `groups` are the row numbers at which row groups start (None: one group).

    pandas' own metadata, which carries its version, is left out: bytes depend on the rows alone.
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
    names = schema.names if columns is None else list(columns)
    try:
        # Not pq.read_table: what it starts in the background now and then aborts the process at its exit.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=[name for name in names if name in dictionaries])
        there = _there(file, schema, optional)
        return _conformed(file.read([n for n in names if n in there], use_threads=False), names, schema, dictionaries)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(url, what, error) from error


def batches(
    url: str,
    schema: pa.Schema,
    what: str,
    columns: Sequence[str] | None = None,
    optional: Collection[str] = (),
    rows: int = 1 << 14,
) -> Iterator[pa.Table]:
    """As `read`, some rows at a time, so that a table of any size is read in little memory."""
    names = schema.names if columns is None else list(columns)
    with store.open_read(url) as raw:
        try:
            file = pq.ParquetFile(raw, buffer_size=1 << 20)
            wanted = [name for name in names if name in _there(file, schema, optional)]
            for batch in file.iter_batches(rows, columns=wanted, use_threads=False):
                yield _conformed(pa.Table.from_batches([batch]), names, schema)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise damaged(url, what, error) from error


def damaged(url: str, what: str, error: Exception) -> PipelineError:
    """What is told of a file that cannot be read as what it should be."""
    return PipelineError(f"{url}: damaged, or not {what}: {' '.join(str(error).split())}")


def _there(file: Any, schema: pa.Schema, optional: Collection[str]) -> list[str]:
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
