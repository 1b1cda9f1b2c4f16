"""Any resolution, any duration: a video is cut into square tiles and chunks of frames, and the gaze put back together.

The policy sees clips of at most 16 frames of 224x224 pixels. A larger picture is cut into tiles of that size at its own
resolution, each gazed alone, as in the reference's recipe for any resolution (docs/method.md, section 'Tiling'). Here a
side need not be a multiple of the tile: what a tile lacks at the right or bottom repeats the picture's last pixels.

Numpy only until there is a gaze: a process that decodes and cuts needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autogaze.gaze import Gaze
    from autogaze.patches import PatchVocabulary

CHUNK_FRAMES = 16
"""Most frames of a chunk: as many as the released policy takes in one clip."""


@dataclass(frozen=True)
class TileGrid:
    """How a picture of height x width pixels is cut into square tiles of `size` pixels, numbered row by row.

    Raises ValueError for a side below one pixel.
    """

    height: int
    width: int
    size: int = 224

    def __post_init__(self) -> None:
        for name in ("height", "width", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 pixel, not {getattr(self, name)}")

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.size)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.size)

    @property
    def count(self) -> int:
        """All tiles."""
        return self.rows * self.columns

    def place(self, n: int) -> tuple[int, int]:
        """(row, column) of tile n. Raises ValueError if there is none."""
        if not 0 <= n < self.count:
            raise ValueError(f"tile {n} of {self.rows} x {self.columns} tiles: they are numbered 0..{self.count - 1}")
        return divmod(n, self.columns)

    def name(self, n: int) -> str:
        """Tile n as text of a fixed width, so that names sort as numbers do: 'r00c01'."""
        row, column = self.place(n)
        digits = max(2, len(str(max(self.rows, self.columns) - 1)))
        return f"r{row:0{digits}d}c{column:0{digits}d}"

    def parse(self, name: str) -> int:
        """The number of the tile that `name` gave this name. Raises ValueError if no tile has it."""
        row, _, column = name.removeprefix("r").partition("c")
        if row.isdecimal() and column.isdecimal():
            n = int(row) * self.columns + int(column)
            if n < self.count and self.name(n) == name:
                return n
        raise ValueError(f"no tile is called {name!r}: they are {self.name(0)}..{self.name(self.count - 1)}")

    def box(self, n: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) in the picture of what tile n shows of it, bottom and right exclusive."""
        top, left = (place * self.size for place in self.place(n))
        return top, left, min(top + self.size, self.height), min(left + self.size, self.width)

    def inside(self, vocabulary: PatchVocabulary) -> np.ndarray:
        """Which patches of which tiles hold at least one pixel of the picture: bool [count, V]."""
        top, left = _patch_boxes(vocabulary)[:, :2].T
        rows = top + np.arange(self.rows)[:, None] * self.size < self.height
        columns = left + np.arange(self.columns)[:, None] * self.size < self.width
        return (rows[:, None] & columns[None]).reshape(self.count, vocabulary.size)

    def cut(self, frames: np.ndarray, tiles: Sequence[int] | None = None) -> np.ndarray:
        """Tiles of uint8 frames [T, height, width, 3]: uint8 [count, T, size, size, 3], always a copy.

        tiles: the numbers wanted, in any order; None: all. At the right and bottom, where a tile reaches past the
        picture, the last column and row of pixels are repeated.

        Raises ValueError for frames of another shape or dtype, or a tile that does not exist.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(
                f"frames must be uint8 [T, {self.height}, {self.width}, 3], not {frames.dtype} {list(frames.shape)}"
            )
        numbers = range(self.count) if tiles is None else tiles
        out = np.empty((len(numbers), len(frames), self.size, self.size, 3), np.uint8)
        for tile, n in zip(out, numbers, strict=True):
            top, left, bottom, right = self.box(n)
            part, height, width = frames[:, top:bottom, left:right], bottom - top, right - left
            tile[:, :height, :width] = part
            tile[:, :height, width:] = part[:, :, -1:]
            tile[:, height:] = tile[:, height - 1 : height]
        return out

    def join(self, gaze: Gaze, start: int = 0) -> VideoGaze:
        """The gaze of all tiles, clip n being tile n, as one gaze of the picture.

        Patches that lie wholly outside the picture, in what `cut` added, are dropped and counted.
        start: number in the video of the clips' first frame.

        Raises ValueError if the clips are not as many as the tiles, or the vocabulary's frames not of their size.
        """
        vocabulary = gaze.vocabulary
        if gaze.clips != self.count:
            raise ValueError(f"a gaze of {gaze.clips} clips for {self.count} tiles: each tile needs its own")
        if vocabulary.frame_size != self.size:
            raise ValueError(f"the gaze is of {vocabulary.frame_size}-pixel frames, the tiles have {self.size} pixels")
        lengths = gaze.lengths.cpu().numpy()
        tile, frame = (np.repeat(index.ravel(), lengths.ravel()) for index in np.indices(lengths.shape, np.int32))
        token = gaze.tokens.cpu().numpy().astype(np.int32)
        inside = self.inside(vocabulary)[tile, token]
        # Clip by clip, then frame by frame, becomes the other way round; the order within a tile's frame stays.
        order = np.flatnonzero(inside)
        order = order[frame[order].argsort(kind="stable")]
        losses = None if gaze.losses is None else gaze.losses.cpu().numpy()[order]
        return VideoGaze(
            self,
            vocabulary,
            gaze.num_frames,
            frame[order],
            tile[order],
            token[order],
            losses,
            outside=len(inside) - len(order),
            start=start,
        )


@dataclass(frozen=True, eq=False)
class VideoGaze:
    """The gaze of T consecutive frames of a video in the coordinates of its picture: N tokens, all inside the picture.

    frame: int32 [N], 0..T-1. tile: int32 [N], number in the grid. token: int32 [N], patch id within the tile. They are
    ordered by frame, then tile, then as they were gazed.
    losses: float32 [N], error or predicted loss of the tile's frame after each token, in its maker's units; or None.
    outside: tokens that `TileGrid.join` dropped because they show nothing of the picture.
    start: number in the video of frame 0.
    """

    grid: TileGrid
    vocabulary: PatchVocabulary
    num_frames: int
    frame: np.ndarray
    tile: np.ndarray
    token: np.ndarray
    losses: np.ndarray | None = None
    outside: int = 0
    start: int = 0

    def boxes(self) -> np.ndarray:
        """(top, left, bottom, right) of each token in pixels of the picture, cut off at its edge: int32 [N, 4]."""
        row, column = np.divmod(self.tile, self.grid.columns)
        corner = np.stack([row, column, row, column], axis=1) * self.grid.size
        edge = [self.grid.height, self.grid.width] * 2
        return np.minimum(_patch_boxes(self.vocabulary)[self.token] + corner, edge).astype(np.int32)

    def masks(self) -> list[np.ndarray]:
        """Which patches are gazed, per scale, coarse to fine: bool [T, rows * g, columns * g].

        g is the scale's patches per side; the tiles' grids lie side by side as the tiles do in the picture.
        """
        scale, y, x = self.vocabulary.locate(self.token)
        row, column = np.divmod(self.tile, self.grid.columns)
        masks = []
        for index, g in enumerate(self.vocabulary.grids):
            here = scale == index
            mask = np.zeros((self.num_frames, self.grid.rows * g, self.grid.columns * g), bool)
            mask[self.frame[here], (row * g + y)[here], (column * g + x)[here]] = True
            masks.append(mask)
        return masks

    def ratio(self) -> float:
        """Share gazed at of all patches, of all frames and scales, that lie at least partly in the picture."""
        return len(self.token) / (self.num_frames * int(self.grid.inside(self.vocabulary).sum()))


def gaze_video(
    chunks: Iterable[np.ndarray],
    gaze: Callable[[np.ndarray], Gaze],
    *,
    batch: int = 32,
    size: int = 224,
) -> Iterator[VideoGaze]:
    """Gaze a video of any resolution and duration, chunk by chunk: one VideoGaze for each, in order.

    chunks: uint8 [t, H, W, 3], consecutive frames, t at most 16 (the video's last chunk may be shorter), all of one
        height and width. One chunk is taken at a time, and none is held while the next is made.
    gaze: uint8 [B, t, size, size, 3] to the gaze of these B clips, e.g. `model.gaze` or greedy labels.
    batch: most tiles to `gaze` in one call. All are of one chunk: each sees its place over the chunk's frames.
    size: side of a tile, the frame size of the gaze's vocabulary.

    Memory does not depend on the duration: t*H*W*3 bytes for the chunk, min(batch, tiles)*t*size*size*3 bytes for the
    tiles, what `gaze` takes for them, and about 80 bytes for each token of the chunk. 16 frames of 3840x2160 in batches
    of 32 are 398 MB + 77 MB of pixels.

    Raises ValueError, in one line, for a chunk of another shape or dtype, or a gaze that does not fit its tiles.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 tile, not {batch}")
    from autogaze.gaze import Gaze

    grid, start = None, 0
    for chunk in chunks:
        if chunk.ndim != 4 or not 1 <= len(chunk) <= CHUNK_FRAMES:
            raise ValueError(
                f"a chunk is uint8 [t, H, W, 3] with t from 1 to {CHUNK_FRAMES}, not {chunk.dtype} {list(chunk.shape)}"
            )
        grid = grid or TileGrid(chunk.shape[1], chunk.shape[2], size)
        parts = []
        for first in range(0, grid.count, batch):
            tiles = range(first, min(first + batch, grid.count))
            part = gaze(grid.cut(chunk, tiles))
            if (part.clips, part.num_frames) != (len(tiles), len(chunk)):
                raise ValueError(
                    f"gaze gave {part.clips} clips x {part.num_frames} frames for {len(tiles)} tiles x {len(chunk)}"
                )
            parts.append(part)
        frames = len(chunk)
        del chunk  # while the caller works and the next chunk is made, this one need not be there
        yield grid.join(Gaze.cat(parts), start)
        start += frames


def _patch_boxes(vocabulary: PatchVocabulary) -> np.ndarray:
    """(top, left, bottom, right) of every patch within its frame: int64 [V, 4]."""
    return np.array([vocabulary.box(id) for id in range(vocabulary.size)])
