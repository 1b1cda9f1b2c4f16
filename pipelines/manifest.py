"""Scan a video store into a manifest: one parquet row per video, with what the plan needs to know.

A store is a folder, a URL prefix, or WebDataset tars holding videos, mixed freely; a tar member is read in place by its
byte range and never unpacked. A scan made over an earlier manifest opens only the objects that are new, changed, or
could not be read.
"""

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

import pandas as pd
import pyarrow as pa

from pipelines import store, tables
from pipelines.decode import DecodeConfig, IsolatedDecoder, Source, VideoError
from pipelines.errors import PipelineError
from pipelines.local_cache import LocalCache
from pipelines.ray_data import configure_ray_data, pipeline_errors

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
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # object, or object#member for a video inside a tar
        pa.field("object", pa.string(), nullable=False),  # URL of the object that holds the bytes
        pa.field("offset", pa.int64(), nullable=False),  # first byte in the object; 0 unless in a tar
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),  # the object's ETag or mtime when scanned
        pa.field("fingerprint", pa.string(), nullable=False),  # hash of the size and of both ends of the bytes
        pa.field("container", pa.string(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # coded size, before rotation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int32(), nullable=False),  # degrees clockwise to turn for display
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),  # seconds
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("reason", pa.string()),  # a name of pipelines.decode.REASONS when failed
        pa.field("detail", pa.string()),
    ]
)
_ENDS = 64 << 10
_OBJECTS_PER_TASK = 16
_HEADER = 1 << 20  # bytes of the longest name, or set of extended attributes, of a tar's member
T = TypeVar("T")


def fingerprint(path: str, offset: int = 0, length: int | None = None) -> str:
    """Hash of a byte range's size, first and last 64 KiB: cheap, and the same wherever a copy of the bytes lies.

    Raises VideoError: missing, unreadable. StoreError: the disk does not answer.
    """
    return _reading(partial(_hash_ends, path, offset, length), path)


def _reading(action: Callable[[], T], url: str) -> T:
    """What `action` reads of a video or tar: what is wrong with this one alone becomes a VideoError.

    Raises VideoError: missing, or of the local ones unreadable. StoreError: the store itself is in trouble.
    """
    try:
        return store.retrying(action, url)
    except FileNotFoundError:
        raise VideoError("missing", "no such file") from None
    except store.StoreError as error:
        if store.is_local(url) and isinstance(error.__cause__, NotADirectoryError):
            raise VideoError("missing", "no such file") from None
        if store.is_local(url) and isinstance(error.__cause__, IsADirectoryError):
            raise VideoError("unreadable", "a folder, not a file") from None
        if store.is_local(url) and isinstance(error.__cause__, PermissionError):
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
    if store.is_local(url):
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


def list_videos(url: str) -> list[store.Entry]:
    """The objects of a store that a scan opens: videos and tars, sorted by URL; a single object whatever its name.

    Raises PipelineError: nothing there, or nothing that looks like a video.
    """
    url = store.normalise(url)
    listed = list(store.list_objects(url))
    if not listed and not store.exists(url):
        raise PipelineError(f"input={url}: does not exist")
    entries = [entry for entry in listed if entry.url == url or is_video(entry.url) or _is_tar(entry.url)]
    if not entries:
        raise PipelineError(
            f"input={url}: no videos among its {len(listed)} files; looked for {TAR_SUFFIX} and "
            + " ".join(sorted(VIDEO_SUFFIXES))
        )
    return entries


def scan(url: str, previous: pd.DataFrame | None = None, timeout_s: float = DecodeConfig.timeout_s) -> pd.DataFrame:
    """The manifest of a store, rows sorted by uri. Needs a running Ray.

    Args:
        url: folder, file, URL prefix, tar.
        previous: an earlier manifest; rows of objects that were read and have the same version are kept as they are.
        timeout_s: a video that takes longer to open fails as decoder_timeout; the next scan tries it again.
    Raises:
        PipelineError: nothing there, or nothing that looks like a video.
    """
    entries = list_videos(url)
    known: dict[str, list[dict[str, Any]]] = {}
    if previous is not None:
        for row in pa.Table.from_pandas(previous, schema=SCHEMA, preserve_index=False).to_pylist():
            known.setdefault(str(row["object"]), []).append(row)
    rows: list[dict[str, Any]] = []
    fresh: list[store.Entry] = []
    for entry in entries:
        kept = known.get(entry.url, [])
        if kept and entry.version and all(row["version"] == entry.version and not _may_pass(row) for row in kept):
            rows.extend(kept)
        elif (shown := in_utf8(entry.url)) != entry.url:
            # Parquet holds UTF-8 only, and a name we cannot write down is one nobody could look up again.
            rows.append(_failed(shown, entry, 0, entry.bytes, "", "bad_name", "the file name is not valid UTF-8"))
        else:
            fresh.append(entry)
    if fresh:
        import ray.data  # here, not above: see cluster.local

        configure_ray_data()
        tasks = [
            {"urls": [e.url for e in part], "bytes": [e.bytes for e in part], "versions": [e.version for e in part]}
            for part in (fresh[i : i + _OBJECTS_PER_TASK] for i in range(0, len(fresh), _OBJECTS_PER_TASK))
        ]
        probe = partial(_probe, timeout_s=timeout_s)
        probed = ray.data.from_items(tasks, override_num_blocks=len(tasks)).flat_map(probe, num_cpus=1)
        rows.extend(pipeline_errors(probed.iter_rows()))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return table.to_pandas().sort_values("uri", kind="stable", ignore_index=True)


