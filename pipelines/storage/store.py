"""Objects in folders, S3 buckets and whatever fsspec opens, by URL: the calls that all other code makes.

Reads are whole objects or byte ranges. Writes are atomic: a reader sees the old bytes, the new bytes or nothing.
What fails over a network is tried again for two minutes, so that a job outlives the restart of its storage.
Credentials and endpoints come from the standard chain only (environment, profile, instance role).

Every call may raise StoreError, and TransientStoreError when those minutes did not help. URLs are taken as they are:
a user's text goes through `Location` first.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

from pipelines.storage import spool
from pipelines.storage.filesystem import FileSystem, Omit, explain_os_error
from pipelines.storage.local import LocalFiles
from pipelines.storage.location import TEMPORARY_PREFIX, Entry, Location, is_local, scheme_of
from pipelines.storage.retry import StoreError
from pipelines.storage.s3_files import S3Files

T = TypeVar("T")
_LOCAL, _S3 = LocalFiles(), S3Files()


def filesystem_of(url: str) -> FileSystem:
    """The kind of storage that a URL is of."""
    scheme = scheme_of(url)
    if scheme == "file":
        return _LOCAL
    if scheme in ("s3", "s3a"):
        return _S3
    # Here, not above: most processes never need fsspec.
    if scheme in ("http", "https"):
        from pipelines.storage.http_files import HttpFiles

        return HttpFiles()
    from pipelines.storage.fsspec_files import FsspecFiles

    return FsspecFiles()


def list_objects(url: str, omit: Omit = lambda url, why: None) -> Iterator[Entry]:
    """Every object under a URL (or the one object it names), sorted by URL; nothing when it does not exist.

    A bucket that does not exist is a StoreError, though: it is a mistake, wherever it comes up.
    Left out are our own temporaries, hidden files and folders, and of a local folder what is no file: `omit` is called
    with the URL of each, and why.
    """
    return filesystem_of(url).entries(url, omit)


def entry(url: str) -> Entry | None:
    """The object at this very URL, as a listing shows it; None where none is, or a folder."""
    return filesystem_of(url).entry(url)


def glob(pattern: str) -> list[Location]:
    """URLs of the objects of a remote store that a pattern with *, ?, [...] or ** names, sorted."""
    from fsspec.utils import glob_translate  # here, not above: most processes never need fsspec

    folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    return [entry.url for entry in list_objects(folder) if matches(entry.url)]


def exists(url: str) -> bool:
    """Whether an object, a local folder or a bucket is there."""
    return filesystem_of(url).exists(url)


def size(url: str) -> int:
    """Bytes of an object. Raises FileNotFoundError."""
    return filesystem_of(url).size(url)


def read(url: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of an object, or `length` of them from `offset` (fewer only at its end). Raises FileNotFoundError."""
    return b"" if length == 0 else filesystem_of(url).read(url, offset, length)


def open_read(url: str, block_bytes: int = 1 << 20) -> IO[bytes]:
    """A seekable binary reader of an object; remote ones are read in blocks. Raises FileNotFoundError."""
    return filesystem_of(url).open_read(url, block_bytes)


def fetch(url: str, path: str, offset: int = 0, length: int | None = None) -> int:
    """Copy an object, or a byte range of it, to a local file; the bytes written, fewer than `length` only at its end.

    Memory is bounded whatever the object's size. A copy that breaks off is resumed; if the object was replaced
    meanwhile, it begins again. Raises FileNotFoundError.
    """
    return filesystem_of(url).fetch(url, path, offset, length)


def publish(data: bytes, url: str) -> None:
    """Write an object atomically and durably, replacing what was there.

    Raises StoreError when the place is full, read-only or denied; then nothing is left behind.
    """
    filesystem_of(url).publish(data, url)


@contextmanager
def publishing(url: str) -> Iterator[IO[bytes]]:
    """A file to write, however large, that appears at `url` as with publish(); after an error nothing of it is left.

    Until it is complete it lies beside `url`, or for an object store in a folder in $TMPDIR: see `clear_spools`.
    """
    files = filesystem_of(url)
    folder = files.staging(url)
    try:
        with spool.spool(folder, url.rpartition("/")[2]) as (out, temporary):
            yield out
            spool.settle(out, temporary)
            try:
                files.publish_file(temporary, url)
            except FileNotFoundError:  # cleared at this very moment
                spool.settle(out, temporary)
                files.publish_file(temporary, url)
    except OSError as error:
        raise StoreError(explain_os_error(error, url if is_local(url) else str(folder))) from error


def clear_spools(url: str) -> int:
    """Remove what dead writers of this machine left that `publishing` had begun for an object store; how many."""
    return 0 if is_local(url) else spool.clear(filesystem_of(url).staging(url))


def remove(url: str) -> None:
    """Remove an object if it exists."""
    filesystem_of(url).remove(url)


def remove_temporaries(url: str, mine: spool.Mine = spool.everything) -> int:
    """Remove what killed writers left in a folder, and uploads in parts that they had begun; how many there were.

    mine: which of them, by the name of the object. A writer that lives, and whose upload is removed, begins it again.
    """
    return filesystem_of(url).remove_temporaries(url, mine)


def retrying(action: Callable[[], T], url: str) -> T:
    """Run an action of the caller's own on the store of `url`, and again as these calls do, with the same errors."""
    return filesystem_of(url).retrying(action, url)


def require_shared(url: str) -> None:
    """Raise StoreError for a place that other processes do not see."""
    if scheme_of(url) == "memory":
        raise StoreError(f"{url}: memory:// lives in one process and a job runs in many; use a folder or s3://")


def require_writable(url: str) -> None:
    """Prove that objects can be written under `url`, by writing and removing one. Raises StoreError in one line.

    No folder is left that was not there before: a job that is refused after this leaves no trace.
    """
    require_shared(url)
    probe = Location(url) / f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
    try:
        with filesystem_of(url).without_new_folders(url):
            publish(b"", probe)
            remove(probe)
    except FileNotFoundError as error:
        raise StoreError(f"{url}: no such place; create the folder or bucket first") from error
