"""H.265 and H.266 packets without what touches no picture: SEI messages, delimiters, filler, units of other layers.

These decoders run with err_detect=explode, so that a damaged slice is an error (see pipelines.video.pyav_video). It
makes an error of everything else that is broken too, and hardware encoders write SEI messages of wrong lengths or
without a stop bit. So they are left out before decoding, except the two kinds that decide what is shown: the recovery
point and the display orientation (H.265 annex D).
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.video.pictures import framed, units

_RECOVERY_POINT, _DISPLAY_ORIENTATION = 6, 47
_SMALLEST = {_RECOVERY_POINT: 1, _DISPLAY_ORIENTATION: 1}


def without_messages(packet: memoryview, codec: str, length_size: int) -> bytes | None:
    """The packet's bytes without what is left out; None where they stay as they are."""
    data = bytes(packet)
    keep: list[bytes] = []
    changed = False
    for begin, end in units(data, length_size):
        if end > len(data):
            return None  # damaged: for the decoder to see
        unit = data[begin:end]
        if len(unit) < 2:
            changed = True
            continue
        kept = _vvc_unit(unit) if codec == "vvc" else _hevc_unit(unit)
        changed = changed or kept is not unit
        if kept:
            keep.append(kept)
    if not changed:
        return None
    return b"".join(framed(unit, length_size) for unit in keep)


def _vvc_unit(unit: bytes) -> bytes:
    kind = unit[1] >> 3
    return unit if kind <= 19 or kind in (21, 22) else b""  # slices, parameter sets, headers, end of sequence


def _hevc_unit(unit: bytes) -> bytes:
    kind = unit[0] >> 1 & 63
    if kind <= 34 or kind in (36, 37):
        return unit
    if kind not in (39, 40):
        return b""
    messages = b""
    for number, payload in _messages(unit[2:]):
        if number in _SMALLEST and len(payload) >= _SMALLEST[number]:
            messages += bytes([number, len(payload)]) + payload
    return unit[:2] + _escaped(messages + b"\x80") if messages else b""


def _messages(rbsp: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each SEI message whose payload is there; 7.3.5."""
    data = rbsp.replace(b"\0\0\3", b"\0\0").rstrip(b"\0")
    at = 0
    while at + 2 < len(data):  # a message and the stop bit
        number = size = 0
        while at < len(data) and data[at] == 255:
            number, at = number + 255, at + 1
        number, at = number + (data[at] if at < len(data) else 0), at + 1
        while at < len(data) and data[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + (data[at] if at < len(data) else 0), at + 1
        if at + size > len(data) or size > 254:
            if at + size > len(data):
                return
        else:
            yield number, data[at : at + size]
        at += size


def _escaped(rbsp: bytes) -> bytes:
    """With emulation prevention, 7.4.2."""
    out = bytearray()
    for byte in rbsp:
        if byte <= 3 and out[-2:] == b"\0\0":
            out.append(3)
        out.append(byte)
    return bytes(out)
