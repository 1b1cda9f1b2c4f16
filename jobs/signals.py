"""SIGTERM and SIGINT as a function that a loop can call: is it time to stop?"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once SIGTERM or SIGINT has come. A second signal ends the process as usual."""
    received = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        received.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
