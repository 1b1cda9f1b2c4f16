"""Streams of clips: cut into groups, worked on by threads, and taken in order."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np

from pipelines.preprocess.rows import DecodedClip

T = TypeVar("T")
R = TypeVar("R")
W = TypeVar("W")


# Seconds a thread of an actor may hold Python's lock while others wait. With Python's own 5 ms, the thread that gives a
# decoder its next piece waits for those that gaze and write, and so does the decoder.
_TURN_S = 5e-4


def take_short_turns() -> None:
    """Let the threads of this process take short turns."""
    sys.setswitchinterval(_TURN_S)


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


class OwnThreads(Generic[W]):
    """Threads that each work with an object of their own, such as a network.

    Args:
        make: makes one.
        count: of threads.
        begin: called in each thread before its first work.
    """

    def __init__(self, make: Callable[[], W], count: int, begin: Callable[[], object] = lambda: None) -> None:
        self.first, self.count = make(), count
        self._idle = SimpleQueue[W]()
        for own in [self.first, *(make() for _ in range(count - 1))]:
            self._idle.put(own)
        self._pool = ThreadPoolExecutor(count, "autogaze-work", initializer=begin)

    def close(self) -> None:
        """End the threads, when they have done what they are at."""
        self._pool.shutdown(cancel_futures=True)

    def in_order(self, work: Callable[[W, T], R], items: Iterable[T]) -> Iterator[tuple[R, float]]:
        """What `work` makes of each item, in their order, and the seconds that it took."""

        def timed(item: T) -> tuple[R, float]:
            own = self._idle.get()
            began = time.perf_counter()
            try:
                return work(own, item), time.perf_counter() - began
            finally:
                self._idle.put(own)

        return in_order(self._pool, timed, items, self.count)


def clip_array(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips uint8 [T, S, S, 3] as one array [B, T, S, S, 3]; without a copy where they follow one another in memory."""
    first = clips[0]
    at = first.__array_interface__["data"][0]
    for place, clip in enumerate(clips):
        beside = clip.base is first.base and clip.__array_interface__["data"][0] == at + place * first.nbytes
        if first.base is None or not beside or not clip.flags.c_contiguous:
            return np.stack(clips)
    shape, strides = (len(clips), *first.shape), (first.nbytes, *first.strides)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)
