"""Videos on the web (http://, https://), through fsspec: objects that are read, of servers that have no listing.

fsspec's `info` calls whatever went wrong "not found". Here only what the server says is not there is missing; a refusal
is told as such, and what may pass is waited for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from pipelines.storage import retry
from pipelines.storage.filesystem import Omit
from pipelines.storage.fsspec_files import FsspecFiles, entry_of, open_files
from pipelines.storage.location import Entry
from pipelines.storage.retry import StoreError, TransientStoreError

_GONE = (404, 410)
_PASSING = (408, 425, 429)  # and all of 500 and more
# Lists of the web have dead links, and none of them is worth two minutes; a video that was scanned is.
_LOOKUP_SECONDS = 20.0


class HttpFiles(FsspecFiles):
    """Objects of web servers. Servers may leave out the size, and may not know byte ranges."""

    def entries(self, url: str, omit: Omit) -> Iterator[Entry]:
        found = self.entry(url)
        return iter([] if found is None else [found])

    def entry(self, url: str) -> Entry | None:
        info = self._look(url)
        if info is None:
            return None
        if info.get("size") is None:
            info["size"] = self._measure(url)
        files, path = open_files(url)
        return entry_of(files, path, info)

    def exists(self, url: str) -> bool:
        return self._look(url) is not None

    def size(self, url: str) -> int:
        found = self.entry(url)
        if found is None:
            raise FileNotFoundError(url)
        return found.bytes

    def read(self, url: str, offset: int, length: int | None) -> bytes:
        data = super().read(url, offset, length)
        if length is not None and len(data) > length:  # all of it, from a server that knows no ranges
            return data[offset : offset + length]
        return data

    def fetch(self, url: str, path: str, offset: int, length: int | None) -> int:
        """From the beginning in one request, whatever the server says of the size."""
        if offset:
            return super().fetch(url, path, offset, length)
        files, place = open_files(url)

        def once() -> int:
            files.get_file(place, path)
            written = os.path.getsize(path)
            if length is not None and written < length:
                raise ConnectionError(f"{written} bytes came instead of {length}")
            return written

        return self.retrying(once, url)

    def is_transient(self, error: Exception) -> bool:
        status = _status(error)
        return super().is_transient(error) if status is None else status in _PASSING or status >= 500

    def explain(self, error: Exception, url: str) -> str | None:
        status = _status(error)
        return super().explain(error, url) if status is None else f"{url}: the server refuses it ({self.reason(error)})"

    def reason(self, error: Exception) -> str:
        status = _status(error)
        return str(error) if status is None else f"HTTP {status} {getattr(error, 'message', '')}".rstrip()

    def _look(self, url: str) -> dict[str, Any] | None:
        """What the server says of an object; None where it is not there."""
        files, path = open_files(url)
        try:
            return retry.retrying(lambda: _info(files, path), url, self, seconds=_LOOKUP_SECONDS)
        except FileNotFoundError:
            return None
        except TransientStoreError as error:
            raise StoreError(f"{url}: no answer ({self.reason(_cause(error))})") from error

    def _measure(self, url: str) -> int:
        """The size of an object whose server does not tell it."""
        with tempfile.TemporaryDirectory(prefix="autogaze-") as folder:
            return self.fetch(url, os.path.join(folder, "video"), 0, None)


def _info(files: Any, path: str) -> dict[str, Any]:
    try:
        return dict(files.info(path))
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, FileNotFoundError) and _status(cause) not in _GONE:
            raise cause from None
        raise


def _status(error: Exception) -> int | None:
    """What an answer's error says: the HTTP status; None for any other error."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _cause(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
