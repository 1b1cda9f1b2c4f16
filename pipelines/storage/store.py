"""Where bytes live: local folders, s3:// (pipelines/storage/s3.py) and any other fsspec URL behind a handful of calls.

Reads are whole objects or byte ranges; writes are atomic: a reader sees the old bytes, the new bytes or nothing.
Local files are written under a temporary name, synced and renamed; an object store's put is atomic by itself.
Whatever goes over a network is tried again for two minutes, so that a job outlives the restart of its storage.
Credentials and endpoints come from the standard chain only (environment, profile, instance role).
"""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipelines.storage import s3
from pipelines.storage.local import list_folder, publish_file, sync_folder
from pipelines.storage.retry import StoreError, T, explain, retrying
from pipelines.storage.urls import TEMPORARY_PREFIX, Entry, is_local, is_s3, join, scheme

_CHUNK = 8 << 20
# What fsspec's stores call that which changes with an object's bytes, best first.
_VERSIONS = ("ETag", "etag", "LastModified", "mtime", "updated", "last_modified", "modificationTime", "created")


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL. Listings are never cached: other processes write to the same stores."""
    kind = scheme(url)
    if kind == "file":
        # Not through URL parsing: fsspec reads '::' in a local file name as a chain of file systems.
        return LocalFileSystem()
    try:
        return fsspec.filesystem(kind, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise StoreError(f"{url}: cannot open {kind}:// URLs: {error}") from error


def list_objects(url: str) -> Iterator[Entry]:
    """Every object under a URL (or the one object it names), sorted by URL; nothing when it does not exist.

    A bucket that does not exist is a StoreError, though: it is a mistake, wherever it comes up.
    Our own temporaries and hidden files are left out. Local symbolic links are followed, loops are not.
    """
    if is_local(url):
        yield from list_folder(url)
        return
    if is_s3(url):
        yield from _list_s3(url)
        return
    fs = filesystem(url)

    def find() -> dict[str, dict[str, Any]]:
        return dict(fs.find(fs._strip_protocol(url), detail=True))

    try:
        found = retrying(find, url)
    except FileNotFoundError:
        return
    for name, info in sorted(found.items()):
        base = name.rsplit("/", 1)[-1]
        if info.get("type") != "file" or base.startswith("."):
            continue
        version = next((str(info[key]).strip('"') for key in _VERSIONS if info.get(key)), "")
        yield Entry(fs.unstrip_protocol(name), int(info["size"] or 0), version)


def _list_s3(url: str) -> Iterator[Entry]:
    found: list[s3.Found] = []
    token = ""
    while True:
        some, token = retrying(partial(s3.page, url, token), url)
        found += some
        if not token:
            break
    if not found and (one := retrying(lambda: s3.head(url), url)) is not None and one.key:
        found = [one]
    bucket = f"{scheme(url)}://{s3.split(url)[0]}"
    for key, size, version in sorted(found):
        if not key.rsplit("/", 1)[-1].startswith("."):
            yield Entry(f"{bucket}/{key}", size, version)


def glob(pattern: str) -> list[str]:
    """URLs of the objects of a remote store that a pattern with *, ?, [...] or ** names, sorted."""
    folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    fits = re.compile(glob_translate(pattern))
    return [entry.url for entry in list_objects(folder) if fits.match(entry.url)]


def exists(url: str) -> bool:
    if is_local(url):
        return os.path.exists(url)
    if is_s3(url):
        return retrying(lambda: s3.head(url), url) is not None
    fs = filesystem(url)
    return bool(retrying(lambda: fs.exists(fs._strip_protocol(url)), url))


def read(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of an object, or `length` of them from `offset` (fewer only at its end).

    Raises FileNotFoundError, StoreError, TransientStoreError.
    """
    if is_s3(url):
        return b"" if length == 0 else retrying(lambda: s3.get(url, offset, length), url)
    fs = filesystem(url)
    path = fs._strip_protocol(url) if not is_local(url) else url
    end = None if length is None else offset + length
    if length == 0:
        return b""
    return retrying(lambda: bytes(fs.cat_file(path, start=offset or None, end=end)), url)


