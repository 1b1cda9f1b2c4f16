"""Lists of videos: a text file with a path or URL on each line, or a table with a column `url`."""

from __future__ import annotations

import codecs
import csv
import io
import posixpath

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.suffixes import suffix_of
from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.storage.location import Location, is_local

URL_COLUMN = "url"  # in any case


def read_list(url: Location) -> list[str]:
    """The paths and URLs that a list names, in order, empty ones left out; relative ones as they are written.

    .txt: one a line, as it stands. .csv, .tsv and .parquet: those of the column `url`.
    Raises PipelineError: missing, not such a file, without the column, or empty. StoreError.
    """
    try:
        data = store.read(url)
    except FileNotFoundError as error:
        raise PipelineError(f"input={url}: does not exist") from error
    kind = suffix_of(url)
    try:
        if kind == ".parquet":
            named = _of_parquet(data)
        elif kind == ".txt":
            named = _text(data).splitlines()
        else:
            named = _of_csv(_text(data), "\t" if kind == ".tsv" else ",")
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        why = " ".join(str(error).split())
        if kind == ".parquet":
            raise PipelineError(f"input={url}: neither a manifest nor a list of videos: {why}") from error
        raise PipelineError(f"input={url}: not a list of videos: {why}") from error
    named = [name for name in named if name.strip()]
    if not named:
        raise PipelineError(f"input={url}: lists no video")
    return named


def beside(place: Location, name: str) -> str:
    """A path or URL of a list: a relative one is relative to the folder of the list, which is at `place`."""
    if "://" in name or name.startswith(("/", "~")):
        return name
    whole = str(place.parent / name)
    if is_local(whole):
        return whole  # Location makes the rest of it
    scheme, _, path = whole.partition("://")
    parts = path.split("/")
    return f"{scheme}://{posixpath.normpath(path)}" if "." in parts or ".." in parts else whole


def _text(data: bytes) -> str:
    """Text of any Unicode encoding that a byte order mark names, else UTF-8; local names may have other bytes."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding)
    if b"\0" in data:
        raise ValueError("its bytes are no text")
    return data.decode("utf-8", "surrogateescape")


def _of_csv(text: str, delimiter: str) -> list[str]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = next(rows, [])
    place = header.index(_column(header))
    return [row[place] for row in rows if len(row) > place]


def _of_parquet(data: bytes) -> list[str]:
    file = pq.ParquetFile(pa.BufferReader(data))
    name = _column(file.schema_arrow.names)
    column = file.read([name], use_threads=False)[name].cast(pa.string())
    return [text for text in column.to_pylist() if text is not None]


def _column(names: list[str]) -> str:
    found = [name for name in names if name.strip().lower() == URL_COLUMN]
    if not found:
        raise ValueError(f"no column {URL_COLUMN} (it has {', '.join(names) or 'none'})")
    return found[0]
