"""Which packet shows which frame: what PyAV's random access is computed from. numpy in, numpy out; knows no libav.

Packets come in decode order, frames are numbered in presentation order. A frame is decoded by starting at its anchor,
the last keyframe that is not after it in either order, and going on to the frame's own packet:

    place    0   1   2   3 | 4   5   6        decode order; | before a keyframe
    pts      0   3   1   2 | 6   4   5
    frame    0   3   1   2 | 6   4   5        frames 4 and 5 are shown before keyframe 6 ("open GOP"): their anchor is 0

Of a day at 30 frames a second the arrays take some 25 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

NO_TIME = -(2**63)
"""A time stamp that is not there."""

_REORDERED = 64  # packets: no decoder holds a frame back for longer
_POINT_GAP = 8  # packets between two places that can be sought, at least


@dataclass
class Packets:
    """The packets of a stream in decode order, one item each. Times in the stream's time base."""

    pts: np.ndarray  # int64
    dts: np.ndarray  # int64
    pos: np.ndarray  # int64: first byte in the file, or -1
    size: np.ndarray  # int32: bytes
    key: np.ndarray  # bool
    shown: np.ndarray  # bool: shows a frame. False: hidden (edit lists, reference only), a second field, no picture

    @classmethod
    def of(
        cls,
        pts: Sequence[int],
        key: Sequence[bool],
        shown: Sequence[bool] | None = None,
        dts: Sequence[int] | None = None,
    ) -> Packets:
        count = len(pts)
        return cls(
            np.array(pts, np.int64),
            np.array(range(count) if dts is None else dts, np.int64),
            np.full(count, -1, np.int64),
            np.ones(count, np.int32),
            np.array(key, bool),
            np.ones(count, bool) if shown is None else np.array(shown, bool),
        )

    def __len__(self) -> int:
        return len(self.pts)


@dataclass(frozen=True)
class Header:
    """Something that is said once and holds from a packet on: a palette, parameter sets."""

    place: int  # the packet that says it; -1: the container's header
    kind: str  # palette | new_extradata (side data of a packet) | in_band (bytes before a packet's own)
    data: bytes


@dataclass(frozen=True)
class Timing:
    """Rate and duration of a video, and what says so: timestamps, header, or nothing ("")."""

    fps: float = 0.0
    fps_source: str = ""
    duration: float = 0.0  # seconds
    duration_source: str = ""


@dataclass(frozen=True)
class FrameIndex:
    """By frame: place. By packet ("place" = position in decode order): frame. By keyframe: keys. By point: point_*.

    len(index) frames can be reached. `promised` is how many a sequential decode would deliver were no data missing: the
    frames from len(index) to there are lost.
    """

    place: np.ndarray  # int32 [frames]: of the packet that holds the frame
    frame: np.ndarray  # int32 [packets]: number of the (first) frame it holds, or -1
    keys: np.ndarray  # int32 [keyframes]: their places, ascending; starts with 0
    point_place: np.ndarray  # int32 [points]: keyframes a few packets apart, which can be told from others
    point_pts: np.ndarray  # int64 [points]; NO_TIME if there is none
    point_dts: np.ndarray  # int64 [points]
    point_pos: np.ndarray  # int64 [points]
    point_size: np.ndarray  # int32 [points]
    promised: int
    decoded: bool = False  # the order of frames was found by decoding
    cut: bool = False  # the data may end inside the last picture, and only decoding that shows it
    encrypted: int = -1  # the place from which on packets are encrypted
    headers: tuple[Header, ...] = ()
    timing: Timing = field(default_factory=Timing)

    @classmethod
    def build(cls, packets: Packets, order: np.ndarray, promised: int | None = None) -> FrameIndex:
        """order: place of each frame, in the order of presentation (an index, int [frames]).

        promised: frames the header promises, if it does.
        """
        frame = np.full(len(packets), -1, np.int32)
        frame[order[::-1]] = np.arange(len(order) - 1, -1, -1, dtype=np.int32)
        key = packets.key.copy()
        key[:1] = True
        keys = np.flatnonzero(key)
        # Thinned, so that video of keyframes only takes no more: what is sought is at most some packets ahead.
        kept, last = [], -_POINT_GAP
        for place in keys.tolist():
            if place - last >= _POINT_GAP:
                kept.append(place)
                last = place
        points = np.array(kept, np.int64)
        return cls(
            place=order.astype(np.int32),
            frame=frame,
            keys=keys.astype(np.int32),
            point_place=points.astype(np.int32),
            point_pts=packets.pts[points],
            point_dts=packets.dts[points],
            point_pos=packets.pos[points],
            point_size=packets.size[points],
            promised=len(order) if promised is None else max(promised, len(order)),
        )

    def __len__(self) -> int:
        return len(self.place)

    @property
    def packets(self) -> int:
        return len(self.frame)

    def anchor(self, n: int) -> int:
        """Place of the keyframe to start decoding at for frame n."""
        at = int(np.searchsorted(self.keys, self.place[n], side="right")) - 1
        while at > 0 and self.frame[self.keys[at]] > n:
            at -= 1
        return int(self.keys[at])

    def settled(self, n: int) -> int:
        """The last frame to come out among those decoded no later than frame n."""
        place = int(self.place[n])
        return int(self.frame[max(place - _REORDERED, 0) : place + 1].max(initial=n))

    def first_after(self, place: int) -> int:
        """The first frame that a decoder started at a keyframe's packet can deliver."""
        if place == 0:
            return 0
        for begin in range(place, self.packets, 64):
            ahead = self.frame[begin : begin + 64]
            if (ahead >= 0).any():
                return int(self.frame[place]) if self.frame[place] >= 0 else int(ahead[ahead >= 0].min())
        return len(self)

    @cached_property
    def last_shown(self) -> int:
        """Place of the last packet that shows a frame; -1 if none does."""
        for end in range(self.packets, 0, -64):
            shown = np.flatnonzero(self.frame[max(end - 64, 0) : end] >= 0)
            if len(shown):
                return max(end - 64, 0) + int(shown[-1])
        return -1

    def without_last(self) -> FrameIndex:
        """The index of the video without the picture that is last in decode order."""
        gone, timing = int(self.frame[self.last_shown]), self.timing
        if timing.fps:
            timing = replace(timing, duration=timing.duration - 1 / timing.fps)
        frame = self.frame[: self.last_shown].copy()
        frame[frame > gone] -= 1
        return replace(
            self,
            place=np.delete(self.place, gone),
            frame=np.append(frame, np.full(self.packets - self.last_shown, -1, np.int32)),
            promised=self.promised - 1,
            cut=False,
            timing=timing,
        )


def by_times(packets: Packets, decode_order: bool = False) -> np.ndarray | None:
    """Place of each frame in the order of presentation, by time stamps: int64 [frames].

    decode_order: the codec reorders nothing, so frames come as their packets do. Otherwise None where time stamps do
    not tell the order: one is missing, or two frames share one. A keyframe stamped before a picture ahead of it starts
    the clock anew, as in recordings that were joined.
    """
    places = np.flatnonzero(packets.shown)
    if decode_order:
        return places
    times = packets.pts[places]
    if (times == NO_TIME).any():
        return None
    before = np.maximum.accumulate(times)
    anew = np.zeros(len(places), np.int64)
    anew[1:] = packets.key[places[1:]] & (times[1:] <= before[:-1])
    clock = np.cumsum(anew)
    order = np.lexsort((times, clock))
    if ((np.diff(times[order]) == 0) & (np.diff(clock[order]) == 0)).any():
        return None
    return places[order]
