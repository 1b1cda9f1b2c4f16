"""Gaze and features in one pass: clips in memory, or a video of any length and size in bounded memory.

out = gaze_and_encode(clips, policy, encoder)                  # uint8 [B, T, H, W, 3]: one TokenFeatures
for part in gaze_and_encode(chunks, policy, encoder):          # uint8 [t, H, W, 3] each: part after part
    part.features.tokens, part.start, part.tiles
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.images import check_frames
from autogaze.model.policy import AutoGaze
from autogaze.tiling import CHUNK_FRAMES, TileGrid
from autogaze.vision.encoded import TokenFeatures
from autogaze.vision.encoder import GazedEncoder

GazesClips = AutoGaze | Callable[[np.ndarray], Gaze]
"""A policy, within its own limits and in the encoder's vocabulary; or uint8 clips [B, t, S, S, 3] to their gaze."""


@dataclass(frozen=True, eq=False)
class VideoPart:
    """Features of some tiles of a chunk of a video.

    start: number in the video of the chunk's first frame. grid: how frames are cut; of one tile, where they are not.
    tiles: numbers of the tiles in the grid. gaze: clip n is of tile tiles[n]. features: of the same clips.
    """

    start: int
    grid: TileGrid
    tiles: range
    gaze: Gaze
    features: TokenFeatures


@overload
def gaze_and_encode(  # type: ignore[overload-overlap]  # a tensor is iterable, too
    frames: Tensor | np.ndarray,
    gazer: GazesClips,
    encoder: GazedEncoder,
    *,
    batch: int = ...,
    tiles: bool = ...,
    convert: str | None = ...,
) -> TokenFeatures: ...


@overload
def gaze_and_encode(
    frames: Iterable[np.ndarray],
    gazer: GazesClips,
    encoder: GazedEncoder,
    *,
    batch: int = ...,
    tiles: bool = ...,
    convert: str | None = ...,
) -> Iterator[VideoPart]: ...


def gaze_and_encode(
    frames: Tensor | np.ndarray | Iterable[np.ndarray],
    gazer: GazesClips,
    encoder: GazedEncoder,
    *,
    batch: int = 32,
    tiles: bool = True,
    convert: str | None = None,
) -> TokenFeatures | Iterator[VideoPart]:
    """Choose patches of frames and encode them.

    frames: clips uint8 [B, T, H, W, 3], each seen whole, of at most 16 frames for one call of the gazer: of longer ones
        every 16 frames are gazed alone, and encoded together. Or the chunks of a video, uint8 [t, H, W, 3] with t at
        most 16: each is gazed and encoded alone, and gives its features before the next is taken.
    batch: most clips, or tiles of a chunk, that are gazed and encoded at once.
    tiles: of a video: cut frames into tiles of the encoder's frame size at their own resolution, each a clip of its own
        (`autogaze.tiling`). False: frames are seen whole.
    convert: as in `GazedEncoder.encode`, for a gazer of another vocabulary.

    Memory of a video does not grow with its length: a chunk of pixels, `batch` tiles of it, and what gazer and encoder
    take for them. Raises ValueError, in one line, for frames or a gaze that do not fit.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 clip, not {batch}")
    gaze = _gaze_of(gazer, encoder)
    if isinstance(frames, Tensor | np.ndarray):
        return _clips(frames, gaze, encoder, batch, convert)
    return _video(frames, gaze, encoder, batch, tiles, convert)


def _gaze_of(gazer: GazesClips, encoder: GazedEncoder) -> Callable[[np.ndarray], Gaze]:
    if isinstance(gazer, AutoGaze):
        return lambda clips: gazer.gaze(clips, vocabulary=encoder.vocabulary)
    if not callable(gazer):
        what = type(gazer).__name__
        raise ValueError(f"the gazer is a {what}: wanted an AutoGaze, or a function of uint8 clips that gives a Gaze")
    return gazer


def _clips(
    frames: Tensor | np.ndarray,
    gaze: Callable[[np.ndarray], Gaze],
    encoder: GazedEncoder,
    batch: int,
    convert: str | None,
) -> TokenFeatures:
    clips = check_frames(frames)
    if clips.dtype != torch.uint8:
        raise ValueError(f"frames are {clips.dtype}: gazer and encoder normalise for themselves; give uint8 frames")
    parts = []
    for some in clips.split(batch):
        chunks = [gaze(chunk.cpu().numpy()) for chunk in some.split(CHUNK_FRAMES, dim=1)]
        parts.append(encoder.encode(some, _joined(chunks), convert=convert))
    return TokenFeatures.cat(parts)


def _video(
    chunks: Iterable[np.ndarray],
    gaze: Callable[[np.ndarray], Gaze],
    encoder: GazedEncoder,
    batch: int,
    tiles: bool,
    convert: str | None,
) -> Iterator[VideoPart]:
    start, shape = 0, None
    for chunk in chunks:
        if chunk.dtype != np.uint8 or chunk.ndim != 4 or not 1 <= len(chunk) <= CHUNK_FRAMES:
            raise ValueError(
                f"a chunk is uint8 [t, H, W, 3] with t from 1 to {CHUNK_FRAMES}, not {chunk.dtype} {list(chunk.shape)}"
            )
        if shape not in (None, chunk.shape[1:]):
            raise ValueError(f"frames change from {list(shape or ())} to {list(chunk.shape[1:])}: a video has one size")
        shape = chunk.shape[1:]
        height, width = chunk.shape[1:3]
        grid = TileGrid(height, width, encoder.vocabulary.frame_size if tiles else max(height, width))
        for first in range(0, grid.count, batch):
            numbers = range(first, min(first + batch, grid.count))
            clips = grid.cut(chunk, numbers) if tiles else chunk[None]
            gazed = gaze(clips)
            yield VideoPart(start, grid, numbers, gazed, encoder.encode(clips, gazed, convert=convert))
        start += len(chunk)


def _joined(chunks: list[Gaze]) -> Gaze:
    """The gaze of consecutive chunks of the same clips as one."""
    if len(chunks) == 1:
        return chunks[0]
    clips = [[frame for chunk in chunks for frame in chunk.frames(b)] for b in range(chunks[0].clips)]
    return Gaze.from_lists(clips, vocabulary=chunks[0].vocabulary)
