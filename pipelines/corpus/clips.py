"""The frames of planned clips, decoded from the video that the plan names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autogaze.tiling import TileGrid
from pipelines.corpus.plan import frame_numbers
from pipelines.corpus.videos import fingerprint
from pipelines.video.base import Source, VideoError
from pipelines.video.isolated import IsolatedDecoder


class PlannedClip(NamedTuple):
    """Where a clip lies in its video: `frames` frames from `start`, one in `stride`; all of it, or one tile."""

    start: int
    stride: int
    frames: int
    video_frames: int
    height: int
    width: int
    tile: str

    @classmethod
    def of_row(cls, row: Any) -> PlannedClip:
        """The clip of a row of the plan, given by column name."""
        whole = {name: int(row[name]) for name in cls._fields if name != "tile"}
        return cls(**whole, tile=str(row["tile"] or ""))

    @classmethod
    def of_rows(cls, rows: pd.DataFrame) -> list[PlannedClip]:
        return [cls.of_row(row) for row in rows[list(cls._fields)].to_dict("records")]


def require_unchanged(source: Source, planned: str) -> None:
    """Raise VideoError unless a video still has the fingerprint that was planned."""
    if fingerprint(source.path, source.offset, source.size) != planned:
        raise VideoError("source_changed", "its bytes are not those that were planned")


def decode_planned(
    decoder: IsolatedDecoder, source: Source, clips: Sequence[PlannedClip], out: np.ndarray
) -> dict[int, VideoError]:
    """Decode clips of one video into `out`, uint8 [len(clips), T, S, S, 3].

    Tiles of the same frames follow one another; these frames are decoded once. What failed is told by its place in
    `clips`, and its part of `out` is left as it was. Raises VideoError where nothing of the video can be read.
    """
    chunks = [list(chunk) for _, chunk in groupby(range(len(clips)), key=lambda place: clips[place].start)]
    first = [clips[chunk[0]] for chunk in chunks]
    wanted = [frame_numbers(clip.start, clip.stride, clip.frames, clip.video_frames).tolist() for clip in first]
    # Untiled pictures are squashed to one square.
    grid = TileGrid(first[0].height, first[0].width, decoder.config.size) if first[0].tile else None
    native = None if grid is None else (grid.height, grid.width)
    failed: dict[int, VideoError] = {}
    for number, decoded in decoder.decode_clips(source, wanted, native=native):
        chunk = chunks[number]
        if isinstance(decoded, VideoError):
            failed.update(dict.fromkeys(chunk, decoded))
        elif grid is None:
            out[chunk[0]] = decoded
        else:
            tiles = [grid.parse(clips[place].tile) for place in chunk]
            for t in range(len(decoded)):  # so that only one frame's tiles are held twice
                out[chunk[0] : chunk[-1] + 1, t] = grid.cut(decoded[t : t + 1], tiles)[:, 0]
    return failed
