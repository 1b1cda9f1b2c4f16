"""What the rest of the code asks of a kind of storage, and what all kinds do alike."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from pipelines.storage import retry
from pipelines.storage.location import Entry
from pipelines.storage.retry import StoreError
from pipelines.storage.spool import Mine

_CHUNK = 8 << 20
T = TypeVar("T")
Omit: TypeAlias = Callable[[str, str], object]
"""Called with the URL of what a listing leaves out (a file, or a whole folder), and why: one of the texts below."""
HIDDEN = "hidden names"
BROKEN_LINK = "links that lead nowhere"
KNOWN_FOLDER = "links to folders that are listed already"
NO_FILE = "pipes, sockets and devices"


class FileSystem(ABC):
    """One kind of storage. Its calls are those of pipelines.storage.store, which says what each returns and raises.

    Each call retries by itself, with `retrying`: only the kind of storage knows which part of a call may be repeated.
    To add a kind: a subclass, and a line in pipelines.storage.store.filesystem_of.
    """

    @abstractmethod
    def entries(self, url: str, omit: Omit) -> Iterator[Entry]: ...

    @abstractmethod
    def entry(self, url: str) -> Entry | None: ...

    @abstractmethod
    def exists(self, url: str) -> bool: ...

    @abstractmethod
    def size(self, url: str) -> int: ...

    @abstractmethod
    def read(self, url: str, offset: int, length: int | None) -> bytes: ...

    @abstractmethod
    def publish(self, data: bytes, url: str) -> None: ...

    @abstractmethod
    def publish_file(self, path: Path, url: str) -> None:
        """Publish a complete local file. It lies in `staging(url)`, and may be moved from there."""

    @abstractmethod
    def remove(self, url: str) -> None: ...

    @abstractmethod
    def is_transient(self, error: Exception) -> bool:
        """Whether trying again can help: lost connections, timeouts, throttling; not missing, denied or full."""

    @abstractmethod
    def explain(self, error: Exception, url: str) -> str | None:
        """What is wrong and what to do, in one line that begins with `url`; None for an error that is not storage's."""

    def reason(self, error: Exception) -> str:
        """Why there was no answer, in a few words."""
        return str(error)

    def renew(self, error: Exception) -> bool:
        """Make the connection anew if that can help against this error; whether it was."""
        return False

    def retrying(self, action: Callable[[], T], url: str, progress: Callable[[], int] = lambda: 0) -> T:
        return retry.retrying(action, url, self, progress=progress)

    def staging(self, url: str) -> Path:
        """The local folder for a file that is to be published at `url`; of this user, where others share it."""
        return Path(tempfile.gettempdir()) / f"autogaze-spool-{os.getuid()}"

    def remove_temporaries(self, url: str, mine: Mine) -> int:
        return 0  # a put is atomic: there are none

    @contextmanager
    def without_new_folders(self, url: str) -> Iterator[None]:
        """After the block, folders down to `url` that it made and left empty are gone."""
        yield  # an object store has no folders

    def open_read(self, url: str, block_bytes: int) -> IO[bytes]:
        return io.BufferedReader(_Reader(self, url), block_bytes)

    def fetch(self, url: str, path: str, offset: int, length: int | None) -> int:
        total, written = length if length is not None else self.size(url) - offset, 0
        with open(path, "wb") as out:
            while written < total and (data := self.read(url, offset + written, min(_CHUNK, total - written))):
                written += writing_to(path, partial(out.write, data))
        return written


def hidden_part(name: str) -> str:
    """The path down to its first part that begins with a dot, the file or folder that is hidden; '' where none is."""
    parts = name.split("/")
    first = next((place for place, part in enumerate(parts) if part.startswith(".") and part not in (".", "..")), None)
    return "" if first is None else "/".join(parts[: first + 1])


def without_hidden(entries: Iterable[Entry], url: str, omit: Omit) -> Iterator[Entry]:
    """The objects of a flat listing of `url` that are neither hidden nor in a hidden folder of it.

    What the folder itself is called does not count.
    """
    told = ""
    for entry in entries:
        if hidden := hidden_part(entry.url.removeprefix(url).removeprefix("/")):
            if hidden != told:
                omit(f"{url}/{hidden}", HIDDEN)
            told = hidden
        else:
            yield entry


class _Reader(io.RawIOBase):
    """An object as a file, read in ranges. Its size is that of when it was opened."""

    def __init__(self, files: FileSystem, url: str) -> None:
        self._files, self._url, self._size, self._at = files, url, files.size(url), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._next(self._size)

    def _next(self, most: int) -> bytes:
        length = min(most, self._size - self._at)
        data = self._files.read(self._url, self._at, length) if length > 0 else b""
        self._at += len(data)
        return data


def writing_to(path: str, action: Callable[[], T]) -> T:
    """Run what also writes to a local file, so that a full disk is reported as that file's and not as the store's."""
    try:
        return action()
    except OSError as error:
        if is_full(error):
            raise StoreError(explain_os_error(error, path)) from error
        raise


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def explain_os_error(error: OSError, url: str) -> str:
    if is_full(error):
        return f"{url}: no space left on the device; free some and run the same command again, it continues"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{url}: permission denied; check its owner and mode, or the credentials in use"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{url}: a part of this path is a file, not a folder"
    return f"{url}: {error}"
