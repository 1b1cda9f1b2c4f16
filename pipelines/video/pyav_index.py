"""How PyAV's index of a video is made: by demuxing the stream once, and by decoding it where that does not tell.

Demuxing takes some microseconds a packet, and tells the order of frames wherever time stamps can be trusted. Decoding
the whole stream tells it always: each frame that comes out names its packet. It is needed for AVI with B-frames, raw
streams, and whatever fails a trial.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise

import av
import numpy as np

from pipelines.video import timing
from pipelines.video.frame_index import NO_TIME, FrameIndex, Header, Packets, Timing, by_times
from pipelines.video.pictures import BOTTOM, CLEAN, SHOWN, TOP, UNSURE, look_into, may_hold_fields
from pipelines.video.pyav_video import Video, encrypted, flags_tell, is_encrypted, said_once

# Containers whose time stamps the muxer wrote for each picture. Elsewhere libav derives them, and a trial shows whether
# it did well.
_STAMPED = ("mov", "matroska", "mpegts", "flv", "nut", "asf", "mxf")
# Containers whose packets are whole or not there. Elsewhere data that was cut ends inside the last picture.
_WHOLE = ("mov", "matroska", "flv", "ogg", "ivf")
_FREE_RUNNING = ("mpegts", "mpeg")

_TRIAL = 64  # packets
_HEAD = 32  # packets to look at for pictures shown before the first keyframe: more than any codec reorders
_STEADY = 16  # frames that come one after the other when a decoder has found its feet
_LONGEST_HEAD = 1024  # packets to wait for that
_MPEG4_EMPTY = 8  # bytes: an MPEG-4 packet this small says "show the last picture again"


def make_index(video: Video) -> FrameIndex:
    """The index of a video, and its timing. Raises VideoError where the stream holds no packet, or is encrypted."""
    log = _Log(video)
    packets = log.packets
    if not len(packets):
        raise video.without_frame()
    if log.encrypted == 0:
        raise encrypted(0)
    order = None if _untold(video, log) else by_times(packets, decode_order=not video.reorders)
    if order is not None and len(order):
        order = _without_lost_head(video, log, order)
    decoded = order is None or not len(order) or (_doubtful(video, log) and not _fits(video, packets, order))
    if decoded:
        order = _by_decoding(video, log)
    assert order is not None
    promised, reached = _with_lost_tail(video, log, order)
    index = FrameIndex.build(packets, order[:reached], promised)
    return replace(
        index,
        decoded=decoded,
        cut=video.format not in _WHOLE,
        encrypted=log.encrypted,
        headers=tuple(log.headers),
        timing=_timing(video, log, order, decoded),
    )


def count_by_table(video: Video) -> tuple[int, Timing] | None:
    """Frames and timing by the sample table of mov and mp4, without reading the stream; None where that cannot tell."""
    frames = _promised_by_table(video)
    if not frames or may_hold_fields(video.codec, video.extradata):
        return None
    head = list(islice(video.packets(), _HEAD))
    shown = [packet for packet in head if not packet.is_discard]
    if not shown or any(packet.pts is None for packet in shown):
        return None
    if is_encrypted(head[0]):
        raise encrypted(0)
    look = look_into(video.codec, video.extradata)
    clean = look.look(memoryview(head[0])) & CLEAN if look and video.codec != "vp9" else head[0].is_keyframe
    first = min(packet.pts for packet in shown if packet.pts is not None)
    if not clean or (video.reorders and shown[0].pts != first):
        return None
    ends = [(packet.pts, packet.duration or 0) for packet in head if packet.pts is not None and not packet.is_discard]
    entries = video.stream.index_entries
    if len(entries) > len(head):
        last = entries[len(entries) - 1].timestamp
        if not video.seek(last):
            return None
        tail = [packet for packet in video.packets() if packet.pts is not None and not packet.is_discard]
        if not tail or any(is_encrypted(packet) for packet in tail[-1:]):
            return None
        ends = [(packet.pts, packet.duration or 0) for packet in tail if packet.pts is not None]
    last, duration = max(ends)
    times = np.full(frames, NO_TIME, np.int64)
    times[0], times[-1] = first, last
    return frames, _or_header(video, timing.measure(times, duration, video.time_base, False), frames)


class _Log:
    """What demuxing a stream from a fresh start to its end tells."""

    def __init__(self, video: Video):
        pts, dts, pos = array("q"), array("q"), array("q")
        size, duration = array("i"), array("i")
        key, shown, discard, clean = bytearray(), bytearray(), bytearray(), bytearray()
        self.headers: list[Header] = []
        self.encrypted = -1
        self.fields = self.unsure = False
        self.clean = True  # at the first picture
        look = look_into(video.codec, video.extradata)
        may_encrypt = video.format == "mov"
        whole = 0  # packets up to the last undamaged one
        field_place, field_kind, field_number, first = -1, 0, -1, True
        said = look.headers if look else b""
        place = -1
        for place, packet in enumerate(video.packets()):
            pts.append(NO_TIME if packet.pts is None else packet.pts)
            dts.append(NO_TIME if packet.dts is None else packet.dts)
            pos.append(-1 if packet.pos is None else packet.pos)
            size.append(packet.size)
            duration.append((packet.duration or 0) & 0x7FFFFFFF)
            discarded = packet.is_discard
            discard.append(discarded)
            is_key = packet.is_keyframe
            what = SHOWN
            if look is not None:
                what = look.look(memoryview(packet))
                if first and what & SHOWN:
                    first, self.clean = False, bool(what & CLEAN) or (video.codec in ("vp8", "vp9") and is_key)
                self.unsure = self.unsure or bool(what & UNSURE)
                if look.headers != said:
                    said = look.headers
                    self.headers.append(Header(place, "in_band", said))
            elif first:
                first, self.clean = False, is_key
            visible = bool(what & SHOWN) and not discarded
            if what & (TOP | BOTTOM):
                self.fields = True
                kind = what & (TOP | BOTTOM)
                if field_place >= 0 and kind != field_kind and look is not None and look.number == field_number:
                    shown[field_place] = not discard[field_place]  # its frame is complete
                    duration[field_place] += duration[place]
                    is_key = False
                    field_place = -1
                else:
                    assert look is not None
                    field_place, field_kind, field_number = place, kind, look.number
                visible = False
            elif what & SHOWN:
                field_place = -1
            key.append(is_key and bool(what & SHOWN))
            clean.append(bool(what & CLEAN))
            shown.append(visible)
            self.headers += said_once(packet, place)
            if may_encrypt and self.encrypted < 0 and is_encrypted(packet):
                self.encrypted = place
            if not (packet.is_corrupt and flags_tell(video)):
                whole = place + 1
        if video.format == "avi" and len(key) > 1 and all(key) and not video.intra_only:
            # A file without its index, since it was cut: libav then calls every packet a keyframe.
            key = clean
            key[0] = True
        # Half packets at the end are where the data was cut.
        self.duration = np.frombuffer(duration, np.int32)[:whole]
        self.discard = np.frombuffer(discard, bool)[:whole]
        self.packets = Packets(
            pts=np.frombuffer(pts, np.int64)[:whole],
            dts=np.frombuffer(dts, np.int64)[:whole],
            pos=np.frombuffer(pos, np.int64)[:whole],
            size=np.frombuffer(size, np.int32)[:whole],
            key=np.frombuffer(key, bool)[:whole],
            shown=np.frombuffer(shown, bool)[:whole],
        )
        self.headers = _needed(video, self.headers)


def _needed(video: Video, headers: list[Header]) -> list[Header]:
    """Those that a decoder which began elsewhere would lack: all but in-band headers that never change."""
    kept = [header for header in headers if header.kind != "in_band"]
    in_band = [header for header in headers if header.kind == "in_band"]
    if len({header.data for header in in_band}) > 1:
        kept += in_band
    if any(header.kind == "new_extradata" for header in kept):
        kept.append(Header(-1, "new_extradata", video.extradata))
    return sorted(kept, key=lambda header: header.place)


def _untold(video: Video, log: _Log) -> bool:
    """Whether only decoding tells the order: AVI has no presentation times, and libav's guess is often wrong."""
    return log.unsure or (video.format == "avi" and video.reorders and bool(video.stream.codec_context.has_b_frames))


