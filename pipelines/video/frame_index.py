"""Which packet shows which frame: what PyAV's random access is computed from. numpy in, numpy out; knows no libav.

Packets come in decode order, frames are numbered in presentation order. A frame is decoded by starting at its anchor,
the last keyframe that is not after it in either order, and going on to the frame's own packet:

    packet   0   1   2   3 | 4   5   6        decode order; | before a keyframe
    pts      0   3   1   2 | 6   4   5
    frame    0   3   1   2 | 6   4   5        frames 4 and 5 are shown before keyframe 6 ("open GOP"): their anchor is 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packet:
    """What the index needs to know of a packet. Times in the stream's time base."""

    pts: int
    dts: int | None
    key: bool
    shown: bool = True  # False: decoded but never delivered (edit lists, hidden frames)


@dataclass(frozen=True)
class FrameIndex:
    """By frame: pts, packet, anchor, settled. By packet ("place" = position in decode order): packet_pts, packet_dts.

    len(index) frames can be reached. `promised` is how many a sequential decode would deliver were no data missing: the
    frames from len(index) to there are lost.
    """

    pts: np.ndarray  # int64 [frames], ascending
    packet: np.ndarray  # int64 [frames]: place of the packet that holds the frame
    anchor: np.ndarray  # int64 [frames]: place of the keyframe to start decoding at
    settled: np.ndarray  # int64 [frames]: the last frame to come out among those decoded no later than this one
    keys: np.ndarray  # int64 [keyframes]: their places, ascending; starts with 0
    packet_pts: list[int]
    packet_dts: list[int | None]
    place: dict[int, int]  # pts -> place
    number: dict[int, int]  # pts -> frame
    promised: int

    @classmethod
    def build(
        cls, packets: Sequence[Packet], promised: int | None = None, lost_from: int | None = None
    ) -> FrameIndex | None:
        """None where time stamps do not tell the frames apart: there is no packet, or two share one.

        promised: frames the header promises, if it does. lost_from: the decode time of the first packet whose data is
        missing. A frame shown at that time or later may belong after a lost one, so it counts as lost too.
        """
        if not packets:
            return None
        pts = np.array([p.pts for p in packets], np.int64)
        place = {int(t): i for i, t in enumerate(pts)}
        if len(place) < len(pts):
            return None
        keys = np.flatnonzero([i == 0 or p.key for i, p in enumerate(packets)])
        shown = np.flatnonzero([p.shown for p in packets])
        packet = shown[np.argsort(pts[shown])]
        total = len(packet) if promised is None else max(promised, len(packet))
        if lost_from is not None:
            packet = packet[pts[packet] < lost_from]

        nearest = np.searchsorted(keys, packet, side="right") - 1
        while (leading := (nearest > 0) & (pts[keys[nearest]] > pts[packet])).any():
            nearest[leading] -= 1
        settled = np.empty(len(packet), np.int64)
        decoded = np.argsort(packet)
        settled[decoded] = np.maximum.accumulate(decoded)
        return cls(
            pts=pts[packet],
            packet=packet,
            anchor=keys[nearest],
            settled=settled,
            keys=keys,
            packet_pts=pts.tolist(),
            packet_dts=[p.dts for p in packets],
            place=place,
            number={int(t): n for n, t in enumerate(pts[packet])},
            promised=total,
        )

    def __len__(self) -> int:
        return len(self.pts)
