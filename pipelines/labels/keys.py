"""The keys that name videos and clips in the reference's label files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pipelines.errors import PipelineError


def video_key(uri: str) -> str:
    """The reference's key of a video: the last three parts of its path."""
    return "/".join(uri.split("/")[-3:]).lstrip("/")


def clip_key(uri: str, start: int, tile: str, full: bool = False) -> str:
    """The key of the clip of a video that begins at frame `start`, or of one of its tiles.

    full: with the video's whole path.
    """
    video = uri if full else video_key(uri)
    return video + (f"#{start}" if start or tile else "") + (f"-{tile}" if tile else "")


def require_distinct(uris: Callable[[], Iterable[str]]) -> None:
    """Raise PipelineError if two videos have the same key. uris: gives their uris, and may be called twice."""
    # A corpus may have millions: 8 bytes of each are in memory, and texts only of those that may be alike.
    hashes, counts = np.unique(np.fromiter((hash(video_key(uri)) for uri in uris()), np.int64), return_counts=True)
    twice = set(hashes[counts > 1].tolist())
    names: dict[str, str] = {}
    for uri in uris() if twice else ():
        key = video_key(uri)
        other = names.setdefault(key, uri) if hash(key) in twice else uri
        if other != uri:
            raise PipelineError(
                f"{other} and {uri} have one label key, {key}: the last three parts of their paths; "
                "keys=full writes whole paths"
            )