def _doubtful(video: Video, log: _Log) -> bool:
    if not video.reorders:
        return False
    if log.fields or video.format not in _STAMPED:
        return True
    times = log.packets.pts[log.packets.shown]
    return bool(video.stream.codec_context.has_b_frames) and bool((np.diff(times) > 0).all())


def _delivered(video: Video, packets: Packets, count: int) -> Iterator[int]:
    """Places of the frames that a decode of the first packets delivers, in the order they come out."""
    for step in islice(video.play(), count):
        for frame in step.frames:
            place = -1 if frame.pts is None else frame.pts
            if 0 <= place < len(packets):
                yield place


def _fits(video: Video, packets: Packets, order: np.ndarray) -> bool:
    """Whether three in four frames of the beginning follow the one before, as the index says they do."""
    number = {int(place): n for n, place in enumerate(order[: 2 * _TRIAL].tolist())}
    numbers = [number.get(place, -1) for place in _delivered(video, packets, _TRIAL)]
    follow = sum(after == before + 1 for before, after in pairwise(numbers))
    return 4 * follow >= 3 * (len(numbers) - 1)


def _by_decoding(video: Video, log: _Log) -> np.ndarray:
    """Place of each frame that a decode of the whole stream delivers, in the order they come out."""
    places = array("i")
    for place in _delivered(video, log.packets, 2**62):
        if not log.discard[place]:
            places.append(place)
    return np.frombuffer(places, np.int32).astype(np.int64)


