"""An index that pandas, polars or DuckDB wrote again is read as it was, or refused by every job in the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import shards
from pipelines.dataset.shards import INDEX_SCHEMA, read_index
from pipelines.errors import PipelineError
from pipelines.inspection.survey import take_survey
from pipelines.inspection.verify import verify
from pipelines.loading.samples import open_samples
from pipelines.storage import tables
from tests.support import training


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of two shards, one clip of which failed."""
    return Path(training.write_dataset(tmp_path / "gaze"))


def with_text(table: pa.Table, kind: pa.DataType) -> pa.Table:
    fields = [pa.field(f.name, kind if f.type == pa.string() else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))


def dictionaries(table: pa.Table) -> pa.Table:
    return pa.table(
        {f.name: table[f.name].dictionary_encode() if f.type == pa.string() else table[f.name] for f in table.schema}
    )


WAYS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "pandas": lambda t: pa.Table.from_pandas(t.to_pandas()),  # whole numbers with nulls become floats
    "pandas, nullable": lambda t: pa.Table.from_pandas(t.to_pandas().convert_dtypes()),
    "pandas, an index": lambda t: pa.Table.from_pandas(t.to_pandas().set_index("clip")),
    "pandas, a column more": lambda t: pa.Table.from_pandas(t.to_pandas().assign(score=1.5)),
    "polars": lambda t: with_text(t, pa.large_string()),
    "views": lambda t: with_text(t, pa.string_view()),
    "dictionaries": dictionaries,
    "bytes": lambda t: with_text(t, pa.binary()),
    "DuckDB, sums": lambda t: t.set_column(12, "tokens", t["tokens"].cast(pa.decimal128(38, 0))),
    "wide": lambda t: pa.table(
        {f.name: t[f.name].cast(pa.int64() if pa.types.is_integer(f.type) else f.type) for f in t.schema}
    ),
    "other order": lambda t: t.select(t.column_names[::-1]),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_others_write_is_read_as_it_was(dataset: Path, way: str) -> None:
    before, place = open_samples(str(dataset)).table, Path(shards.index_url(str(dataset), 0))
    index = read_index(str(dataset), 0)
    pq.write_table(WAYS[way](pq.read_table(place)), place, row_group_size=2)
    assert place.read_bytes() != tables.table_bytes(index)
    assert read_index(str(dataset), 0).equals(index) and index.schema == INDEX_SCHEMA
    assert open_samples(str(dataset)).table.equals(before), "also beside shards that nobody touched"
    assert verify(str(dataset)).problems == []
    assert take_survey(shards.open_dataset(str(dataset))).ok == len(before)


@pytest.mark.parametrize("column", ["tokens", "ratio", "loss", "met", "offset", "size", "sha256", "clip", "frames"])
def test_a_null_where_an_ok_clip_has_a_value_is_refused_alike(dataset: Path, column: str) -> None:
    place = Path(shards.index_url(str(dataset), 0))
    frame = pd.read_parquet(place, dtype_backend="numpy_nullable")
    frame.loc[0, column] = pd.NA
    frame.to_parquet(place)
    told = set()
    for job in (open_samples, lambda url: take_survey(shards.open_dataset(url)), lambda url: read_index(url, 0)):
        with pytest.raises(PipelineError) as error:
            job(str(dataset))
        told.add(str(error.value))
    [line] = told
    assert "\n" not in line and line.startswith(f"{place}: damaged, or not an index: ") and column in line
    assert verify(str(dataset)).problems == [f"shard 0: {line}"]


@pytest.mark.parametrize("value", [np.nan, 1.5, 2.0**40])
def test_numbers_that_a_column_cannot_hold_are_refused(dataset: Path, value: float) -> None:
    place = Path(shards.index_url(str(dataset), 0))
    frame = pq.read_table(place).to_pandas().astype({"tokens": "float64"})
    frame.loc[0, "tokens"] = value
    pq.write_table(
        pa.Table.from_pandas(frame, preserve_index=False).set_column(
            12, "tokens", pa.array(frame["tokens"].to_numpy())
        ),
        place,
    )
    with pytest.raises(PipelineError, match="damaged, or not an index"):
        open_samples(str(dataset))


def test_a_plan_that_was_written_again_is_read_and_told_by_verify(dataset: Path) -> None:
    place = dataset / "plan.parquet"
    rows = shards.open_dataset(str(dataset)).plan.rows()
    rows.to_parquet(place)
    pd.testing.assert_frame_equal(shards.open_dataset(str(dataset)).plan.rows(), rows)
    assert "plan.parquet: its hash is not the one in dataset.json" in verify(str(dataset)).problems
