"""The processes below one: what was started with it, whoever started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Every living process below one, by /proc; none where there is no /proc."""
    if not os.path.isdir("/proc"):
        return []
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (OSError, IndexError):
                continue
            if state != "Z":
                parents[int(entry)] = int(parent)
    found: list[int] = []
    wanted = {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found += wanted
    return found


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; a process that is gone is fine."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
