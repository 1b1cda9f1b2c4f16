"""Seconds by name, for the times per stage of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch(defaultdict[str, float]):
    """Seconds by name."""

    def __init__(self, begun: dict[str, float] | None = None) -> None:
        super().__init__(float, begun or {})

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - began