def _without_lost_head(video: Video, log: _Log, order: np.ndarray) -> np.ndarray:
    """Without the first pictures of a stream cut out of a longer one that refer to what is missing.

    Decoders differ in what they do with such pictures, so the stream's start is decoded to see: up to the first frames
    that come out one after the other.
    """
    packets = log.packets
    keys = np.flatnonzero(packets.key & packets.shown)
    early = order[: np.flatnonzero(order == keys[0])[0]] if len(keys) else order[:0]
    if log.clean and not (early > keys[0]).any() if len(keys) else log.clean:
        return order
    number = {int(place): n for n, place in enumerate(order[: 2 * _LONGEST_HEAD].tolist())}
    delivered: set[int] = set()
    begin, steady = 0, 0
    for place in _delivered(video, packets, _LONGEST_HEAD):
        n = number.get(place, -1)
        if n < 0:
            continue
        if not steady or n - 1 not in delivered:
            begin, steady = n, 0
        delivered.add(n)
        steady += 1
        if steady == _STEADY:
            break
    if not delivered:
        return order
    lost = [n for n in range(begin) if n not in delivered]
    return np.delete(order, lost)


def _promised_by_table(video: Video) -> int | None:
    """How many packets with a frame the sample table of mov and mp4 names; None where only the packets can tell."""
    if video.format != "mov" or video.codec in ("vp8", "vp9"):
        return None
    entries = video.stream.index_entries
    if len(entries) == 0 or len(entries) != video.stream.frames:  # fragmented files have a table per fragment
        return None
    smallest = _MPEG4_EMPTY if video.codec == "mpeg4" else 0
    shown = 0
    for entry in entries:
        if entry.size <= smallest:
            return None
        shown += not entry.is_discard
    return shown


def _with_lost_tail(video: Video, log: _Log, order: np.ndarray) -> tuple[int, int]:
    """How many frames the header promises, and how many of `order` can be told apart from the lost ones."""
    packets, entries = log.packets, video.stream.index_entries
    if len(entries) <= len(packets) or _promised_by_table(video) is None:
        return len(order), len(order)
    missing = entries[len(packets) : len(entries)]
    lost = sum(not entry.is_discard for entry in missing)
    if log.fields:
        lost = round(lost * len(order) / len(packets))
    # A frame shown at the decode time of the first missing packet, or later, may belong after a lost one.
    reached = int(np.count_nonzero(packets.pts[order] < missing[0].timestamp)) if video.reorders else len(order)
    return len(order) + lost, reached


def _timing(video: Video, log: _Log, order: np.ndarray, decoded: bool) -> Timing:
    packets = log.packets
    times = packets.pts[order]
    if decoded and video.format == "avi":
        times = np.sort(packets.dts[order])  # one tick a picture, in decode order
    last = int(log.duration[order[-1]]) if len(order) else 0
    measured = timing.measure(times, last, video.time_base, video.format in _FREE_RUNNING)
    return _or_header(video, measured, len(order))


def _or_header(video: Video, measured: Timing, frames: int) -> Timing:
    stream = video.stream
    duration = None
    if stream.duration is not None and stream.duration > 0:
        duration = stream.duration * video.time_base
    elif video.container.duration is not None and video.container.duration > 0:
        duration = Fraction(video.container.duration, av.time_base)
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return timing.or_header(measured, frames, rate, duration)
