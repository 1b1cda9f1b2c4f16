"""A bounded folder of local copies, shared by all processes of a machine: whole shards, videos, lists of samples.

- An entry appears complete, by a rename; a process that dies while it makes one leaves a temporary, which later ones
  remove.
- One process makes an entry and the others wait for it. The lock is the kernel's (flock), so it dies with its holder.
- Least recently used entries go first. Whoever uses an entry holds a link to it, so its removal disturbs no reader.
- A twentieth of the disk is left to others: where that is not free, entries go however few they are.

Trust nothing in it that is not checked: readers compare hashes, and `forget` what is wrong.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import PipelineError
from pipelines.storage import urls

_STALE_S = 1800.0  # a temporary or a link that nobody touched for this long belongs to a process that died
_LOCKS = 256
_FREE = 0.05  # of the disk; where less is, Ray takes it for full, and so does preflight


class LocalCache:
    """Local copies under `folder`, of at most `limit_mb` MiB together; what is being made or in use may exceed it.

    `folder` "" is one in the system's temporary folder, of this user alone.
    Raises PipelineError when it cannot be made, or is another user's.
    """

    def __init__(self, folder: str, limit_mb: int) -> None:
        self.folder = Path(folder or os.path.join(tempfile.gettempdir(), f"autogaze-cache-{os.getuid()}"))
        self.limit = limit_mb << 20
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / "locks").mkdir(exist_ok=True)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise PipelineError(f"cache_dir={self.folder}: cannot be made: {error.strerror}") from error
        if owner != os.getuid():
            raise PipelineError(f"cache_dir={self.folder}: belongs to another user; give a folder of your own")

    @contextmanager
    def local(self, name: str, make: Callable[[str], object], size: Callable[[], int] | int = 0) -> Iterator[str]:
        """Path of the entry `name`, for as long as the context lasts.

        Args:
            name: what the entry holds, for ever: a URL and what says which version of it.
            make: writes it to the path it is given, if it is not there yet.
            size: bytes it will have, for which room is made first. A function is asked only if it is not there yet.
        """
        key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        entry, link = self.folder / key, self._temporary()
        try:
            if not _linked(entry, link):
                with self._locked(key):
                    if not _linked(entry, link):
                        self._make_room(size if isinstance(size, int) else size())
                        make(str(link))
                        with suppress(FileExistsError):
                            os.link(link, entry)
                self._make_room(0)
            with link.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_SH)  # however long it is used, it is not stale
                yield str(link)
        finally:
            link.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove an entry that turned out to be wrong."""
        key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        (self.folder / key).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all entries. Whoever uses one goes on."""
        for path in self.folder.iterdir():
            if path.is_file() and not path.name.startswith(urls.TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        return self.folder / f"{urls.TEMPORARY_PREFIX}{uuid.uuid4().hex}"

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        self._prepare()  # every time: temporary folders are swept by others
        with (self.folder / "locks" / f"{int(key[:8], 16) % _LOCKS:03d}").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Remove what dead processes left, then least recently used entries, until `size` more bytes fit."""
        entries, now = [], time.time()
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                about = path.stat()
                if path.is_dir():
                    continue
                if not path.name.startswith(urls.TEMPORARY_PREFIX):
                    entries.append((about.st_mtime_ns, about.st_size, path))
                elif now - about.st_mtime > _STALE_S and not _in_use(path):
                    path.unlink(missing_ok=True)
        disk = shutil.disk_usage(self.folder)
        room = min(self.limit - sum(held for _, held, _ in entries), disk.free - int(_FREE * disk.total))
        for _, held, path in sorted(entries):
            if size <= room:
                break
            path.unlink(missing_ok=True)
            room += held


def _linked(entry: Path, link: Path) -> bool:
    """Whether the entry is there; then `link` names it too, and it counts as just used."""
    try:
        os.link(entry, link)
    except FileNotFoundError:
        return False
    os.utime(link)
    return True


def _in_use(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
