"""Frame indexes that a node keeps, so that a video is demuxed once and not once a shard.

An index is a file of plain arrays in a bounded folder of the node (pipelines.storage.cache), found again by the video's
fingerprint. It is mapped, not read: what a reader does not look at takes no memory, and a shard of a day-long video
opens as fast as one of a minute. Whoever reads by it checks the packets it names (pipelines.video.pyav_readers).
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.storage.cache import LocalCache
from pipelines.video.base import Source
from pipelines.video.frame_index import FrameIndex, Header, Timing

_FORMAT = 1  # of the files, and of what an index says
_LIMIT_MB = 1024
_WORTH = 1024  # packets: demuxing fewer takes about as long as finding their index
_END_BYTES = 64 << 10  # of each end of a video, for its name
_ALIGNED = 64
_ARRAYS = (
    "place",
    "frame",
    "keys",
    "point_place",
    "point_pts",
    "point_dts",
    "point_pos",
    "point_size",
)


def kept(folder: str, source: Source, make: Callable[[], FrameIndex]) -> FrameIndex:
    """The index of a video: the one that is kept in `folder`, or what `make` gives, which is kept if that pays."""
    cache, name = LocalCache(folder, _LIMIT_MB), _name(source)
    try:
        with cache.local(name, _not_there) as path:
            try:
                return load(path)
            except ValueError:
                cache.forget(name)  # damaged
    except _NotThere:
        pass
    index = make()
    if index.packets >= _WORTH or index.decoded:
        data = dump(index)
        try:
            with cache.local(name, lambda path: Path(path).write_bytes(data), len(data)):
                pass
        except OSError:  # a full disk: the next shard makes it again
            cache.forget(name)
    return index


class _NotThere(Exception):
    pass


def _not_there(path: str) -> None:
    raise _NotThere


def _name(source: Source) -> str:
    """Names the bytes of a video, and the libraries that demux them."""
    path, start, end, _ = source.window()
    with open(path, "rb") as file:
        file.seek(start)
        ends = file.read(min(_END_BYTES, end - start))
        file.seek(max(start, end - _END_BYTES))
        ends += file.read(end - file.tell())
    versions = ".".join(str(number) for name in ("libavformat", "libavcodec") for number in av.library_versions[name])
    return f"index {_FORMAT} {versions} {end - start} {hashlib.sha256(ends).hexdigest()}"


def dump(index: FrameIndex) -> bytes:
    """An index as the bytes of a file: one line of JSON, then the arrays, each at a multiple of 64 bytes."""
    about: dict[str, Any] = {
        "promised": index.promised,
        "cut": index.cut,
        "decoded": index.decoded,
        "encrypted": index.encrypted,
        "timing": asdict(index.timing),
        "headers": [[h.place, h.kind, base64.b64encode(h.data).decode()] for h in index.headers],
        "arrays": {name: [getattr(index, name).dtype.str, len(getattr(index, name))] for name in _ARRAYS},
    }
    line = json.dumps(about).encode() + b"\n"
    parts = [line, bytes(-len(line) % _ALIGNED)]
    for name in _ARRAYS:
        data = np.ascontiguousarray(getattr(index, name)).tobytes()
        parts += [data, bytes(-len(data) % _ALIGNED)]
    return b"".join(parts)


def load(path: str) -> FrameIndex:
    """The index in a file, its arrays mapped. Raises ValueError for a file that is not whole."""
    with open(path, "rb") as file:
        line = file.readline()
        if not line.endswith(b"\n"):
            raise ValueError("no index")
        about = json.loads(line)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = len(line) + -len(line) % _ALIGNED
    arrays: dict[str, Any] = {}
    for name, (dtype, count) in about.pop("arrays").items():
        arrays[name] = np.frombuffer(data, dtype, count, at)  # ValueError where it is cut off
        at += arrays[name].nbytes + -arrays[name].nbytes % _ALIGNED
    headers = tuple(Header(place, kind, base64.b64decode(text)) for place, kind, text in about.pop("headers"))
    return FrameIndex(**arrays, headers=headers, timing=Timing(**about.pop("timing")), **about)
