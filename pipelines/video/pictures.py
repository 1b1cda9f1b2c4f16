"""What a packet shows, read from its first bytes: a whole picture, one field of one, or nothing.

A packet is not a picture. Field-coded video puts the two fields of a frame into two packets, an encoder may send
packets that are decoded and never shown, and some hold only parameter sets or messages. Decoding would tell too, at a
hundred times the cost. Sources: ITU-T H.264 (7.3), H.265 (7.3), H.262 (6.2), RFC 6386 (9.1), the VP9 bitstream (6.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

# What `look` answers, as bits.
SHOWN = 1  # the packet shows a picture, or a field of one
TOP = 2  # it holds a top field and no more
BOTTOM = 4
CLEAN = 8  # nothing before it is needed to decode it and what is shown after it
UNSURE = 16  # only decoding tells what it shows

_AHEAD = 2048  # bytes of a packet that are read first: the headers of a picture lie in them as a rule


class Look(Protocol):
    """Reads the packets of one stream, in decode order."""

    headers: bytes  # the parameter sets that the stream has sent in its packets up to now, as they were sent
    number: int  # that the two fields of a frame share

    def look(self, packet: memoryview) -> int:
        """SHOWN and the other bits, for a packet. One that is damaged counts as SHOWN: it should be."""


def look_into(codec: str, extradata: bytes) -> Look | None:
    """How to read the packets of a stream; None where each shows one picture and the container says which are keys."""
    if codec == "h264":
        return _H264(extradata)
    if codec in ("hevc", "vvc"):
        return _H265(extradata, codec)
    if codec in ("mpeg1video", "mpeg2video"):
        return _Mpeg()
    if codec == "mpeg4":
        return _Mpeg4()
    if codec in ("vp8", "vp9"):
        return _VP(codec)
    return None


def may_hold_fields(codec: str, extradata: bytes) -> bool:
    """Whether a packet may hold one field of a picture, by what the container says before the first packet."""
    return codec == "h264" and _H264(extradata).interlaced


def units(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the NAL units of a packet: after start codes (length_size=0), or with their length before.

    An end beyond the data is a length that is wrong, or data that was cut.
    """
    at, end = 0, len(data)
    if length_size:
        while at + length_size < end:
            begin = at + length_size
            at = begin + int.from_bytes(data[at:begin], "big")
            yield begin, at
        return
    begin = data.find(b"\0\0\1") + 3
    while begin > 2:
        following = data.find(b"\0\0\1", begin)
        yield begin, end if following < 0 else following
        begin = following + 3


def framed(unit: bytes, length_size: int) -> bytes:
    """A NAL unit as it stands in a packet."""
    return (len(unit).to_bytes(length_size, "big") if length_size else b"\0\0\0\1") + unit


def length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit of a packet; 0 where start codes divide them."""
    if not extradata or (extradata[0] != 1 and not (codec in ("hevc", "vvc") and len(extradata) > 22)):
        return 0
    if extradata[:3] == b"\0\0\1" or extradata[:4] == b"\0\0\0\1":
        return 0
    if codec == "h264":
        return (extradata[4] & 3) + 1 if len(extradata) > 6 else 0
    if codec == "hevc":
        return (extradata[21] & 3) + 1
    return (extradata[0] >> 1 & 3) + 1


class _Bits:
    """The bits of a NAL unit's beginning, from the most significant; past the end they are 0."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention, 7.4.1
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & (1 << count) - 1

    def golomb(self) -> int:
        zeros = 0
        while zeros < 32 and self._left > 0 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_golomb(self) -> int:
        value = self.golomb()
        return (value + 1) // 2 if value & 1 else -(value // 2)


