"""This node of a Slurm job: its name, its messages in the job's log, and a private folder for what runs here."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError

_PREFIX = "ag-"
_SOCKET_PATH = 107  # bytes that a Unix socket's name may have, and Ray's, from its folder on, in the longest case
_RAY_SOCKET = len("/session_2026-11-23_00-13-38_123456_1234567/sockets/plasma_store_1")
RAY_PATH_BYTES = _SOCKET_PATH - _RAY_SOCKET
"""Bytes that the path of Ray's temporary folder may have."""
_STALE_S = 60.0


def say(text: str) -> None:
    """Write one line to the job's log."""
    print(f"autogaze: {text}", file=sys.stderr, flush=True)


def node_name() -> str:
    """The node's name, as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME", "") or socket.gethostname()


@contextmanager
def private_folder(tmp: str) -> Iterator[Path]:
    """A folder on this node that only this user can enter, for temporary files and Ray's; removed at the end.

    A folder that a SIGKILL left behind is removed by the user's next job here, since nobody holds its lock any more.
    Raises ClusterError: it cannot be made, or its path is too long for Ray's sockets.
    """
    _remove_stale(Path(tmp))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.environ.get('SLURM_JOB_ID', '0')}-", dir=tmp))
    except OSError as error:
        raise ClusterError(f"environment.tmp={tmp}: {error.strerror}, on node {node_name()}") from error
    lock = os.open(folder, os.O_RDONLY)  # closed on exec: no child keeps it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if len(os.fsencode(folder / "ray")) > RAY_PATH_BYTES:
            raise ClusterError(f"environment.tmp={tmp}: too long for the names of Ray's sockets; use a shorter one")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def inside(folder: Path) -> dict[str, str]:
    """The environment of processes that work in the folder.

    Not set for this process: srun would pass it on, and Slurm would make the same folder on the other nodes.
    """
    return {**os.environ, "TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}


def _remove_stale(tmp: Path) -> None:
    for folder in tmp.glob(f"{_PREFIX}[0-9]*"):
        try:
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < _STALE_S:
                continue  # a young one may be about to be locked
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
        except OSError:  # locked, or just removed by another
            continue
