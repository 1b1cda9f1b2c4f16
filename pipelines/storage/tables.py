"""Parquet in and out of stores: fixed schemas, bytes that depend on the rows alone, damage named in one line."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store


def to_bytes(frame: pd.DataFrame, schema: pa.Schema, groups: list[int] | None = None) -> bytes:
    """Rows as parquet. `groups` are the row numbers at which row groups start (None: one group).

    pandas' own metadata, which carries its version, is left out.
    """
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    return table_bytes(table, groups)


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
    names = schema.names if columns is None else list(columns)
    data = store.read(url)
    try:
        # Not pq.read_table: what it starts in the background now and then aborts the process at its exit.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=[name for name in names if name in dictionaries])
        there = file.schema_arrow.names
        if missing := [name for name in schema.names if name not in there and name not in optional]:
            raise ValueError(f"no column {missing[0]}")
        table = file.read([name for name in names if name in there], use_threads=False)
        for name in set(names).difference(there):
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        table = table.select(names)
        fields = [schema.field(name) for name in names]
        fields = [f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in dictionaries else f for f in fields]
        return table.cast(pa.schema(fields))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{url}: damaged, or not {what}: {' '.join(str(error).split())}") from error
