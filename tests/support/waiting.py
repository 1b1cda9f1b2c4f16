"""Waiting for something that other processes do.

A loaded machine may be ten times as slow as an idle one, and a test that gives up on it proves nothing. So a wait lasts
as long as it takes: pytest's limit on a test (pyproject.toml) and .ci/run's on the whole run end what hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 1500.0  # under pytest's limit, so that the test itself can say what it waited for


def wait_until(condition: Callable[[], object], every: float = 0.002, seconds: float = PATIENCE_S) -> bool:
    """Poll until the condition holds; False when it never did. seconds: for what must happen soon or not at all."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every)
    return False
