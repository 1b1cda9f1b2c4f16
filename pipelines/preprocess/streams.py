"""Streams of clips: cut into groups, worked on by threads, and taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np

from pipelines.preprocess.rows import DecodedClip

T, R = TypeVar("T"), TypeVar("R")


def grouped(clips: Iterable[DecodedClip], size: int) -> Iterator[list[DecodedClip]]:
    """Runs of clips with `size` in each that have frames, fewer in the last; those that failed are in their places."""
    group: list[DecodedClip] = []
    ok = 0
    for clip in clips:
        group.append(clip)
        ok += clip.frames is not None
        if ok == size:
            yield group
            group, ok = [], 0
    if group:
        yield group


def in_order(pool: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """What `work` makes of each item, in their order; up to `ahead` more are being worked on, or wait."""
    waiting = deque[Future[R]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            del item
            while len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def stacked(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips uint8 [T, S, S, 3] as one array [B, T, S, S, 3]; without a copy where they follow one another in memory."""
    first = clips[0]
    at = first.__array_interface__["data"][0]
    for place, clip in enumerate(clips):
        beside = clip.base is first.base and clip.__array_interface__["data"][0] == at + place * first.nbytes
        if first.base is None or not beside or not clip.flags.c_contiguous:
            return np.stack(clips)
    shape, strides = (len(clips), *first.shape), (first.nbytes, *first.strides)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)
