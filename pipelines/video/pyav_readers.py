"""Frames of a video by number: through the index of its time stamps, or by counting where they tell nothing.

What libav does with damaged data, and what is made of it (measured with libavcodec 62 on damaged files):
- A damaged packet raises, or its frame comes out concealed and flagged corrupt, once. Frames that refer to it come out
  smeared and unflagged. So damage counts against everything from the damaged packet up to the next keyframe.
- A container cut short ends without an error (mov: after a half packet flagged corrupt). What is missing is only known
  from the header's sample table: those frames are `truncated`. Containers without such a table are simply shorter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice, pairwise

import av
import numpy as np

from pipelines.video.base import VideoError, too_short
from pipelines.video.frame_index import FrameIndex
from pipelines.video.pyav_video import Video

# A stream whose frames do not come as its time stamps say shows it within this many packets, again and again. What goes
# wrong later, or only once, is damage.
_TRIAL = 64


class NotAsIndexed(Exception):
    """The stream does not behave as its time stamps say; only counting frames is left."""


class IndexedReader:
    """Frames by number, in ascending order, through the index; decodes from the nearest keyframe."""

    # The state of one run of the decoder, from the packet it began at; _go starts the next run.
    _start: int  # the place of that packet
    _next: int  # the place of the packet to be decoded next
    _first: int  # the first frame the run can deliver
    _due: int  # the frame that should come out next
    _wanted: int  # frames before this one are not kept
    _drained: bool
    _suspect: bool  # something went wrong that no error announced

    def __init__(self, video: Video, index: FrameIndex):
        self._video = video
        self._index = index
        self._fit: bool | None = None  # what _fits found
        self._from_start = False  # a keyframe turned out not to be one: seek no more
        self._ready: deque[tuple[int, av.VideoFrame]] = deque()  # (number, frame), decoded and not yet read
        self._damage: dict[int, str] = {}  # place -> what is wrong with the packet
        self._packets: Iterator[av.Packet[av.VideoStream]] = iter(())
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
        if (damage is not None or self._suspect) and self._start > 0:
            # Was it the data, or was the keyframe none? Only what a decode from further ahead confirms is a verdict.
            self._from_start = self._suspect
            before = 0 if self._suspect else np.searchsorted(index.keys, self._start) - 1
            self._go(int(index.keys[before]))
            frame, damage = self._decode_to(n)
        if damage is not None:
            raise VideoError("decode_error", damage)
        assert frame is not None  # one of the two it is
        return frame

    def _decode_to(self, n: int) -> tuple[av.VideoFrame | None, str | None]:
        """Decode on until frame n and what it depends on has come out: the frame, and what is wrong with it."""
        while self._ready and self._ready[0][0] < n:
            self._ready.popleft()
        self._wanted = n
        while self._due <= self._index.settled[n] and self._feed():
            pass
        damage = self._damage_within(int(self._index.anchor[n]), int(self._index.packet[n]))
        if self._ready and self._ready[0][0] == n:
            return self._ready.popleft()[1], damage
        return None, damage or f"the decoder delivers no picture for frame {n}"

    def _damage_within(self, anchor: int, last: int) -> str | None:
        """The first damage from a keyframe up to the packet `last`, by place.

        Pictures sent after the keyframe and shown before it do not count: nothing shown after it refers to them.
        """
        pts = self._index.packet_pts
        places = [at for at in self._damage if anchor <= at <= last and pts[at] >= pts[anchor]]
        return f"{self._damage[min(places)]} in packet {min(places)}" if places else None

    def _feed(self) -> bool:
        """Decode one more packet, or drain the decoder; False when there is nothing left."""
        if self._drained:
            return False
        index = self._index
        packet = next(self._packets, None) if self._next < len(index.packet_pts) else None
        if packet is None:
            self._drained = True
        else:
            at = -1 if packet.pts is None else index.place.get(packet.pts, -1)
            if at < 0:
                raise NotAsIndexed
            self._next = at + 1
            if packet.is_corrupt:
                self._damage.setdefault(at, "data missing")
        step = self._video.decode(packet)
        if step.error is not None:
            self._damage.setdefault(self._next - 1, step.error)
        for frame in step.frames:
            self._take(frame)
        return True

    def _take(self, frame: av.VideoFrame) -> None:
        """Put a frame where it belongs, and note what should have come out before it and did not."""
        index = self._index
        n = -1 if frame.pts is None else index.number.get(frame.pts, -1)
        if n < 0 and frame.pts in index.place:
            return  # not one to be delivered
        if n < self._due:
            if n < 0 or n >= self._first:  # else: shown before the keyframe decoding began at, and of no use
                self._amiss(self._next - 1, "a picture out of order")
            return
        for missing in range(self._due, n):
            self._amiss(int(index.packet[missing]), "no picture")
        self._due = n + 1
        if frame.is_corrupt:
            self._damage.setdefault(int(index.packet[n]), "concealed damage")
        if n >= self._wanted:
            self._ready.append((n, frame))

    def _amiss(self, at: int, text: str) -> None:
        """Something is wrong that no error announced: an unfit index, a keyframe that is none, or damage after all."""
        if self._damage_within(self._start, self._next) is None:
            if self._start == 0 and self._next <= _TRIAL and not self._fits():
                raise NotAsIndexed
            self._suspect = True
        self._damage.setdefault(at, text)

    def _fits(self) -> bool:
        """Whether three in four frames of the beginning follow the one before, as the index says they do."""
        if self._fit is None:
            with self._video.again() as video:
                frames = [frame for step in islice(video.play(), _TRIAL) for frame in step.frames]
            numbers = [-1 if frame.pts is None else self._index.number.get(frame.pts, -1) for frame in frames]
            follow = sum(after == before + 1 for before, after in pairwise(numbers))
            self._fit = 4 * follow >= 3 * (len(numbers) - 1)
        return self._fit

    def _go(self, place: int) -> None:
        """Make packet `place` the next one to be decoded, by a decoder that has seen nothing."""
        index = self._index
        self._ready.clear()
        self._damage.clear()
        self._start = self._next = place
        self._first = self._due = int(np.searchsorted(index.pts, index.packet_pts[place])) if place else 0
        self._wanted = 0
        self._drained = self._suspect = False
        before = max(0, int(np.searchsorted(index.keys, place)) - 1)
        times = index.packet_pts[place], index.packet_dts[place], index.packet_dts[before]
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