class _H264:
    """Parameter sets are followed, since a slice is read by them."""

    def __init__(self, extradata: bytes):
        self.number = -1
        self.headers = b""
        self.interlaced = False  # pictures may be fields
        self._sets: dict[int, bytes] = {}  # in-band, by NAL type and id
        self._sequences: dict[int, tuple[int, bool, bool]] = {}  # id -> bits of frame_num, frames only, three planes
        self._pictures: dict[int, int] = {}  # id -> its sequence
        self._length_size = length_size("h264", extradata)
        if self._length_size:
            at, groups = 5, (0x1F, 0xFF)
            for mask in groups:
                count = extradata[at] & mask if at < len(extradata) else 0
                at += 1
                for _ in range(count):
                    size = int.from_bytes(extradata[at : at + 2], "big")
                    self._learn(extradata[at + 2 : at + 2 + size])
                    at += 2 + size
        else:
            for begin, end in units(extradata, 0):
                self._learn(extradata[begin:end])

    def look(self, packet: memoryview) -> int:
        size = self._length_size
        if size and not self.interlaced and len(packet) > size and packet[size] & 31 in (1, 5):
            return SHOWN | (CLEAN if packet[size] & 31 == 5 else 0)  # the usual packet, at a tenth of the time
        data = bytes(packet[:_AHEAD])
        fields = clean = 0
        while True:
            sound, end = True, 0
            for begin, end in units(data, self._length_size):
                kind = data[begin] & 31 if begin < end else 0
                sound = sound and 1 <= kind <= 23
                if kind in (7, 8):
                    if end >= len(data) < len(packet):
                        break  # cut by _AHEAD
                    self._keep(kind, data[begin:end])
                elif kind in (1, 2, 5):
                    clean = clean or (CLEAN if kind == 5 else 0)
                    if not self.interlaced:
                        return SHOWN | clean
                    field = self._slice(data[begin + 1 : begin + 33])
                    if not field:
                        return SHOWN | clean
                    fields |= field
            if len(data) == len(packet):
                break
            data, clean, fields = bytes(packet), 0, 0
        if not fields:
            return 0 if sound and end == len(data) else SHOWN
        return SHOWN | clean | (0 if fields == TOP | BOTTOM else fields)

    def _keep(self, kind: int, unit: bytes) -> None:
        number = self._learn(unit)
        known = self._sets.get(kind << 16 | number)
        if known != unit:
            self._sets[kind << 16 | number] = unit
            self.headers = b"".join(framed(part, self._length_size) for _, part in sorted(self._sets.items()))

    def _learn(self, unit: bytes) -> int:
        """Take in a parameter set; its id."""
        if len(unit) < 2:
            return 0
        bits, kind = _Bits(unit[1:]), unit[0] & 31
        if kind == 8:
            number = bits.golomb()
            self._pictures[number] = bits.golomb()
            return number
        if kind != 7:
            return 0
        profile = bits.read(8)
        bits.read(16)
        number = bits.golomb()
        planes = False
        if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            chroma = bits.golomb()
            planes = chroma == 3 and bool(bits.read(1))
            bits.golomb()
            bits.golomb()
            bits.read(1)
            if bits.read(1):
                for i in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        _skip_scaling(bits, 16 if i < 6 else 64)
        frame_num = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.read(1)
            bits.signed_golomb()
            bits.signed_golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.signed_golomb()
        bits.golomb()
        bits.read(1)
        bits.golomb()
        bits.golomb()
        self._sequences[number] = min(frame_num, 16), bool(bits.read(1)), planes
        self.interlaced = any(not frames_only for _, frames_only, _ in self._sequences.values())
        return number

    def _slice(self, data: bytes) -> int:
        """TOP or BOTTOM for a slice of a field, 0 for one of a frame; self.number becomes its frame_num."""
        bits = _Bits(data)
        bits.golomb()
        bits.golomb()
        frame_num, frames_only, planes = self._sequences.get(self._pictures.get(bits.golomb(), 0), (4, True, False))
        if planes:
            bits.read(2)
        self.number = bits.read(frame_num)
        if frames_only or not bits.read(1):
            return 0
        return BOTTOM if bits.read(1) else TOP


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


