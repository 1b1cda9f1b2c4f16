"""Where bytes live: local folders, s3:// (pipelines/store_s3.py) and any other fsspec URL behind a handful of calls.

Reads are whole objects or byte ranges; writes are atomic: a reader sees the old bytes, the new bytes or nothing.
Local files are written under a temporary name, synced and renamed; an object store's put is atomic by itself.
Whatever goes over a network is tried again for two minutes, so that a job outlives the restart of its storage.
Credentials and endpoints come from the standard chain only (environment, profile, instance role).
"""

from __future__ import annotations

import errno
import io
import logging
import os
import random
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipelines import store_s3
from pipelines.credentials import refuse_credentials
from pipelines.errors import PipelineError

_log = logging.getLogger(__name__)
TEMPORARY_PREFIX = ".tmp-"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
# Errors of a local or network file system that the next attempt may not meet.
_TRANSIENT_ERRNO = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ECONNRESET}
_RETRY_SECONDS = 120.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_TELL_SECONDS = 5.0  # an outage is told of when it has lasted this long
_CHUNK = 8 << 20
# What fsspec's stores call that which changes with an object's bytes, best first.
_VERSIONS = ("ETag", "etag", "LastModified", "mtime", "updated", "last_modified", "modificationTime", "created")
T = TypeVar("T")


class StoreError(PipelineError):
    """A store that is missing, unreadable, unwritable or full."""


class TransientStoreError(StoreError):
    """A store that did not answer for longer than our patience. Nothing was recorded; run the command again."""


@dataclass(frozen=True)
class Entry:
    """One object of a store: its URL, size in bytes, and `version`, which changes when its bytes do (ETag or mtime).

    A version of "" is that of a store which tells none.
    """

    url: str
    bytes: int
    version: str


