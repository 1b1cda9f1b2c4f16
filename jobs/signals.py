"""SIGTERM and SIGINT as a function that a loop can call: is it time to stop? The signal is answered at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def stop_on_sigterm(answer: str = "") -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once SIGTERM or SIGINT has come. A second signal ends the process as usual.

    answer: a line for standard error when the signal comes.
    """
    received = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        received.set()
        if answer:  # not by print: the signal may have come within one
            with suppress(OSError):
                os.write(2, f"\n{answer}\n".encode())
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
