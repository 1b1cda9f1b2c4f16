"""What a scan has found so far, kept for the scan after an interrupted one, and for the job after a dry run."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from pipelines.corpus.manifest import MANIFEST_SCHEMA, OPTIONAL_COLUMNS
from pipelines.errors import PipelineError
from pipelines.storage import retry, store, tables
from pipelines.storage.location import Location

_SECONDS = 15.0  # between two files


class UnfinishedScan:
    """Rows of a manifest that is not complete, in small parquet files under `<output>.scan/`.

    Each file holds all rows of the objects in it, so what is read back is complete for each object.

    Attributes:
        problem: why rows could not be kept; '' while they could. A scan does not end for that.
    """

    def __init__(self, output: Location) -> None:
        self.url = Location.as_is(f"{output}.scan")
        self.problem = ""
        self._rows: list[pa.Table] = []
        self._kept = time.monotonic()

    def read(self) -> Iterator[pa.Table]:
        """The rows that earlier scans kept, the older ones first.

        Files of another version, or damaged, are passed over: what they held is scanned again.
        """
        for entry in store.list_objects(self.url):  # in order of time
            try:
                yield tables.read(entry.url, MANIFEST_SCHEMA, "part of a scan", optional=OPTIONAL_COLUMNS)
            except (PipelineError, FileNotFoundError):
                continue

    def add(self, rows: pa.Table) -> None:
        """Keep all rows of some objects, at the latest at the next `keep`."""
        self._rows.append(rows)
        if time.monotonic() - self._kept >= _SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write what is not written yet."""
        self._kept = time.monotonic()
        if not self._rows or self.problem:
            self._rows = []
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.parquet"
        try:
            store.publish(tables.table_bytes(pa.concat_tables(self._rows)), self.url / name)
            self._rows = []
        except (retry.StoreError, FileNotFoundError) as error:
            self.problem = str(error)

    def remove(self) -> None:
        """Remove the files: the manifest is complete."""
        for entry in list(store.list_objects(self.url)):
            store.remove(entry.url)
        store.remove_temporaries(self.url)
        if self.url.is_local:
            with suppress(OSError):  # there is none, or it holds something else
                os.rmdir(self.url)
