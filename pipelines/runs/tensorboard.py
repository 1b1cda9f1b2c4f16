"""TensorBoard's event files."""

from __future__ import annotations

import math
import struct
import time


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
