"""Every other URL that fsspec opens (gs://, az://, hdfs://, memory:// ...), through its file systems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from pipelines.storage.filesystem import FileSystem, Omit, explain_os_error, without_hidden
from pipelines.storage.location import Entry, Location, scheme_of
from pipelines.storage.retry import StoreError

# What fsspec's file systems call that which changes with an object's bytes, best first; and the time of that change.
_TIMES = ("LastModified", "Last-Modified", "mtime", "updated", "last_modified", "modificationTime", "created")
_VERSIONS = ("ETag", "etag", *_TIMES)
_MODIFIED = ("LastModified", "Last-Modified", "mtime", "updated", "last_modified")
# Errors of theirs that trying again does not mend. They map others that they know to OSError, too.
_LASTING = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError


class FsspecFiles(FileSystem):
    """URLs of fsspec. Its writes are atomic where the store's own put is."""

    def entries(self, url: str, omit: Omit) -> Iterator[Entry]:
        files, path = open_files(url)
        try:
            listed = self.retrying(lambda: dict(files.find(path, detail=True)), url)
        except FileNotFoundError:
            return
        found = (entry_of(files, name, info) for name, info in sorted(listed.items()) if info.get("type") == "file")
        yield from without_hidden(found, str(files.unstrip_protocol(path)).rstrip("/"), omit)

    def entry(self, url: str) -> Entry | None:
        files, path = open_files(url)
        try:
            info = self.retrying(lambda: dict(files.info(path)), url)
        except FileNotFoundError:
            return None
        return entry_of(files, path, info) if info.get("type") == "file" else None

    def exists(self, url: str) -> bool:
        files, path = open_files(url)
        return bool(self.retrying(lambda: files.exists(path), url))

    def size(self, url: str) -> int:
        files, path = open_files(url)
        return int(self.retrying(lambda: files.info(path)["size"], url))

    def read(self, url: str, offset: int, length: int | None) -> bytes:
        files, path = open_files(url)
        end = None if length is None else offset + length
        return self.retrying(lambda: bytes(files.cat_file(path, start=offset or None, end=end)), url)

    def publish(self, data: bytes, url: str) -> None:
        files, path = open_files(url)
        self.retrying(lambda: files.pipe_file(path, data), url)

    def publish_file(self, path: Path, url: str) -> None:
        files, place = open_files(url)
        self.retrying(lambda: files.put_file(str(path), place), url)

    def remove(self, url: str) -> None:
        files, path = open_files(url)

        def once() -> None:
            if files.exists(path):
                files.rm_file(path)

        self.retrying(once, url)

    def is_transient(self, error: Exception) -> bool:
        if isinstance(error, _LASTING):
            return False
        return isinstance(error, OSError | TimeoutError) or type(error).__module__.startswith(("aiohttp", "asyncio"))

    def explain(self, error: Exception, url: str) -> str | None:
        return explain_os_error(error, url) if isinstance(error, OSError) else None


def open_files(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Listings are not cached: other processes write there."""
    scheme = scheme_of(url)
    try:
        files = fsspec.filesystem(scheme, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise StoreError(f"{url}: cannot open {scheme}:// URLs: {error}") from error
    return files, str(files._strip_protocol(url))


def entry_of(files: Any, name: str, info: dict[str, Any]) -> Entry:
    """An object as a listing gives it, from what fsspec's file system says of it."""
    size = int(info["size"] or 0)
    key, version = next(((key, str(info[key]).strip('"')) for key in _VERSIONS if info.get(key)), ("", ""))
    if key in _TIMES:
        version += f"-{size}"
    return Entry(Location.as_is(files.unstrip_protocol(name)), size, version, _modified(info))


def _modified(info: dict[str, Any]) -> float | None:
    """Seconds since 1970, from a number of seconds, a datetime or its text; None for anything else."""
    at = next((info[key] for key in _MODIFIED if info.get(key)), None)
    try:
        return at if at is None or isinstance(at, int | float) else float(pd.Timestamp(at).timestamp())
    except (ValueError, TypeError):
        return None
