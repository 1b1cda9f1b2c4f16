"""Rows of earlier scans, looked up by object: in a file that is mapped, sixteen bytes of memory for each row."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.corpus.manifest import MANIFEST_SCHEMA


class KnownRows:
    """The rows of some tables by their objects. Use as a context manager: the file goes with it.

    tables: rows of a manifest, all of an object in one table; of an object in several tables, those in the last count.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        descriptor, self._path = tempfile.mkstemp(prefix="autogaze-known-")
        hashes, sources = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        with open(descriptor, "wb") as file, pa.ipc.new_file(file, MANIFEST_SCHEMA) as writer:
            for number, table in enumerate(tables):
                writer.write_table(table)
                hashes.append(_hashes(table["object"].to_pylist()))
                sources.append(np.full(len(table), number, np.int32))
        self._source, keys = np.concatenate(sources), np.concatenate(hashes)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._table = pa.ipc.open_file(pa.memory_map(self._path)).read_all()

    def __enter__(self) -> KnownRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.unlink(self._path)

    def of(self, objects: list[str]) -> tuple[pa.Table, np.ndarray]:
        """The rows of some objects that are known, and of each row which object it is of: int64, rising."""
        wanted = _hashes(objects)
        low, high = (np.searchsorted(self._keys, wanted, side) for side in ("left", "right"))
        counts = high - low
        which = np.repeat(np.arange(len(objects)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self._order[np.repeat(low, counts) + within]
        newest = np.full(len(objects), -1)
        np.maximum.at(newest, which, self._source[rows])
        rows, which = rows[last := self._source[rows] == newest[which]], which[last]
        table = self._table.take(pa.array(rows))
        mine = np.array(table["object"].to_pylist(), object) == np.array(objects, object)[which]  # not another's hash
        return table.filter(pa.array(mine.astype(bool))), which[mine.astype(bool)]


def _hashes(texts: list[str]) -> np.ndarray:
    hashed: np.ndarray = pd.util.hash_array(np.array(texts, object), categorize=False)
    return hashed
