"""Folders of this machine, or of a network file system: listing, and writes that are synced and renamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from pipelines.storage import spool
from pipelines.storage.filesystem import (
    BROKEN_LINK,
    HIDDEN,
    KNOWN_FOLDER,
    NO_FILE,
    FileSystem,
    Omit,
    explain_os_error,
)
from pipelines.storage.location import TEMPORARY_PREFIX, Entry, Location, escaped
from pipelines.storage.spool import Mine

# Errors of a local or network file system that the next attempt may not meet.
_TRANSIENT = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ECONNRESET}


class LocalFiles(FileSystem):
    """Paths. A file is written under a temporary name beside its own, synced, renamed, and its folder synced."""

    def entries(self, url: str, omit: Omit) -> Iterator[Entry]:
        """Symbolic links are followed, loops are not. One folder's names are in memory at a time, and those above."""
        seen: set[tuple[int, int]] = set()
        waiting = [url]
        while waiting:
            path = waiting.pop()
            status = self.retrying(partial(_stat, path), path)
            if status is None:
                if os.path.islink(path):  # else it was removed meanwhile
                    omit(path, BROKEN_LINK)
            elif stat.S_ISREG(status.st_mode):
                yield _entry(path, status)
            elif not stat.S_ISDIR(status.st_mode):
                omit(path, NO_FILE)
            elif (status.st_dev, status.st_ino) in seen:
                omit(path, KNOWN_FOLDER)
            else:
                seen.add((status.st_dev, status.st_ino))
                with suppress(FileNotFoundError):
                    for _, name in sorted(self.retrying(partial(_names, path), path), reverse=True):
                        inside = os.path.join(path, name)
                        if name[0] == ".":
                            if not name.startswith(TEMPORARY_PREFIX):
                                omit(inside, HIDDEN)
                        else:
                            waiting.append(inside)

    def entry(self, url: str) -> Entry | None:
        status = self.retrying(partial(_stat, url), url)
        return None if status is None or not stat.S_ISREG(status.st_mode) else _entry(url, status)

    def exists(self, url: str) -> bool:
        return os.path.exists(url)

    def size(self, url: str) -> int:
        return self.retrying(lambda: os.stat(url), url).st_size

    def read(self, url: str, offset: int, length: int | None) -> bytes:
        def once() -> bytes:
            with open(url, "rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)

        return self.retrying(once, url)

    def open_read(self, url: str, block_bytes: int) -> IO[bytes]:
        return self.retrying(lambda: open(url, "rb"), url)

    def publish(self, data: bytes, url: str) -> None:
        self.retrying(lambda: _write(data, Path(url)), url)

    def publish_file(self, path: Path, url: str) -> None:
        path.replace(url)
        _sync(path.parent)

    def staging(self, url: str) -> Path:
        return Path(url).parent

    def remove(self, url: str) -> None:
        self.retrying(lambda: Path(url).unlink(missing_ok=True), url)

    def remove_temporaries(self, url: str, mine: Mine) -> int:
        return spool.clear(Path(url), mine)

    @contextmanager
    def without_new_folders(self, url: str) -> Iterator[None]:
        new = [folder for folder in (Path(url), *Path(url).parents) if not os.path.lexists(folder)]
        try:
            yield
        finally:
            with suppress(OSError):  # somebody has put something there, and needs it
                for folder in new:
                    folder.rmdir()

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno in _TRANSIENT

    def explain(self, error: Exception, url: str) -> str | None:
        return explain_os_error(error, url) if isinstance(error, OSError) else None


def _names(folder: str) -> list[tuple[str, str]]:
    """The names in a folder, each after what orders it: what is in `a/` comes after `a-b`, as in a list of paths."""
    with os.scandir(folder) as found:
        return [(escaped(entry.name) + ("/" if _is_folder(entry) else ""), entry.name) for entry in found]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # whoever opens it says so
        return False


def _entry(path: str, status: os.stat_result) -> Entry:
    # With the size: programs that copy files with their times may put another file of the same time in a file's place.
    version = f"{status.st_mtime_ns}-{status.st_size}"
    return Entry(Location.as_is(path), status.st_size, version, status.st_mtime_ns / 1e9)


def _stat(path: str) -> os.stat_result | None:
    """None where nothing is: removed meanwhile, or a link that leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _write(data: bytes, path: Path) -> None:
    # A job that starts beside this one removes the temporaries it sees, ours included: then write it once more.
    for attempt in range(3):
        temporary = path.parent / spool.temporary_name(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
            _sync(path.parent)
            return
        except FileNotFoundError:
            if attempt == 2:
                raise
        finally:
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
