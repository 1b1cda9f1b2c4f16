"""Scan a video store into a manifest: one parquet row per video, with what the plan needs to know.

A store is a folder, a URL prefix, or WebDataset tars holding videos, mixed freely; a tar member is read in place by its
byte range and never unpacked. A scan made over an earlier manifest opens only the objects that are new, changed, or
could not be read.
"""

from __future__ import annotations

import tarfile
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa

from pipelines.corpus.tars import tar_members
from pipelines.corpus.videos import (
    escaped,
    is_tar,
    is_video,
    list_videos,
    local_copy,
    reading_video,
    video_fingerprint,
)
from pipelines.errors import PipelineError
from pipelines.ray_data import configure_ray_data, pipeline_errors
from pipelines.storage import tables
from pipelines.storage.location import Entry, Location
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder, index_folder

MANIFEST_SCHEMA = pa.schema(
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
        pa.field("reason", pa.string()),  # a name of pipelines.video.decode.REASONS when failed
        pa.field("detail", pa.string()),
        pa.field("mirrored", pa.bool_()),  # to be mirrored left to right for display, before it is turned
        pa.field("fps_source", pa.string()),  # what says the rate: timestamps, header, or nothing ("")
        pa.field("duration_source", pa.string()),
    ]
)
OPTIONAL_COLUMNS = ("mirrored", "fps_source", "duration_source")  # older versions did not write them: null
_OBJECTS_PER_TASK = 16


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
        for row in pa.Table.from_pandas(previous, schema=MANIFEST_SCHEMA, preserve_index=False).to_pylist():
            known.setdefault(str(row["object"]), []).append(row)
    rows: list[dict[str, Any]] = []
    fresh: list[Entry] = []
    for entry in entries:
        kept = known.get(entry.url, [])
        if kept and entry.version and all(row["version"] == entry.version and not _failed_for_now(row) for row in kept):
            rows.extend(kept)
        elif (shown := escaped(entry.url)) != entry.url:
            # Parquet holds UTF-8 only, and nobody could open a video by a name that differs from its own.
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
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    return table.to_pandas().sort_values("uri", kind="stable", ignore_index=True)


def _failed_for_now(row: dict[str, Any]) -> bool:
    """Whether a video is to be opened again although it is the same.

    It was not read, the time limit was too short, or an older version opened it, which took packets for frames and
    believed headers.
    """
    return not row["fingerprint"] or row["reason"] == "decoder_timeout" or row["fps_source"] is None


def _probe(task: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Ray Data task: objects -> manifest rows. Untrusted bytes are opened in a decoder's child process."""
    rows: list[dict[str, Any]] = []
    with IsolatedDecoder(DecodeConfig(timeout_s=timeout_s, index_dir=index_folder())) as decoder:
        for url, size, version in zip(task["urls"], task["bytes"], task["versions"], strict=True):
            rows.extend(probe_object(Entry(Location.as_is(url), int(size), str(version)), decoder))
    return rows


def probe_object(entry: Entry, decoder: IsolatedDecoder) -> list[dict[str, Any]]:
    """Manifest rows of one object: one for a video, one per video member for a tar."""
    if not is_tar(entry.url):
        return [_probe_video(entry.url, entry, 0, entry.bytes, decoder)]
    try:
        videos, problem = reading_video(partial(_tar_videos, entry.url), entry.url)
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


def _probe_video(uri: str, entry: Entry, offset: int, size: int, decoder: IsolatedDecoder) -> dict[str, Any]:
    mark = ""
    try:
        with local_copy(entry.url, offset, size) as source:
            mark = video_fingerprint(source.path, source.offset, source.size)
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
        "mirrored": info.mirrored,
        "fps_source": info.fps_source,
        "duration_source": info.duration_source,
    }


def _failed(uri: str, entry: Entry, offset: int, size: int, mark: str, reason: str, detail: str) -> dict[str, Any]:
    return {
        "uri": uri,
        "object": escaped(entry.url),
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
        "mirrored": False,
        "fps_source": "",
        "duration_source": "",
    }


def manifest_bytes(manifest: pd.DataFrame) -> bytes:
    """The manifest as parquet."""
    return tables.to_bytes(manifest, MANIFEST_SCHEMA)


def read_manifest(url: str) -> pd.DataFrame:
    """A manifest written by manifest_bytes. Raises PipelineError when it is not one."""
    try:
        what = "a manifest; make one with `autogaze scan`"
        return tables.read(url, MANIFEST_SCHEMA, what, optional=OPTIONAL_COLUMNS).to_pandas()
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no such manifest") from error