def _may_pass(row: dict[str, Any]) -> bool:
    """Whether a row failed for what was no fact of the bytes: they were not read, or the time was too short."""
    return not row["fingerprint"] or row["reason"] == "decoder_timeout"


def _probe(task: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Ray Data task: objects -> manifest rows. Untrusted bytes are opened in a decoder's child process."""
    rows: list[dict[str, Any]] = []
    with IsolatedDecoder(DecodeConfig(timeout_s=timeout_s)) as decoder:
        for url, size, version in zip(task["urls"], task["bytes"], task["versions"], strict=True):
            rows.extend(probe_object(store.Entry(str(url), int(size), str(version)), decoder))
    return rows


def probe_object(entry: store.Entry, decoder: IsolatedDecoder) -> list[dict[str, Any]]:
    """Manifest rows of one object: one for a video, one per video member for a tar."""
    if not _is_tar(entry.url):
        return [_probe_video(entry.url, entry, 0, entry.bytes, decoder)]
    try:
        videos, problem = _reading(partial(_tar_videos, entry.url), entry.url)
    except VideoError as error:
        videos, problem = {}, error
    rows = []
    for name, (offset, size) in videos.items():
        uri = f"{entry.url}#{name}"
        if offset is None:
            rows.append(_failed(uri, entry, 0, 0, "", "unreadable", "stored sparse; make the tar without -S"))
        else:
            rows.append(_probe_video(uri, entry, offset, size, decoder))
    if problem:
        rows.append(_failed(entry.url, entry, 0, entry.bytes, "", problem.reason, problem.detail))
    return rows


def _tar_videos(url: str) -> tuple[dict[str, tuple[int | None, int]], VideoError | None]:
    """First byte and size of the videos of a tar by name, and what is wrong with the tar, if anything."""
    videos: dict[str, tuple[int | None, int]] = {}
    try:
        for name, offset, size in tar_members(url):
            if is_video(name):
                videos[name] = offset, size  # of two of one name the later one, as when tar unpacks them
    except tarfile.TarError as error:
        return videos, VideoError("unreadable", f"not a plain tar: {error}")
    except EOFError:
        return videos, VideoError("truncated", "the tar ends inside a member")
    return videos, None if videos else VideoError("unreadable", "no videos in this tar")


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


def _probe_video(uri: str, entry: store.Entry, offset: int, size: int, decoder: IsolatedDecoder) -> dict[str, Any]:
    mark = ""
    try:
        with local_copy(entry.url, offset, size) as source:
            mark = fingerprint(source.path, source.offset, source.size)
            info = decoder.probe(source)
    except FileNotFoundError:
        return _failed(uri, entry, offset, size, mark, "missing", "removed between listing and opening")
    except VideoError as error:
        return _failed(uri, entry, offset, size, mark, error.reason, error.detail)
    return {
        "uri": uri,
        "object": entry.url,
        "offset": offset,
        "bytes": size,
        "version": entry.version,
        "fingerprint": mark,
        "container": info.container,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "fps": info.fps,
        "frames": info.frames,
        "duration": info.duration,
        "status": "ok",
        "reason": None,
        "detail": None,
    }


def _failed(
    uri: str, entry: store.Entry, offset: int, size: int, mark: str, reason: str, detail: str
) -> dict[str, Any]:
    return {
        "uri": uri,
        "object": in_utf8(entry.url),
        "offset": offset,
        "bytes": size,
        "version": entry.version,
        "fingerprint": mark,
        "container": "",
        "codec": "",
        "width": 0,
        "height": 0,
        "rotation": 0,
        "fps": 0.0,
        "frames": 0,
        "duration": 0.0,
        "status": "failed",
        "reason": reason,
        "detail": detail,
    }


def is_video(name: str) -> bool:
    """Whether a file's name is one that a scan opens as a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIX)


def in_utf8(url: str) -> str:
    """A URL as manifests hold it: bytes of a local name that are not UTF-8 are escaped."""
    return url.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def manifest_bytes(manifest: pd.DataFrame) -> bytes:
    """The manifest as parquet."""
    return tables.to_bytes(manifest, SCHEMA)


def read_manifest(url: str) -> pd.DataFrame:
    """A manifest written by manifest_bytes. Raises PipelineError when it is not one."""
    try:
        return tables.read(url, SCHEMA, "a manifest; make one with `autogaze scan`").to_pandas()
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no such manifest") from error
