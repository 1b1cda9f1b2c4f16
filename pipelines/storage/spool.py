"""Files that are being written, on a local disk: held by a lock while their writer lives, and cleared once it is dead.

The lock is the kernel's (flock), so it goes with its holder, however that ends. Where a file system does not share
locks between nodes, a live writer's file may be cleared by another node: what it wrote is still there for it, and
`settle` writes it once more.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipelines.storage.location import TEMPORARY_PREFIX

_TRIES = 3
_SENT_BYTES = 16 << 20  # written before the kernel is told to begin with them
_LONGEST = 64
Mine = Callable[[str], bool]
"""Whether a temporary may be cleared, by the name of what it is to become; '' where it does not say."""


def everything(name: str) -> bool:
    return True


def temporary_name(name: str) -> str:
    """What a file is called until it is complete. It says what it is to become, unless that is a long or odd name."""
    said = name if len(name) <= _LONGEST and name.isascii() else ""
    return f"{TEMPORARY_PREFIX}{said}-{uuid.uuid4().hex}"


@contextmanager
def spool(folder: Path, name: str) -> Iterator[tuple[IO[bytes], Path]]:
    """A new file in a folder, and its path, for what is to be called `name`. It is removed when the block ends, unless
    it was moved.
    """
    for attempt in range(_TRIES):
        path = folder / temporary_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BufferedRandom(_SentAhead(path, "x+"))
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() or attempt == _TRIES - 1:  # else it was cleared before it was locked
            break
        file.close()
    try:
        with file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


class _SentAhead(io.FileIO):
    """A file that goes to its disk while it is written, so that the fsync of a large shard has little left to wait for:
    else it waits for all of it, with decoders and gazers idle.
    """

    unsent = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.unsent += count
        if self.unsent >= _SENT_BYTES:
            if sys.platform == "linux":  # where "not needed" begins to write back what is dirty, and does not wait
                with suppress(OSError):
                    os.posix_fadvise(self.fileno(), self.tell() - self.unsent, self.unsent, os.POSIX_FADV_DONTNEED)
            self.unsent = 0
        return count


def settle(file: IO[bytes], path: Path) -> None:
    """Make sure that all that was written lies at `path`, durably."""
    file.flush()
    if not path.exists():  # cleared by another run, which took its writer for dead
        file.seek(0)
        with path.open("xb") as again:
            shutil.copyfileobj(file, again, 1 << 20)
            again.flush()
            os.fsync(again.fileno())
        return
    os.fsync(file.fileno())


def clear(folder: Path, mine: Mine = everything) -> int:
    """Remove the temporaries of dead writers in a folder; how many there were."""
    if not folder.is_dir():
        return 0
    removed = 0
    for path in folder.iterdir():
        if path.name.startswith(TEMPORARY_PREFIX) and mine(_name(path)) and _dead(path):
            removed += 1
    return removed


def _name(path: Path) -> str:
    """What a temporary is to become."""
    return path.name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0]


def _dead(path: Path) -> bool:
    """Remove a temporary that nobody holds; whether it was."""
    with suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
                raise
        path.unlink(missing_ok=True)
        return True
    return False
