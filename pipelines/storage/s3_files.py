"""S3 buckets: the requests of pipelines.storage.s3, each tried again until it is answered."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipelines.storage import s3
from pipelines.storage.filesystem import FileSystem, Omit, explain_os_error, is_full, without_hidden, writing_to
from pipelines.storage.location import Entry, Location, scheme_of
from pipelines.storage.spool import Mine

T = TypeVar("T")


class S3Files(FileSystem):
    """s3:// and s3a:// URLs."""

    def entries(self, url: str, omit: Omit) -> Iterator[Entry]:
        bucket, found = Location.as_is(f"{scheme_of(url)}://{s3.split(url)[0]}"), False

        def listed() -> Iterator[Entry]:
            nonlocal found
            token, more = "", True
            while more:  # a page is in memory at a time: S3 lists keys in order
                page, token = self.retrying(partial(s3.page, url, token), url)
                found, more = found or bool(page), bool(token)
                yield from (_entry(bucket, each) for each in sorted(page))

        yield from without_hidden(listed(), url, omit)
        if not found and (one := self.entry(url)) is not None:
            yield one

    def entry(self, url: str) -> Entry | None:
        one = self.retrying(lambda: s3.head(url), url)
        bucket = Location.as_is(f"{scheme_of(url)}://{s3.split(url)[0]}")
        return _entry(bucket, one) if one is not None and one.key else None

    def exists(self, url: str) -> bool:
        return self.retrying(lambda: s3.head(url), url) is not None

    def size(self, url: str) -> int:
        head = self.retrying(lambda: s3.head(url), url)
        if head is None or not head.key:
            raise FileNotFoundError(errno.ENOENT, "no such object", url)
        return head.bytes

    def read(self, url: str, offset: int, length: int | None) -> bytes:
        return self.retrying(lambda: s3.get(url, offset, length), url)

    def fetch(self, url: str, path: str, offset: int, length: int | None) -> int:
        """In one request; one that breaks off is resumed where it was."""
        with open(path, "wb") as out:
            download = s3.Download(url, out, offset, length)
            self.retrying(lambda: writing_to(path, download.resume), url, progress=lambda: download.written)
            return download.written

    def publish(self, data: bytes, url: str) -> None:
        self.retrying(lambda: s3.put(data, url), url)

    def publish_file(self, path: Path, url: str) -> None:
        s3.put_file(str(path), url, lambda request: self.retrying(request, url))

    def remove(self, url: str) -> None:
        self.retrying(lambda: s3.delete(url), url)

    def remove_temporaries(self, url: str, mine: Mine) -> int:
        """Uploads in parts that were begun under a URL. Where they may not be listed, the bucket's rules end them."""
        removed = 0
        after: s3.Upload | None = s3.FIRST_UPLOAD
        while after is not None:
            page, after = self.retrying(partial(s3.uploads, url, after), url)
            for upload in page:
                if mine(upload.key.rpartition("/")[2]):
                    self.retrying(partial(s3.abort, url, upload), url)
                    removed += 1
        return removed

    def retrying(self, action: Callable[[], T], url: str, progress: Callable[[], int] = lambda: 0) -> T:
        def once() -> T:
            try:
                return action()
            except Exception as error:
                if s3.is_missing(error):
                    raise FileNotFoundError(errno.ENOENT, "no such object", url) from error
                raise

        return super().retrying(once, url, progress)

    def is_transient(self, error: Exception) -> bool:
        return s3.is_transient(error)

    def explain(self, error: Exception, url: str) -> str | None:
        if isinstance(error, OSError) and is_full(error):
            return explain_os_error(error, url)
        # RecursionError: botocore follows a redirect that names no region for ever.
        known = isinstance(error, OSError | RecursionError) or type(error).__module__.startswith("botocore")
        return s3.explain(error, url) if known else None

    def reason(self, error: Exception) -> str:
        return s3.reason(error)

    def renew(self, error: Exception) -> bool:
        if not s3.is_stale(error):
            return False
        s3.forget_client()  # a profile may hold new credentials by now
        return True


def _entry(bucket: Location, found: s3.Object) -> Entry:
    return Entry(bucket / found.key, found.bytes, found.version, found.modified)
