"""Frames of a video by number, through its index.

What libav does with damaged data, and what the reader makes of it (measured with libavcodec 62 on damaged files):
- A damaged packet raises, or its frame comes out concealed and flagged corrupt, once. Frames that refer to it come out
  smeared and unflagged. So everything from the damaged packet up to the next keyframe counts as damaged.
- A container cut short ends without an error (mov: after a half packet flagged corrupt). What is missing is only known
  from the header's sample table: those frames are `truncated`. Containers without such a table are simply shorter: a
  picture that was cut does not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import av
import numpy as np

from pipelines.video.base import VideoError, too_short
from pipelines.video.frame_index import NO_TIME, FrameIndex, Header
from pipelines.video.pyav_video import Packet, Video, encrypted, flags_tell

# Containers that libav finds its way into at any byte.
_BY_BYTES = ("mpegts", "mpeg", "h264", "hevc", "vvc", "mpegvideo", "m4v", "obu", "mjpeg", "dv")
_LOST_AFTER = 4096  # packets without a known one among them: the seek has landed nowhere


class NotAsIndexed(Exception):
    """The packets are not those of the index."""


class IndexedReader:
    """Frames by number, in ascending order; decodes from the nearest keyframe."""

    # The state of one run of the decoder, from the packet it began at; _go starts the next run.
    _start: int  # the place of that packet
    _next: int  # the place of the packet to be decoded next
    _first: int  # the first frame the run can deliver
    _due: int  # the frame that should come out next
    _wanted: int  # frames before this one are not kept
    _drained: bool
    _suspect: bool  # something went wrong that no error announced
    _point: int  # the next point of the index that the run comes by
    _said: list[Header]  # what holds for the run's first packet and was said before it
    _runs = 0  # that decoded something

    def __init__(self, video: Video, index: FrameIndex, seeks: bool = True):
        """seeks=False: reach every packet from the first, where seeking leads to others than the index names."""
        self._video = video
        self._index = index
        self._seeks = seeks
        self._from_start = False  # no keyframe turned out to be one: seek no more
        self._ready: deque[tuple[int, av.VideoFrame]] = deque()  # (number, frame), decoded and not yet read
        self._damage: dict[int, str] = {}  # place -> what is wrong with the packet
        self._packets: Iterator[Packet] = iter(())
        self._go(0)

    @property
    def index(self) -> FrameIndex:
        return self._index

    def read(self, n: int) -> av.VideoFrame:
        """Frame n. Raises VideoError if it is lost, or depends on damaged data."""
        if self._index.cut and n >= int(self._index.frame[self._index.last_shown]):
            last = self.settle_end()
            if last is not None and n == int(self._index.frame[self._index.last_shown]):
                return last
        index = self._index
        if n >= index.promised:
            raise too_short(n, index.promised)
        if n >= len(index):
            raise VideoError("truncated", f"the data ends before frame {n} of {index.promised}")
        if 0 <= index.encrypted <= int(index.place[n]):
            raise encrypted(index.encrypted)
        return self._read(n)

    def goes_on(self, first: int, last: int) -> bool:
        """Whether reading frames `first` to `last` from here on is what a new reader does: it would be given the same
        packets from the same keyframe, and nothing has gone wrong since.
        """
        index = self._index
        if self._runs != 1 or self._damage or self._suspect or self._from_start or self._drained or not self._seeks:
            return False
        if last >= len(index) or (index.cut and last >= int(index.frame[index.last_shown])):
            return False
        passed = first < self._due and not (self._ready and self._ready[0][0] <= first)
        return not passed and self._start == index.anchor(first)

    def settle_end(self) -> av.VideoFrame | None:
        """Find out whether the data ends inside the picture that is last in decode order: then it does not count.

        Returns that frame if it is whole. Frames that are shown after it can still be read.
        """
        index = self._index
        try:
            frame = self._read(int(index.frame[index.last_shown]))
        except VideoError:
            self._index = index.without_last() if len(index) > 1 else replace(index, cut=False)
            self._go(0)
            return None
        self._index = replace(index, cut=False)
        return frame

    def _read(self, n: int) -> av.VideoFrame:
        index = self._index
        anchor = index.anchor(n)
        if not (self._start <= anchor <= self._next or self._from_start):  # a later keyframe lies between
            self._go(anchor)
        frame, damage = self._decode_to(n)
        back = 1
        while (damage is not None or self._suspect) and self._start > 0:
            # Is the data damaged, or was the keyframe none? A decode from further ahead decides.
            suspect = self._suspect
            before = int(np.searchsorted(index.keys, self._start)) - back
            self._go(int(index.keys[max(before, 0)]))
            self._from_start = self._start == 0 and suspect
            frame, damage = self._decode_to(n)
            if not suspect:
                break
            back *= 4
        if damage is not None:
            raise VideoError("decode_error", damage)
        assert frame is not None  # one of the two it is
        return frame

    def _decode_to(self, n: int) -> tuple[av.VideoFrame | None, str | None]:
        """Decode on until frame n and what it depends on has come out: the frame, and what is wrong with it."""
        while self._ready and self._ready[0][0] < n:
            self._ready.popleft()
        self._wanted = n
        anchor, place = self._index.anchor(n), int(self._index.place[n])
        settled = self._index.settled(n)
        while self._due <= settled and self._feed():
            pass
        damage = self._damage_within(anchor, place)
        if self._ready and self._ready[0][0] == n:
            return self._ready.popleft()[1], damage
        return None, damage or f"the decoder delivers no picture for frame {n}"

    def _damage_within(self, anchor: int, last: int) -> str | None:
        """The first damage from a keyframe up to the packet `last`, by place.

        Pictures sent after the keyframe and shown before it do not count: nothing shown after it refers to them.
        """
        frame = self._index.frame
        first = frame[anchor]
        places = [at for at in self._damage if anchor <= at <= last and not 0 <= frame[at] < first]
        return f"{self._damage[min(places)]} in packet {min(places)}" if places else None

    def _feed(self) -> bool:
        """Decode one more packet, or drain the decoder; False when there is nothing left."""
        if self._drained:
            return False
        packet = next(self._packets, None) if self._next < self._index.packets else None
        if packet is None:
            self._drained = True
            step = self._video.decode(None, self._next)
        else:
            at = self._next
            self._runs += at == self._start
            self._next += 1
            self._verify(packet, at)
            if packet.is_corrupt and flags_tell(self._video) and not self._ends_a_recording(at):
                self._damage.setdefault(at, "data missing")
            step = self._video.decode(packet, at, self._said)
            self._said = []
        if step.error is not None:
            self._damage.setdefault(self._next - 1, step.error)
        for frame in step.frames:
            self._take(frame)
        return True

    def _ends_a_recording(self, at: int) -> bool:
        """Whether what libav takes for lost packets of a transport stream may be the seam of two recordings.

        Their packet counters differ; libav flags the last picture, or by its parser's delay the one before. If data is
        missing all the same, the decoder says so, or two pictures at most suffer.
        """
        keys = self._index.keys
        following = int(np.searchsorted(keys, at + 1))
        return self._video.format == "mpegts" and following < len(keys) and keys[following] <= at + 2

    def _verify(self, packet: Packet, at: int) -> None:
        """Raise NotAsIndexed for a packet that is not the one known by its place."""
        index, point = self._index, self._point
        if point < len(index.point_place) and index.point_place[point] == at:
            self._point += 1
            if index.point_size[point] != packet.size:
                raise NotAsIndexed

    def _take(self, frame: av.VideoFrame) -> None:
        """Put a frame where it belongs, and note what should have come out before it and did not."""
        index = self._index
        place = -1 if frame.pts is None else frame.pts
        n = int(index.frame[place]) if 0 <= place < index.packets else -1
        if n < 0:
            return  # not one to be delivered
        if n < self._due:
            if self._due < len(index) and index.place[self._due] == place:
                n = self._due  # the second picture of a packet
            else:
                if n >= self._first:  # else: shown before the keyframe decoding began at, and of no use
                    self._amiss(self._next - 1, "a picture out of order")
                return
        for missing in range(self._due, n):
            self._amiss(int(index.place[missing]), "no picture")
        self._due = n + 1
        if frame.is_corrupt:
            self._damage.setdefault(place, "concealed damage")
        if n >= self._wanted:
            self._ready.append((n, frame))

    def _amiss(self, at: int, text: str) -> None:
        """Note what no error announced: a keyframe that is none, or damage."""
        if self._damage_within(self._start, self._next) is None:
            self._suspect = True
        self._damage.setdefault(at, text)

    def _go(self, place: int) -> None:
        """Make packet `place` the next one to be decoded, by a decoder that has seen nothing."""
        index = self._index
        self._ready.clear()
        self._damage.clear()
        self._start = self._next = place
        self._first = self._due = index.first_after(place)
        self._wanted = 0
        self._drained = self._suspect = self._from_start = False
        self._said = _in_force(index.headers, place)
        self._point = int(np.searchsorted(index.point_place, place))
        if not (place == 0 and self._video.fresh):
            if self._seeks and any(self._land(point, place) for point in self._points_before(place)):
                return
            self._video.rewind()
        if not self._skip(self._video.packets(), 0, place):
            raise NotAsIndexed

    def _points_before(self, place: int) -> list[int]:
        """The points to seek to for a packet: the nearest one, and the one ahead of it where that fails."""
        at = int(np.searchsorted(self._index.point_place, place, side="right")) - 1
        return [point for point in (at, at - 1) if point >= 0]

    def _land(self, point: int, place: int) -> bool:
        """Seek to a point and go on to the packet at `place`, undecoded. False if the seek landed elsewhere."""
        index = self._index
        # Containers seek by pts, by dts, by bytes, or not at all: each is tried, and where it landed is checked.
        ways = [(int(index.point_pts[point]), False), (int(index.point_dts[point]), False)]
        if self._video.format in _BY_BYTES:
            ways.append((int(index.point_pos[point]), True))
        for where, by_bytes in dict.fromkeys(ways):
            if where == NO_TIME or (by_bytes and where < 0) or not self._video.seek(where, by_bytes):
                continue
            packets = self._video.packets()
            for _, packet in zip(range(_LOST_AFTER), packets, strict=False):
                found = self._place_of(packet)
                if found > place:
                    break
                if found >= 0:
                    return self._skip(chain([packet], packets), found, place)
        return False

    def _place_of(self, packet: Packet) -> int:
        """The place of a packet that is a point; -1 for any other, and for one that cannot be told from another."""
        index = self._index
        same = np.flatnonzero(index.point_size == packet.size)
        if packet.pos is not None and packet.pos >= 0:
            here = same[index.point_pos[same] == packet.pos]
            same = here if len(here) else same[index.point_pos[same] < 0]
        if packet.pts is not None:
            same = same[(index.point_pts[same] == packet.pts) | (index.point_pts[same] == NO_TIME)]
        return int(index.point_place[same[0]]) if len(same) == 1 else -1

    def _skip(self, packets: Iterator[Packet], at: int, place: int) -> bool:
        """Pass over the packets from `at` up to `place`; False if there are not as many."""
        for _ in range(at, place):
            if next(packets, None) is None:
                return False
        self._packets = packets
        return True


def _in_force(headers: tuple[Header, ...], place: int) -> list[Header]:
    """The last header of each kind that holds for a packet."""
    return list({header.kind: header for header in headers if header.place <= place}.values())
