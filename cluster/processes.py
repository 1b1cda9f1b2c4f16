"""The processes below this one, whoever started them: list them, end them, see them gone."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TEARDOWN_S = 20.0


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, read from /proc; none where there is no /proc."""
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
    below: list[int] = []
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        below += generation
    return below


def kill(pids: Iterable[int]) -> None:
    """Send SIGKILL; a process that is already gone is no error."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that `descendants` never loses one (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(seconds: float = _TEARDOWN_S) -> None:
    """Kill every process below this one and wait until they are gone. For the end, when none has work left.

    Without SIGTERM first: Ray would answer it by draining its node for half a minute.
    """
    deadline = time.monotonic() + seconds
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        kill(left)
        time.sleep(0.05)
    _reap()


def _reap() -> None:
    """Collect children that ended, those of subprocess too: their Popen objects then have nothing to wait for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def end_process(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Send SIGTERM, and SIGKILL after `seconds`; return when the process is gone."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
