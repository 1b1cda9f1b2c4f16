"""Frames of a video by number: through the index of its time stamps, or by counting where they tell nothing.

What libav does with damaged data, and what is made of it (measured with libavcodec 62 on ../shared/corpus/hard):
- A damaged packet raises, or its frame comes out concealed and flagged corrupt, once. Frames that refer to it come out
  smeared and unflagged. So damage counts against everything from the damaged packet up to the next keyframe.
- A container cut short ends without an error (mov: after a half packet flagged corrupt). What is missing is only known
  from the header's sample table: those frames are `truncated`. Containers without such a table are simply shorter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

import av
import numpy as np

from pipelines.decoders.base import VideoError, too_short
from pipelines.decoders.frame_index import FrameIndex
from pipelines.decoders.pyav_video import Video

_BEFORE_ALL = -(1 << 63)


class NotAsIndexed(Exception):
    """The stream does not behave as its time stamps say; only counting frames is left."""


class IndexedReader:
    """Frames by number, in ascending order, through the index; decodes from the nearest keyframe."""

    def __init__(self, video: Video, index: FrameIndex):
        self._video = video
        self._index = index
        self._start = 0  # where decoding began, and which packet comes next, by place
        self._next = 0
        self._packets: Iterator[av.Packet] = iter(())
        self._drained = False
        self._false_key = False  # what decoding began at turned out to be no keyframe
        self._from_start = False  # one such is enough: seek no more
        self._ready: deque[av.VideoFrame] = deque()  # decoded and not yet read, from self._wanted on
        self._wanted = self._latest = _BEFORE_ALL  # pts of the frame to be read, and of the last one that came out
        self._damage: dict[int, str] = {}  # place -> what is wrong with the packet
        self._go(0)

    def read(self, n: int) -> av.VideoFrame:
        """Frame n. Raises VideoError if it is lost, or depends on damaged data."""
        index = self._index
        if n >= index.promised:
            raise too_short(n, index.promised)
        if n >= len(index):
            raise VideoError("truncated", f"the data ends before frame {n} of {index.promised}")
        anchor = int(index.anchor[n])
        if not (self._start <= anchor <= self._next or self._from_start):  # a later keyframe lies between
            self._go(anchor)
        frame, damage = self._decode_to(n)
        if (damage is not None or self._false_key) and self._start > 0:
            # Was it the data, or was the keyframe none? Only what a decode from further ahead confirms is a verdict.
            # A decoder that stays silent without an error (false keyframes, gradual refresh) is asked from the start.
            self._from_start = self._false_key or not self._damage_to(n)
            before = 0 if self._from_start else np.searchsorted(index.keys, self._start) - 1
            self._go(int(index.keys[before]))
            frame, damage = self._decode_to(n)
        if damage is not None:
            raise VideoError("decode_error", damage)
        assert frame is not None  # one of the two it is
        return frame

    def _decode_to(self, n: int) -> tuple[av.VideoFrame | None, str | None]:
        """Decode on until frame n and what it depends on has come out: the frame, and what is wrong with it."""
        index = self._index
        wanted, settled = index.pts[n], index.pts[index.settled[n]]
        while self._ready and self._ready[0].pts < wanted:
            self._ready.popleft()
        self._wanted = wanted
        while self._latest < settled and self._feed():
            pass
        damage = self._damage_to(n)
        if self._ready and self._ready[0].pts == wanted:
            return self._ready.popleft(), damage
        return None, damage or f"the decoder delivers no picture for frame {n}"

    def _damage_to(self, n: int) -> str | None:
        """The first damage in what frame n depends on: from its keyframe to its own packet, in decode order."""
        first, last = self._index.anchor[n], self._index.packet[n]
        at = min((at for at in self._damage if first <= at <= last), default=None)
        return None if at is None else f"{self._damage[at]} in packet {at}"

    def _feed(self) -> bool:
        """Decode one more packet, or drain the decoder; False when there is nothing left."""
        if self._drained:
            return False
        index = self._index
        packet = next(self._packets, None) if self._next < len(index.packet_pts) else None
        self._drained = packet is None
        at = self._next
        if packet is not None:
            at = self._place(packet.pts)
            self._next = at + 1
            if packet.is_corrupt:
                self._damaged(at, "data missing")
        step = self._video.decode(packet)
        if step.error is not None:
            self._damaged(at, step.error)
        for frame in step.frames:
            if frame.pts is None or frame.pts not in index.place or frame.pts <= self._latest:
                if self._damage:
                    continue  # damage may put a picture anywhere
                raise NotAsIndexed
            if self._latest < index.packet_pts[self._start] <= frame.pts and not self._damage:
                first = index.pts[np.searchsorted(index.pts, index.packet_pts[self._start])]
                self._false_key = bool(frame.pts != first)
            at = index.place[frame.pts]
            self._latest = frame.pts
            if frame.is_corrupt:
                self._damaged(at, "concealed damage")
            if frame.pts >= self._wanted:
                self._ready.append(frame)
        return True

    def _damaged(self, at: int, text: str) -> None:
        """Note damage, unless it is only that frames shown before the first keyframe miss what came before it."""
        times = self._index.packet_pts
        if self._start == 0 or at >= len(times) or times[at] >= times[self._start]:
            self._damage.setdefault(at, text)

    def _place(self, pts: int | None) -> int:
        place = None if pts is None else self._index.place.get(pts)
        if place is None:
            raise NotAsIndexed
        return place

    def _go(self, place: int) -> None:
        """Make packet `place` the next one to be decoded, by a decoder that has seen nothing."""
        self._ready.clear()
        self._damage.clear()
        self._start = self._next = place
        self._wanted = self._latest = _BEFORE_ALL
        self._drained = self._false_key = False
        before = max(0, int(np.searchsorted(self._index.keys, place)) - 1)
        times = self._index.packet_pts[place], self._index.packet_dts[place], self._index.packet_dts[before]
        # Containers seek by pts, by dts, or not at all: each is tried, and what came of it is checked.
        if not any(time is not None and self._video.seek(time) and self._found(place) for time in times):
            self._video.rewind()
            if not self._found(place):
                raise NotAsIndexed

    def _found(self, place: int) -> bool:
        """Skip, undecoded, to the packet at `place`; False if the seek landed after it or nowhere known."""
        packets = self._video.packets()
        for packet in packets:
            at = -1 if packet.pts is None else self._index.place.get(packet.pts, -1)
            if not 0 <= at <= place:
                return False
            if at == place:
                self._packets = chain([packet], packets)
                return True
        return False


class CountingReader:
    """Frames by number, in ascending order, by decoding from the start and counting."""

    def __init__(self, video: Video):
        video.rewind()
        self._steps = video.play()
        self._ready: deque[av.VideoFrame] = deque()
        self._count = 0
        self._damage: str | None = None
        self._healed = False  # a keyframe was fed after the damage; it heals once it is shown

    def read(self, n: int) -> av.VideoFrame:
        """Frame n. Raises VideoError if there is none, or it depends on damaged data."""
        while True:
            while self._ready:
                frame = self._ready.popleft()
                self._count += 1
                if self._healed and frame.key_frame:
                    self._damage, self._healed = None, False
                if frame.is_corrupt:
                    self._damage, self._healed = "concealed damage", False
                if self._count == n + 1:
                    if self._damage is not None:
                        raise VideoError("decode_error", f"{self._damage} at or before frame {n}")
                    return frame
            step = next(self._steps, None)
            if step is None:
                raise too_short(n, self._count)
            if step.error is not None:
                self._damage, self._healed = step.error, False
            elif self._damage is not None and step.packet is not None and step.packet.is_keyframe:
                self._healed = True
            self._ready.extend(step.frames)
