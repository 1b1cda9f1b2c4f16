"""The videos of a store: which objects are videos, which tars hold some, and a fingerprint of each."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, TypeVar

from pipelines.errors import PipelineError
from pipelines.storage import retry, store, urls
from pipelines.storage.cache import LocalCache
from pipelines.video.base import Source, VideoError

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".wmv",
        ".flv",
        ".3gp",
        ".ogv",
        ".vob",
        ".mxf",
        ".mjpeg",
        ".gif",
    ]
)


TAR_SUFFIX = ".tar"


_ENDS = 64 << 10


_HEADER = 1 << 20  # bytes of the longest name, or set of extended attributes, of a tar's member


T = TypeVar("T")


def fingerprint(path: str, offset: int = 0, length: int | None = None) -> str:
    """Hash of a byte range's size, first and last 64 KiB: cheap, and the same wherever a copy of the bytes lies.

    Raises VideoError: missing, unreadable. StoreError: the disk does not answer.
    """
    return video_reader(partial(_hash_ends, path, offset, length), path)


def video_reader(action: Callable[[], T], url: str) -> T:
    """What `action` reads of a video or tar: what is wrong with this one alone becomes a VideoError.

    Raises VideoError: missing, or of the local ones unreadable. StoreError: the store itself is in trouble.
    """
    try:
        return retry.retrying(action, url)
    except FileNotFoundError:
        raise VideoError("missing", "no such file") from None
    except retry.StoreError as error:
        if urls.is_local(url) and isinstance(error.__cause__, NotADirectoryError):
            raise VideoError("missing", "no such file") from None
        if urls.is_local(url) and isinstance(error.__cause__, IsADirectoryError):
            raise VideoError("unreadable", "a folder, not a file") from None
        if urls.is_local(url) and isinstance(error.__cause__, PermissionError):
            raise VideoError("unreadable", "no permission to read the file") from None
        raise


def _hash_ends(path: str, offset: int, length: int | None) -> str:
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size if length is None else offset + length
        file.seek(offset)
        head = file.read(min(_ENDS, max(end - offset, 0)))
        file.seek(max(offset, end - _ENDS))
        tail = file.read(max(end - file.tell(), 0))
    return hashlib.sha256(b"%d\n" % (end - offset) + head + tail).hexdigest()[:32]


@contextmanager
def local_copy(url: str, offset: int, length: int, mark: str = "", cache: LocalCache | None = None) -> Iterator[Source]:
    """A local byte window over a video: the file itself when it is local, else a copy of those bytes.

    cache: where a copy is kept for others that need it, unless the block raises. Without one it is removed afterwards.
    mark: the fingerprint that the bytes are to have, which tells a copy of other bytes that once lay there apart. It is
        not checked here.

    Raises FileNotFoundError, StoreError.
    """
    if urls.is_local(url):
        yield Source(url, offset, length)
        return
    if cache is not None:
        name = f"video {json.dumps([url, offset, length, mark])}"
        with cache.local(name, lambda path: store.fetch(url, path, offset, length), length) as path:
            try:
                yield Source(path, 0, length)
            except Exception:  # whatever it was, the copy may be to blame
                cache.forget(name)
                raise
        return
    with tempfile.TemporaryDirectory(prefix="autogaze-") as folder:
        path = os.path.join(folder, "video")
        yield Source(path, 0, store.fetch(url, path, offset, length))


def list_videos(url: str) -> list[urls.Entry]:
    """The objects of a store that a scan opens: videos and tars, sorted by URL; a single object whatever its name.

    Raises PipelineError: nothing there, or nothing that looks like a video.
    """
    url = urls.normalise(url)
    listed = list(store.list_objects(url))
    if not listed and not store.exists(url):
        raise PipelineError(f"input={url}: does not exist")
    entries = [entry for entry in listed if entry.url == url or is_video(entry.url) or is_tar(entry.url)]
    if not entries:
        raise PipelineError(
            f"input={url}: no videos among its {len(listed)} files; looked for {TAR_SUFFIX} and "
            + " ".join(sorted(VIDEO_SUFFIXES))
        )
    return entries


def tar_members(url: str) -> Iterator[tuple[str, int | None, int]]:
    """(name, first byte, size) of each regular file of a tar, without reading the files' bytes.

    The first byte is None where a file is stored sparse: without its holes, so that its bytes do not lie in a row.
    Names are only ever labels: nothing is unpacked, so a member called ../../x is as harmless as any other.
    Raises EOFError when a member reaches past the end of the object, tarfile.TarError when it is no tar.
    """
    total = store.size(url)
    with store.open_read(url) as raw:
        headers: Any = _Headers(raw)  # tarfile wants no more of a file
        try:
            with tarfile.open(fileobj=headers, mode="r:", errors="backslashreplace") as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps every header it has seen; a tar of a million members must not cost gigabytes.
                    archive.members = []  # type: ignore[attr-defined]
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member of {member.size} bytes")
                    if not member.isreg():
                        continue
                    if member.issparse():
                        yield member.name, None, member.size
                        continue
                    if member.offset_data + member.size > total:
                        raise EOFError(member.name)
                    yield member.name, member.offset_data, member.size
        except (ValueError, OverflowError) as error:  # numbers that no file has
            raise tarfile.ReadError(str(error)) from error


class _Headers:
    """What tarfile reads of a tar. It would read as much as a header says there is: a hostile one, more than fits in
    memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.seek, self.tell = raw, raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.raw.read(size)


def is_video(name: str) -> bool:
    """Whether a file's name is one that a scan opens as a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIX)


def in_utf8(url: str) -> str:
    """A URL as manifests hold it: bytes of a local name that are not UTF-8 are escaped."""
    return url.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
