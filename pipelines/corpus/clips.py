"""The frames of planned clips, decoded from the video that the plan names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from autogaze.tiling import TileGrid
from pipelines.corpus.plan import frame_numbers
from pipelines.corpus.videos import video_fingerprint
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


def require_unchanged(source: Source, planned: str) -> None:
    """Raise VideoError unless a video still has the fingerprint that was planned."""
    if video_fingerprint(source.path, source.offset, source.size) != planned:
        raise VideoError("source_changed", "its bytes are not those that were planned")


def decoded_clips(
    decoder: IsolatedDecoder, source: Source, clips: Sequence[PlannedClip]
) -> Iterator[tuple[int, np.ndarray | VideoError]]:
    """The frames uint8 [T, S, S, 3] of clips of one video, or the error of one that failed, by their places in `clips`.

    Tiles of the same frames follow one another; their frames are decoded once. Frames of whole pictures are views of
    the memory that the child wrote them to. Raises VideoError if nothing can be read.
    """
    chunks = [list(chunk) for _, chunk in groupby(range(len(clips)), key=lambda place: clips[place].start)]
    first = [clips[chunk[0]] for chunk in chunks]
    wanted = [frame_numbers(clip.start, clip.stride, clip.frames, clip.video_frames).tolist() for clip in first]
    # Untiled pictures are squashed to one square.
    grid = TileGrid(first[0].height, first[0].width, decoder.config.size) if first[0].tile else None
    native = None if grid is None else (grid.height, grid.width)
    for number, decoded in decoder.decode_clips(source, wanted, native=native):
        chunk = chunks[number]
        if isinstance(decoded, VideoError) or grid is None:
            yield from ((place, decoded) for place in chunk)
            continue
        tiles = [grid.parse(clips[place].tile) for place in chunk]
        cut = np.empty((len(chunk), len(decoded), grid.size, grid.size, 3), np.uint8)
        for t in range(len(decoded)):  # so that only one frame's tiles are held twice
            cut[:, t] = grid.cut(decoded[t : t + 1], tiles)[:, 0]
        del decoded
        yield from zip(chunk, cut, strict=True)


def decode_planned(
    decoder: IsolatedDecoder, source: Source, clips: Sequence[PlannedClip], out: np.ndarray
) -> dict[int, VideoError]:
    """Decode clips of one video into `out`, uint8 [len(clips), T, S, S, 3]: see `decoded_clips`.

    Returns the error of each clip that failed, by its place in `clips`; its part of `out` stays as it was.
    """
    failed: dict[int, VideoError] = {}
    for place, decoded in decoded_clips(decoder, source, clips):
        if isinstance(decoded, VideoError):
            failed[place] = decoded
        else:
            out[place] = decoded
    return failed