def scheme(url: str) -> str:
    """'file' for local paths, else the URL's scheme in lower case."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def normalise(url: str) -> str:
    """Absolute local path (file:// removed, ~ expanded), or the URL without a trailing slash.

    Raises PipelineError for a URL that holds credentials.
    """
    if scheme(url) != "file":
        refuse_credentials(url)
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(re.sub(r"^file://", "", url, flags=re.IGNORECASE)))


def is_local(url: str) -> bool:
    return scheme(url) == "file"


def _is_s3(url: str) -> bool:
    return scheme(url) in ("s3", "s3a")


def join(url: str, *names: str) -> str:
    return "/".join([url.rstrip("/"), *names])


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


def is_transient(error: BaseException, url: str) -> bool:
    """Whether trying again can help: lost connections, timeouts, 5xx and throttling; not missing, denied or full."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, StoreError):
        return isinstance(error, TransientStoreError)
    if is_local(url):
        return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO
    if _is_s3(url):
        return store_s3.is_transient(error)
    # Other file systems map what they know to OSError subclasses (above) and leave the rest as OSError or aiohttp's.
    name = f"{type(error).__module__}.{type(error).__name__}"
    return isinstance(error, OSError | TimeoutError) or name.startswith(("aiohttp.", "asyncio."))


def retrying(
    action: Callable[[], T], url: str, seconds: float = _RETRY_SECONDS, progress: Callable[[], int] = lambda: 0
) -> T:
    """Run `action`, again with exponential backoff and jitter while its failure is transient, for up to `seconds`.

    The seconds count from its first failure, or the first after `progress` has changed.
    Raises StoreError in one line for what cannot be helped, TransientStoreError when patience runs out.
    FileNotFoundError passes through: callers mean different things by it.
    """
    began, reached, delay, told, renewed = None, progress(), _FIRST_WAIT, False, False
    while True:
        try:
            return action()
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:
            s3 = _is_s3(url)
            if s3 and store_s3.is_missing(error):
                raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
            if s3 and store_s3.is_stale(error) and not renewed:  # a profile may hold new credentials by now
                store_s3.forget_client()
                renewed = True
                continue
            if not is_transient(error, url):
                known = (OSError, RecursionError) if s3 else OSError
                if isinstance(error, known) or type(error).__module__.startswith("botocore"):
                    raise StoreError(_explain(error, url)) from error
                raise
            now = time.monotonic()
            if began is None or progress() != reached:
                began, reached, delay, told = now, progress(), _FIRST_WAIT, False
            reason, waited = store_s3.reason(error) if s3 else str(error), now - began
            if waited + delay > seconds:
                raise TransientStoreError(
                    f"{url}: no answer for {seconds:.0f} s ({reason}); nothing was recorded, run the command again"
                ) from error
            if waited > _TELL_SECONDS and not told:
                told = True
                _log.warning("%s: no answer (%s); trying again for %.0f s", url, reason, seconds - waited)
            time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            delay = min(delay * 2, _LONGEST_WAIT)


def _explain(error: BaseException, url: str) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or code == errno.EDQUOT:
        return f"{url}: no space left on the device; free some and run the same command again, it continues"
    if _is_s3(url):
        return store_s3.explain(error, url)
    if isinstance(error, PermissionError) or code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{url}: permission denied; check its owner and mode, or the credentials in use"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{url}: a part of this path is a file, not a folder"
    return f"{url}: {error}"


def list_objects(url: str) -> Iterator[Entry]:
    """Every object under a URL (or the one object it names), sorted by URL; nothing when it does not exist.

    A bucket that does not exist is a StoreError, though: it is a mistake, wherever it comes up.
    Our own temporaries and hidden files are left out. Local symbolic links are followed, loops are not.
    """
    if is_local(url):
        yield from _list_local(url)
        return
    if _is_s3(url):
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
    found: list[store_s3.Found] = []
    token = ""
    while True:
        some, token = retrying(partial(store_s3.page, url, token), url)
        found += some
        if not token:
            break
    if not found and (one := retrying(lambda: store_s3.head(url), url)) is not None and one.key:
        found = [one]
    bucket = f"{scheme(url)}://{store_s3.split(url)[0]}"
    for key, size, version in sorted(found):
        if not key.rsplit("/", 1)[-1].startswith("."):
            yield Entry(f"{bucket}/{key}", size, version)


def glob(pattern: str) -> list[str]:
    """URLs of the objects of a remote store that a pattern with *, ?, [...] or ** names, sorted."""
    folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    fits = re.compile(glob_translate(pattern))
    return [entry.url for entry in list_objects(folder) if fits.match(entry.url)]


def _list_local(url: str) -> Iterator[Entry]:
    found: list[Entry] = []
    seen: set[tuple[int, int]] = set()
    waiting = [url]
    while waiting:
        path = waiting.pop()
        about = retrying(partial(_stat, path), path)
        if about is None:
            continue
        if stat.S_ISREG(about.st_mode):
            found.append(Entry(path, about.st_size, str(about.st_mtime_ns)))
        elif stat.S_ISDIR(about.st_mode) and (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            with suppress(FileNotFoundError):
                names = retrying(partial(os.listdir, path), path)
                waiting += [os.path.join(path, name) for name in sorted(names, reverse=True) if name[0] != "."]
    yield from sorted(found, key=lambda entry: entry.url)


def _stat(path: str) -> os.stat_result | None:
    """None where nothing is: removed meanwhile, or a link that leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def exists(url: str) -> bool:
    if is_local(url):
        return os.path.exists(url)
    if _is_s3(url):
        return retrying(lambda: store_s3.head(url), url) is not None
    fs = filesystem(url)
    return bool(retrying(lambda: fs.exists(fs._strip_protocol(url)), url))


def read(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of an object, or `length` of them from `offset` (fewer only at its end).

    Raises FileNotFoundError, StoreError, TransientStoreError.
    """
    if _is_s3(url):
        return b"" if length == 0 else retrying(lambda: store_s3.get(url, offset, length), url)
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
        if _is_s3(url):
            download = store_s3.Download(url, out, offset, length)
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
            raise StoreError(_explain(error, path)) from error
        raise


def size(url: str) -> int:
    """Bytes of an object. Raises FileNotFoundError, StoreError."""
    if is_local(url):
        return retrying(lambda: os.stat(url), url).st_size
    if _is_s3(url):
        found = retrying(lambda: store_s3.head(url), url)
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
        retrying(lambda: _publish_local(data, Path(url)), url)
        return
    if _is_s3(url):
        retrying(lambda: store_s3.put(data, url), url)
        return
    fs = filesystem(url)
    retrying(lambda: fs.pipe_file(fs._strip_protocol(url), data), url)


def _publish_local(data: bytes, path: Path) -> None:
    # A run that starts beside this one clears temporaries it finds, ours included: then write it once more.
    for attempt in range(3):
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
            return
        except FileNotFoundError:
            if attempt == 2:
                raise
        finally:
            temporary.unlink(missing_ok=True)


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
            _sync_folder(folder)
        elif _is_s3(url):
            store_s3.put_file(str(temporary), url, lambda action: retrying(action, url))
        else:
            fs = filesystem(url)
            retrying(lambda: fs.put_file(str(temporary), fs._strip_protocol(url)), url)
    except OSError as error:
        raise StoreError(_explain(error, url)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(url: str) -> None:
    """Remove an object if it exists."""
    if is_local(url):
        retrying(lambda: Path(url).unlink(missing_ok=True), url)
        return
    if _is_s3(url):
        retrying(lambda: store_s3.delete(url), url)
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
