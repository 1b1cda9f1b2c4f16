"""The keys that name videos and clips in the reference's label files."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

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


def clip_keys(plan: pd.DataFrame, full: bool = False) -> list[str]:
    """The key of each row of a plan; two clips have the same where videos share the last three parts of their paths."""
    rows = zip(plan["video"], plan["start"].tolist(), plan["tile"], strict=True)
    return [clip_key(uri, start, tile, full) for uri, start, tile in rows]


def require_distinct(videos: Iterable[str]) -> None:
    """Raise PipelineError if two videos, by their uris, have the same key."""
    names: dict[str, str] = {}
    for uri in videos:
        other = names.setdefault(video_key(uri), uri)
        if other != uri:
            raise PipelineError(
                f"{other} and {uri} have one label key, {video_key(uri)}: the last three parts of their paths; "
                "keys=full writes whole paths"
            )
