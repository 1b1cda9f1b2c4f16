"""Silence about what ends because the job was told to: Ray tells of each task that its actor was killed under it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_RAYS_THREADS = "ray_"  # how the names of the threads begin in which Ray prints


class _WithoutRay:
    """Standard output, but for what Ray's threads print to it from `quiet = True` on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.quiet = False

    def write(self, text: str) -> int:
        if self.quiet and threading.current_thread().name.startswith(_RAYS_THREADS):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet_when_told_to_leave() -> Iterator[Callable[[], bool]]:
    """Within the block, Ray's own messages end with the first SIGINT or SIGTERM; each is then handled as before.

    Gives what says whether there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    plain, filtered = sys.stdout, _WithoutRay(sys.stdout)

    def told(number: int, frame: Any) -> None:
        filtered.quiet = True
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, told)
    sys.stdout = filtered
    try:
        yield lambda: filtered.quiet
    finally:
        if sys.stdout is filtered:
            sys.stdout = plain
        for number, handler in before.items():
            if signal.getsignal(number) is told:  # else somebody has set another since
                signal.signal(number, handler)
