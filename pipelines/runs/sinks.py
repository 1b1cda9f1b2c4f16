"""Files that grow while a run runs: a local file, or parts on an object store; and TensorBoard's records for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pipelines.errors import PipelineError
from pipelines.storage import store

# A part on an object store is written again, with what came since, this often; at this size the next one begins.
_PART_SECONDS, _PART_BYTES = 30.0, 1 << 20


class Sink(Protocol):
    """Takes bytes, in order. Raises PipelineError when they cannot be written."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class LocalFile:
    """A local file that is appended to: each write is there at once, also after a kill.

    lines: it holds lines; the beginning of one that a killed process left at its end is removed.
    """

    def __init__(self, path: str, lines: bool = False) -> None:
        self.path = path
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if lines and os.path.exists(path):
                _cut_torn_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise PipelineError(f"{path}: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise PipelineError(f"{self.path}: {error.strerror}; run the same command again, it continues") from error

    def close(self) -> None:
        self._file.close()


def _cut_torn_line(path: str) -> None:
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(end - _PART_BYTES, 0)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)


class Parts:
    """Objects of a store, `url(1)`, `url(2)`, ...: each is written again as it grows, in the background.

    header: what each part begins with.
    """

    def __init__(self, url: Callable[[int], str], header: bytes = b"") -> None:
        self._url, self._header, self._part = url, header, 1
        self._data, self._begun = bytearray(header), time.monotonic()
        self._thread = ThreadPoolExecutor(1, "events")
        self._writing: Future[None] | None = None

    def write(self, data: bytes) -> None:
        self._data += data
        full = len(self._data) >= _PART_BYTES
        if full or time.monotonic() - self._begun > _PART_SECONDS:
            self._publish()
        if full:
            self._part, self._data = self._part + 1, bytearray(self._header)

    def close(self) -> None:
        if len(self._data) > len(self._header):
            self._publish()
        self._wait()
        self._thread.shutdown()

    def _publish(self) -> None:
        self._wait()
        self._begun = time.monotonic()
        self._writing = self._thread.submit(store.publish, bytes(self._data), self._url(self._part))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


# -- TensorBoard -----------------------------------------------------------------------------------------------------
# Its files are records: a length and a protocol-buffer Event, each with a checksum. What is needed of that is written
# here. TensorBoard itself is 80 MB of packages, which whoever wants to look brings along.