def open_read(url: str, block_bytes: int = 1 << 20) -> IO[bytes]:
    """A seekable binary reader over an object; remote ones are read in blocks, each as by `read`.

    Raises FileNotFoundError, StoreError.
    """
    if is_local(url):
        return retrying(lambda: open(url, "rb"), url)
    return io.BufferedReader(_Reader(url), block_bytes)


class _Reader(io.RawIOBase):
    """A remote object as a file. Its size is that of when it was opened."""

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, size(url), 0

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
        data = read(self._url, self._at, max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = read(self._url, self._at, max(self._size - self._at, 0))
        self._at += len(data)
        return data


def fetch(url: str, path: str, offset: int = 0, length: int | None = None) -> int:
    """Copy an object, or a byte range of it, to a local file; the bytes written, fewer than `length` only at its end.

    Memory is bounded whatever the object's size. What breaks off goes on where it was; an object that is replaced
    meanwhile is begun again.
    """
    with open(path, "wb") as out:
        if is_s3(url):
            download = s3.Download(url, out, offset, length)
            retrying(lambda: _into(path, download.go_on), url, progress=lambda: download.written)
            return download.written
        total, written = length if length is not None else size(url) - offset, 0
        while written < total and (data := read(url, offset + written, min(_CHUNK, total - written))):
            written += _into(path, partial(out.write, data))
        return written


def _into(path: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(explain(error, path)) from error
        raise


def size(url: str) -> int:
    """Bytes of an object. Raises FileNotFoundError, StoreError."""
    if is_local(url):
        return retrying(lambda: os.stat(url), url).st_size
    if is_s3(url):
        found = retrying(lambda: s3.head(url), url)
        if found is None or not found.key:
            raise FileNotFoundError(errno.ENOENT, "no such object", url)
        return found.bytes
    fs = filesystem(url)
    return int(retrying(lambda: fs.info(fs._strip_protocol(url))["size"], url))


def publish(data: bytes, url: str) -> None:
    """Write an object atomically and durably, replacing what was there.

    Raises StoreError when the place is full, read-only or denied; then nothing is left behind.
    """
    if is_local(url):
        retrying(lambda: publish_file(data, Path(url)), url)
        return
    if is_s3(url):
        retrying(lambda: s3.put(data, url), url)
        return
    fs = filesystem(url)
    retrying(lambda: fs.pipe_file(fs._strip_protocol(url), data), url)


@contextmanager
def publishing(url: str) -> Iterator[IO[bytes]]:
    """A file to write, however large, that appears at `url` as publish() has it; after an error nothing of it is left.

    What goes to an object store lies in the temporary folder ($TMPDIR) until it is complete.
    """
    folder = Path(url).parent if is_local(url) else Path(tempfile.gettempdir())
    temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if is_local(url):
            temporary.replace(url)
            sync_folder(folder)
        elif is_s3(url):
            s3.put_file(str(temporary), url, lambda action: retrying(action, url))
        else:
            fs = filesystem(url)
            retrying(lambda: fs.put_file(str(temporary), fs._strip_protocol(url)), url)
    except OSError as error:
        raise StoreError(explain(error, url)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove(url: str) -> None:
    """Remove an object if it exists."""
    if is_local(url):
        retrying(lambda: Path(url).unlink(missing_ok=True), url)
        return
    if is_s3(url):
        retrying(lambda: s3.delete(url), url)
        return
    fs = filesystem(url)

    def act() -> None:
        if fs.exists(fs._strip_protocol(url)):
            fs.rm_file(fs._strip_protocol(url))

    retrying(act, url)


def remove_temporaries(url: str) -> int:
    """Remove what killed writers left in a folder; how many there were. Object stores leave none: a put is atomic."""
    if not is_local(url) or not os.path.isdir(url):
        return 0
    stale = [path for path in Path(url).iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def require_writable(url: str) -> None:
    """Prove that objects can be written under `url`, by writing and removing one. Raises StoreError in one line."""
    if scheme(url) == "memory":
        raise StoreError(f"{url}: memory:// lives in one process and a job runs in many; use a folder or s3://")
    probe = join(url, f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}")
    try:
        publish(b"", probe)
        remove(probe)
    except FileNotFoundError as error:
        raise StoreError(f"{url}: no such place; create the folder or bucket first") from error
