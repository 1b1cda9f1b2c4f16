"""Parquet in and out of stores: fixed schemas, bytes that depend on the rows alone, damage named in one line."""

from __future__ import annotations

import io

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
    starts = groups or [0]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for low, high in zip(starts, [*starts[1:], len(table)], strict=True):
            writer.write_table(table.slice(low, high - low))
    return sink.getvalue()


def read(url: str, schema: pa.Schema, what: str) -> pa.Table:
    """A table that to_bytes wrote.

    Raises FileNotFoundError; PipelineError when it is damaged or something else ("not <what>").
    """
    data = store.read(url)
    try:
        # Not pq.read_table: what it starts in the background now and then aborts the process at its exit.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        if missing := [name for name in schema.names if name not in table.schema.names]:
            raise KeyError(f"no column {missing[0]}")
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{url}: damaged, or not {what}: {' '.join(str(error).split())}") from error
