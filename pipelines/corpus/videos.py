"""One video of a store: a local copy of it to decode, its fingerprint, and what is wrong with it alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from pipelines.storage import retry, store
from pipelines.storage.cache import LocalCache
from pipelines.storage.location import Location
from pipelines.video.base import Source, VideoError

_END_BYTES = 64 << 10  # of each end of a video, for its fingerprint
T = TypeVar("T")


def video_fingerprint(path: str, offset: int = 0, length: int | None = None) -> str:
    """Hash of a byte range's size, first and last 64 KiB: cheap, and the same wherever a copy of the bytes lies.

    Raises VideoError: missing, unreadable. StoreError: the disk does not answer.
    """
    return reading_video(partial(_hash_ends, path, offset, length), path)


def reading_video(action: Callable[[], T], url: str) -> T:
    """Run an action that reads a video or a tar; what is wrong with this one alone becomes a VideoError.

    Raises VideoError: missing, or a local one that is unreadable. StoreError: the store itself does not work.
    """
    try:
        return store.retrying(action, url)
    except FileNotFoundError:
        raise VideoError("missing", "no such file") from None
    except retry.StoreError as error:
        local, cause = Location.as_is(url).is_local, error.__cause__
        if local and isinstance(cause, NotADirectoryError):
            raise VideoError("missing", "no such file") from None
        if local and isinstance(cause, IsADirectoryError):
            raise VideoError("unreadable", "a folder, not a file") from None
        if local and isinstance(cause, PermissionError):
            raise VideoError("unreadable", "no permission to read the file") from None
        raise


def _hash_ends(path: str, offset: int, length: int | None) -> str:
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size if length is None else offset + length
        file.seek(offset)
        head = file.read(min(_END_BYTES, max(end - offset, 0)))
        file.seek(max(offset, end - _END_BYTES))
        tail = file.read(max(end - file.tell(), 0))
    return hashlib.sha256(b"%d\n" % (end - offset) + head + tail).hexdigest()[:32]


@contextmanager
def local_copy(url: str, offset: int, length: int, mark: str = "", cache: LocalCache | None = None) -> Iterator[Source]:
    """A local byte window over a video: the file itself when it is local, else a copy of those bytes.

    cache: keeps the copy for others that need it, unless the block raises. Without a cache it is removed afterwards.
    mark: the fingerprint the bytes should have, so that a copy of an earlier object at this URL is not taken for it.
        It is not checked here.

    Raises FileNotFoundError, StoreError.
    """
    if Location.as_is(url).is_local:
        yield Source(url, offset, length)
        return
    if cache is not None:
        name = f"video {json.dumps([url, offset, length, mark])}"
        with cache.local(name, lambda path: store.fetch(url, path, offset, length), length) as path:
            try:
                yield Source(path, 0, length)
            except Exception:  # the copy may be the cause
                cache.forget(name)
                raise
        return
    with tempfile.TemporaryDirectory(prefix="autogaze-") as folder:
        path = os.path.join(folder, "video")
        yield Source(path, 0, store.fetch(url, path, offset, length))
