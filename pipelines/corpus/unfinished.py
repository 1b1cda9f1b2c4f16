"""What a scan has found so far, kept for the scan after an interrupted one, and for the job after a dry run."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pipelines.corpus.manifest import MANIFEST_SCHEMA, OPTIONAL_COLUMNS
from pipelines.corpus.scan import by_object
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
        self._rows: list[dict[str, Any]] = []
        self._kept = time.monotonic()

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """The rows that earlier scans kept, by object; of an object that was scanned twice, the newer ones.

        Files of another version, or damaged, are passed over: what they held is scanned again.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in store.list_objects(self.url):  # in order of time
            try:
                table = tables.read(entry.url, MANIFEST_SCHEMA, "part of a scan", optional=OPTIONAL_COLUMNS)
            except (PipelineError, FileNotFoundError):
                continue
            found |= by_object(table.to_pylist())
        return found

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep all rows of some objects, at the latest at the next `keep`."""
        self._rows += rows
        if time.monotonic() - self._kept >= _SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write what is not written yet."""
        self._kept = time.monotonic()
        if not self._rows or self.problem:
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.parquet"
        data = tables.table_bytes(pa.Table.from_pylist(self._rows, schema=MANIFEST_SCHEMA))
        try:
            store.publish(data, self.url / name)
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