class _H265:
    """H.265 and H.266: a field is a picture of its own there. Both have NAL headers of two bytes."""

    number = -1

    def __init__(self, extradata: bytes, codec: str):
        self.headers = b""
        self._sets: dict[bytes, bytes] = {}
        self._length_size = length_size(codec, extradata)
        self._vvc = codec == "vvc"

    def look(self, packet: memoryview) -> int:
        data = bytes(packet[:_AHEAD])
        while True:
            sound, end = True, 0
            for begin, end in units(data, self._length_size):
                sound = sound and end - begin > 1 and not data[begin] & 0x80  # forbidden_zero_bit
                if end - begin < 3:
                    continue
                kind = data[begin + 1] >> 3 if self._vvc else data[begin] >> 1 & 63
                if kind < (12 if self._vvc else 32):
                    return SHOWN | (CLEAN if (7 <= kind <= 10 if self._vvc else 16 <= kind <= 23) else 0)
                if kind in ((14, 15, 16) if self._vvc else (32, 33, 34)):
                    if end >= len(data) < len(packet):
                        break
                    self._keep(data[begin:end])
            if len(data) == len(packet):
                return 0 if sound and end == len(data) else SHOWN
            data = bytes(packet)

    def _keep(self, unit: bytes) -> None:
        # Sets of one kind are told apart by their first bytes, which hold their ids: more of them may be kept than are
        # in force, and the later one wins in the decoder too.
        name = unit[:4]
        if self._sets.get(name) != unit:
            self._sets.pop(name, None)
            self._sets[name] = unit
            ordered = sorted(self._sets.values(), key=lambda part: part[1] >> 3 if self._vvc else part[0] >> 1 & 63)
            self.headers = b"".join(framed(part, self._length_size) for part in ordered)


class _Mpeg:
    """MPEG-1 and MPEG-2 video."""

    def __init__(self) -> None:
        self.number = -1
        self.headers = b""

    def look(self, packet: memoryview) -> int:
        data = bytes(packet)
        first = data.find(b"\0\0\1\0")
        if first < 0:
            return SHOWN
        sequence = data.find(b"\0\0\1\xb3", 0, first)
        if sequence >= 0:
            group = data.find(b"\0\0\1\xb8", sequence, first)
            self.headers = data[sequence : first if group < 0 else group]
        self.number = int.from_bytes(data[first + 4 : first + 6], "big") >> 6  # temporal_reference
        clean = CLEAN if len(data) > first + 5 and data[first + 5] >> 3 & 7 == 1 else 0
        fields, at = 0, first
        while at >= 0:
            coding = data.find(b"\0\0\1\xb5", at + 4, at + 64)
            if coding < 0 or coding + 6 >= len(data) or data[coding + 4] >> 4 != 8:
                return SHOWN | clean
            structure = data[coding + 6] & 3
            if structure not in (1, 2):
                return SHOWN | clean
            fields |= TOP if structure == 1 else BOTTOM
            at = data.find(b"\0\0\1\0", coding)
        return SHOWN | clean | (0 if fields == TOP | BOTTOM else fields)


class _Mpeg4:
    """MPEG-4 Part 2: a packet of a few bytes says "show the last picture again", and what comes of it varies."""

    number = -1
    headers = b""

    def look(self, packet: memoryview) -> int:
        if len(packet) <= 8:
            return SHOWN | UNSURE
        data = bytes(packet[:_AHEAD])
        at = data.find(b"\0\0\1\xb6")
        return SHOWN | (CLEAN if at >= 0 and at + 4 < len(data) and data[at + 4] >> 6 == 0 else 0)


class _VP:
    """VP8 and VP9: frames that are only referred to."""

    number = -1
    headers = b""

    def __init__(self, codec: str):
        self._shown = _vp8_shown if codec == "vp8" else _vp9_shown

    def look(self, packet: memoryview) -> int:
        return SHOWN if self._shown(packet) else 0


def _vp8_shown(packet: memoryview) -> bool:
    return bool(packet[0] & 0x10)


def _vp9_shown(packet: memoryview) -> bool:
    """Whether one of the frames of a packet is shown. Several make a superframe, whose index ends it (annex B)."""
    last = packet[-1]
    sizes = [len(packet)]
    if last >> 5 == 0b110:
        count, bytes_each = (last & 7) + 1, (last >> 3 & 3) + 1
        index = 2 + count * bytes_each
        if len(packet) > index and packet[-index] == last:
            table = bytes(packet[-index + 1 : -1])
            sizes = [int.from_bytes(table[i * bytes_each : (i + 1) * bytes_each], "little") for i in range(count)]
    at = 0
    for size in sizes:
        if size and at < len(packet):
            bits = _Bits(bytes(packet[at : at + 2]))
            bits.read(2)
            profile = bits.read(1) | bits.read(1) << 1
            if profile == 3:
                bits.read(1)
            if bits.read(1):  # show_existing_frame
                return True
            bits.read(1)  # frame_type
            if bits.read(1):
                return True
        at += size
    return False
