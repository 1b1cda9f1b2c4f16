"""Real runs of the command line, in processes of their own to be watched and killed, or in this one."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.cli import main
from tests.support import places
from tests.support.forks import FORKS
from tests.support.plain_ray_data import plain_ray_data
from tests.support.waiting import PATIENCE_S, wait_until

ROOT = places.ROOT


@dataclass(frozen=True)
class Run:
    """A finished preprocess run: its settings, its output and the hash of every file of it."""

    settings: list[str]
    output: Path
    files: dict[str, str]
    printed: str


def environment(joins: bool = False) -> dict[str, str]:
    """What a user's shell would have: of the test process's own Ray only the token, for a command that joins it."""
    joined = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if joins else ()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k in joined}
    return kept | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}


def command(job: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", job, *map(str, arguments)]


def autogaze(job: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    words = command(job, *arguments)
    env = environment(joins="ray.address=" in " ".join(words))
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def here(job: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a job in this process, on the Ray that it is connected to: saves starting Python, Ray and their imports."""
    words = [*job.split(), *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "200")
        status = main(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def plainly(job: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run preprocess or scan in this process without Ray: see tests.support.plain_ray_data."""
    with plain_ray_data():
        return here(job, *arguments)


def start(job: str, *arguments: object) -> subprocess.Popen[bytes]:
    words = command(job, *arguments)
    env = environment(joins="ray.address=" in " ".join(words))
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Fork:
    """A job in a forked process, without Ray; what tests use of subprocess.Popen."""

    def __init__(self, words: list[str]) -> None:
        self._process = FORKS.Process(target=_run_plainly, args=(words,))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def start_plainly(job: str, *arguments: object) -> Fork:
    """As `plainly`, in a process of its own, to be killed."""
    return Fork([job, *map(str, arguments)])


def _run_plainly(words: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    sys.exit(plainly(*words).returncode)


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, hidden ones and temporaries included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def descendants(pid: int) -> dict[int, str]:
    """Command lines of a process's descendants by pid."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, IndexError):
                continue
    found: dict[int, str] = {}
    wanted = {pid}
    while wanted:
        children = {child for child, parent in parents.items() if parent in wanted and child not in found}
        found.update({child: lines[child] for child in children})
        wanted = children
    return found


def kill(pid: int) -> None:
    """kill -9; a process that is already gone is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_two(job: subprocess.Popen[bytes], stage: str, due: Callable[[int], bool]) -> None:
    """kill -9 two processes of a job that have `stage` in their command line; due: told how many are dead, says when.

    The job itself survives.
    """
    killed = set[int]()

    def kill_one() -> bool:
        if due(len(killed)):
            for pid, line in descendants(job.pid).items():
                if stage in line and pid not in killed:
                    kill(pid)
                    killed.add(pid)
                    break
        return len(killed) >= 2 or job.poll() is not None

    wait_until(kill_one, every=0.01)
    assert killed, f"no process of {stage} was seen"
    assert job.wait() == 0, "the job itself survives"


def all_gone(pids: set[int], seconds: float = PATIENCE_S) -> bool:
    """Whether all these processes end (zombies count as ended). seconds: where they must end soon or not at all."""

    def running() -> list[int]:
        alive = []
        for pid in pids:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    alive.append(pid)
            except OSError:
                continue
        return alive

    return wait_until(lambda: not running(), every=0.1, seconds=seconds)
