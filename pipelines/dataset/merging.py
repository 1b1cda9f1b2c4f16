"""Index files of one shard become one file for a thousand shards, and shards of such a file are taken back.

Both go on from wherever they were killed, and at every moment each committed shard is in some file: what is new is
published whole before what it stands for is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.indexes import Indexes, IndexFile, Span, blocks, span_url
from pipelines.dataset.summaries import SUMMARY, joined, summarise
from pipelines.errors import PipelineError
from pipelines.storage import store, tables
from pipelines.storage.location import Location

# Rows and shards of a row group, at least: a reader of one shard reads all of it, and each costs kilobytes of metadata.
_GROUP_ROWS, _GROUP_SHARDS = 1024, 8
_AT_ONCE = 16  # files removed


class NotCommitted(Exception):
    """A shard that was to be merged is not committed any more."""


def merge_indexes(dataset: Location, schema: pa.Schema, within: range) -> int:
    """Merge the index files of every thousand shards that are all committed; how many thousands there were to merge.

    within: shards that thousands must lie in. Safe to do twice, at the same time, or to half; but while shards of
    these are taken back, another process must not merge them.
    Raises PipelineError for a damaged index, or when the store cannot be written.
    """
    indexes = Indexes(dataset, schema)
    listing = indexes.listing()
    committed, merged = set(listing.committed), 0
    for block in blocks(within.stop):
        if block.first >= within.start and committed.issuperset(block.shards):
            merged += merge_block(indexes, block)
    return merged


def merge_block(indexes: Indexes, block: Span) -> bool:
    """Make one file of those of a thousand committed shards; False where there is one already, or one was taken back.

    indexes: as they were listed before; a file that has changed since is left, and counts.
    """
    files = indexes.listing().within(block)
    parts = [file for file in files if file.span != block]
    if not parts:
        return False
    try:
        if len(parts) == len(files) or not _agree(indexes, parts, block):
            write_merged(indexes, block)
    except NotCommitted:
        return False
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(_remove_unchanged, parts))
    return True


def write_merged(indexes: Indexes, span: Span) -> None:
    """Publish the rows of some committed shards as one file. Raises NotCommitted for one that is not."""
    summaries, waiting, rows = [], [], 0
    url = span_url(indexes.dataset, span)
    with store.publishing(url) as out, pq.ParquetWriter(out, indexes.schema, compression="zstd") as writer:
        for table in _committed(indexes, span.shards):
            try:
                summaries.append(summarise(table))
            except (ValueError, TypeError) as error:
                place = span_url(indexes.dataset, Span(*[span.first + len(summaries)] * 2))
                raise PipelineError(f"{place}: damaged, or not an index: {error}") from error
            waiting.append(table)
            rows += len(table)
            enough = rows >= _GROUP_ROWS and len(waiting) >= _GROUP_SHARDS
            if enough or len(summaries) == len(span.shards):
                whole = pa.concat_tables(waiting).combine_chunks()
                writer.write_table(whole, row_group_size=max(len(whole), 1))
                waiting, rows = [], 0
        writer.add_key_value_metadata({SUMMARY: joined(summaries).to_text().decode()})


def take_back(dataset: Location, schema: pa.Schema, shards: Collection[int]) -> None:
    """Remove shards from the indexes, those of merged files too: the other shards of these stay committed throughout.

    A merged file is cut into files of the shards that are left; the next merge makes one of them again.
    """
    gone = set(shards)
    indexes = Indexes(dataset, schema)
    for file in indexes.listing().files:
        if gone.isdisjoint(file.span.shards):
            continue
        kept = [shard for shard in file.span.shards if shard not in gone]
        for span in _runs(kept):
            if span.first < span.last:
                write_merged(indexes, span)
            else:
                store.publish(tables.table_bytes(indexes.table(span.first)), span_url(dataset, span))
        store.remove(file.entry.url)


def _runs(numbers: Iterable[int]) -> list[Span]:
    """Ascending numbers as spans of neighbours."""
    runs = itertools.groupby(enumerate(numbers), key=lambda each: each[1] - each[0])
    spans = [[number for _, number in run] for _, run in runs]
    return [Span(span[0], span[-1]) for span in spans]


def _agree(indexes: Indexes, parts: Iterable[IndexFile], block: Span) -> bool:
    """Whether the file of a whole thousand says what the others say, as after a merge that was killed."""
    [whole] = [file for file in indexes.listing().within(block) if file.span == block]
    shards = sorted({shard for file in parts for shard in file.span.shards})
    pairs = zip(shards, _committed(indexes, shards), strict=True)
    return all(table.equals(indexes.read(whole, shard)) for shard, table in pairs)


def _committed(indexes: Indexes, shards: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of these shards, a table each. Raises NotCommitted."""
    try:
        yield from indexes.tables(shards)
    except FileNotFoundError as error:
        raise NotCommitted from error


def _remove_unchanged(file: IndexFile) -> None:
    now = store.entry(file.entry.url)
    if now is not None and now.version == file.entry.version:
        store.remove(file.entry.url)
