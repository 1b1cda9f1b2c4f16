"""Files that grow while a run runs: a local file, or parts on an object store; and TensorBoard's records for them."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pipelines import store
from pipelines.errors import PipelineError

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


def board_header() -> bytes:
    """What a TensorBoard file begins with."""
    return _record(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))


def board_start(step: int) -> bytes:
    """Says that an attempt starts here: TensorBoard then drops what an earlier one wrote of this step and later."""
    return _record(_double(1, time.time()) + _int(2, step) + _bytes(7, _int(1, 1)))


def board_scalars(step: int, values: dict[str, float]) -> bytes:
    """Numbers of a step, by name."""
    summary = b"".join(_bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in values.items())
    return _record(_double(1, time.time()) + _int(2, step) + _bytes(5, summary))


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", _masked_crc(length)) + event + struct.pack("<I", _masked_crc(event))


def _key(field: int, wire: int) -> bytes:
    return bytes([field << 3 | wire])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    if math.isfinite(value):
        value = min(max(value, -3.4e38), 3.4e38)  # beyond float32, struct raises
    return _key(field, 5) + struct.pack("<f", value)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial
        table.append(value)
    return table


_CRC = _crc_table()


def _masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
