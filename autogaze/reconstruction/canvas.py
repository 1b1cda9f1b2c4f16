"""Canvas: the reconstructor that needs no training. Each gazed patch paints its region at its scale's resolution.

A clip starts as a mid-grey canvas. A gazed patch paints its region with the current frame as seen at the patch's scale
(area-resampled down, nearest neighbour back up). The canvas is kept from frame to frame. The error of a frame is the
mean absolute difference between canvas and frame, over height, width and RGB, as a share of 255.

All of it is integer arithmetic on 8-bit pixels. An error is a sum of absolute differences below 2^53, and so exact in
float64: the same frames give the same numbers on CPU and GPU, in any batch and with any number of threads.

Search is cheap because the patch boundaries of all scales cut the frame into cells (16 x 16 for the default
vocabulary), and a patch always paints whole cells. Pixels are read once a frame, to sum up each cell's error: that of
the canvas, and that after painting it at each scale. The error that a token removes is a sum over its cells, whatever
was painted before it, so choosing tokens reads a few hundred numbers and no pixels.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.precision import exact_products
from autogaze.reconstruction.base import Reconstruction, as_clips

GREY = 128
"""The canvas before any patch is painted: 127.5 rounded half up, as every resampled pixel is."""

_CPU_CHUNK = 2  # clips whose pixels a CPU handles together: few, so that temporaries stay in its cache


class Canvas:
    """The training-free reconstructor (see the module). It has no state: one serves any number of clips."""

    name = "canvas"
    units = "mean absolute difference of RGB, as a share of 255"

    def __init__(self, vocabulary: PatchVocabulary = VOCABULARY) -> None:
        vocabulary.require_whole("the canvas is painted by whole patches")
        self.vocabulary = vocabulary
        definition = f"canvas 1, scales {vocabulary.scales}, patch {vocabulary.patch_size}, grey {GREY}"
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()[:16]
        self._worst = vocabulary.frame_size**2 * 3 * 255
        self._tables: dict[torch.device, _Tables] = {}

    def search(self, frames: torch.Tensor | np.ndarray) -> "CanvasSearch":
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3], on their device.

        Raises ValueError if frames have another shape or dtype.
        """
        frames = as_clips(frames, self.vocabulary)
        return CanvasSearch(frames, self._tables_on(frames.device))

    def reconstruct(
        self, frames: torch.Tensor | np.ndarray, gaze: Gaze, at: Sequence[int] | None = None
    ) -> Reconstruction:
        """Paint uint8 clips [B, T, S, S, 3] by their gaze. at: the F wanted frame numbers, in any order; None: all.

        Returns pixels uint8 [B, F, S, S, 3] and error float32 [B, F] (a share of 255), on the frames' device.
        Raises ValueError if gaze and frames do not fit each other, or a frame number does not exist.
        """
        search = self.search(frames)
        clips, length = search.frames.shape[:2]
        if gaze.vocabulary != self.vocabulary:
            raise ValueError(f"the gaze is of scales {gaze.vocabulary.scales}, the canvas of {self.vocabulary.scales}")
        if (gaze.clips, gaze.num_frames) != (clips, length):
            raise ValueError(f"a gaze of {gaze.clips} clips x {gaze.num_frames} frames for {clips} x {length} frames")
        wanted = list(range(length)) if at is None else list(at)
        if any(not 0 <= t < length for t in wanted):
            raise ValueError(f"at {wanted}: frame numbers lie in 0..{length - 1}")

        order = painting_order(gaze).to(search.frames.device)
        pixels = search.frames.new_empty(clips, len(wanted), *search.frames.shape[2:])
        errors = torch.zeros(clips, len(wanted), dtype=torch.float64, device=pixels.device)
        for t in range(max(wanted, default=-1) + 1):
            search.paint(t, order[:, t])
            if t in wanted:
                error = search.canvas_errors(t).sum(dim=1)
                for f in (f for f, other in enumerate(wanted) if other == t):
                    pixels[:, f] = search.canvas.view_as(pixels[:, f])
                    errors[:, f] = error
        return Reconstruction(pixels, self.loss(errors).to(pixels.device))

    def views(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [n, S, S, 3] as each scale paints them: uint8 [n, scales, S, S, 3]. The finest is the frame."""
        tables = self._tables_on(frames.device)
        flat = frames.reshape(*frames.shape[:2], -1)
        with exact_products(frames.device):
            values = flat.to(torch.float32)
            coarse = [scale.up(scale.down(values)) for scale in tables.scales]
        rows = torch.stack([*coarse, flat], dim=1)
        return rows.view(*rows.shape[:3], -1, 3)

    def loss(self, errors: torch.Tensor) -> torch.Tensor:
        """Sums of absolute differences as shares of the largest possible: float32, on the CPU."""
        # On the CPU, which divides exactly; a GPU may multiply by the reciprocal, and differ in the last bit.
        return (errors.cpu().to(torch.float64) / self._worst).to(torch.float32)

    def limit(self, threshold: float) -> int:
        """The largest sum of absolute differences whose float32 loss is at or under float32(threshold)."""
        bound = np.float32(threshold)
        if bound >= 1:
            return self._worst
        limit = min(self._worst, int(np.nextafter(bound, np.float32(np.inf)).astype(np.float64) * self._worst) + 1)
        while np.float32(limit / self._worst) > bound:
            limit -= 1
        return limit

    def _tables_on(self, device: torch.device) -> "_Tables":
        if device not in self._tables:
            self._tables[device] = _Tables.of(self.vocabulary, device)
        return self._tables[device]


class CanvasSearch:
    """A search on canvases (see autogaze.reconstruction.base.Search).

    Errors are sums of absolute differences over a frame: whole numbers in float64.
    """

    def __init__(self, frames: torch.Tensor, tables: "_Tables") -> None:
        clips, _, size = frames.shape[:3]
        device = frames.device
        self.frames = frames
        self.canvas = torch.full((clips, size, size * 3), GREY, dtype=torch.uint8, device=device)
        self._tables = tables
        self._t = -1
        # 1, 2, ... for the tokens of the open frame in the order each clip took them, 0 for the others.
        self._order = torch.zeros(clips, len(tables.covers), dtype=torch.int32, device=device)
        self._taken = 0
        # A frame at each scale but the finest, which is the frame itself; `_seen` is the frame number they belong to.
        self._views = [torch.empty_like(self.canvas[:, : scale.scale]) for scale in tables.scales]
        self._seen = -1
        # Of the clips still held: their numbers, the error in each cell, and what errors() prepares.
        self._clips = torch.arange(clips, device=device)
        self._cells = torch.empty(0, dtype=torch.float64, device=device)
        self._painted: torch.Tensor | None = None
        self._left = self._cells

    def open(self, t: int) -> torch.Tensor:
        """Open frame t, the next one. Returns its error without a token of its own: float64 [B]."""
        if t != self._t + 1:
            raise ValueError(f"frames are opened one after another: {self._t + 1} comes next, not {t}")
        if self._taken:
            self.paint(self._t, self._order)
            self._order.zero_()
        self._t, self._taken = t, 0
        self._cells = self.canvas_errors(t)
        self._clips = torch.arange(len(self._cells), device=self._cells.device)
        self._painted = None
        return self._cells.sum(dim=1)

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the clips at these places among those held: int64 [n]."""
        self._clips, self._cells = self._clips[places], self._cells[places]
        if self._painted is not None:
            self._painted, self._left = self._painted[places], self._left[places]

    def errors(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Errors of the open frame with each token as its next: float64 [n, V], infinite if taken already.

        tokens: int64 [n, M], to try only these; the errors are then [n, M].
        """
        if self._painted is None:  # most frames of a video need no token, so this waits until one does
            self._painted = self._painted_errors(self._t, self._clips)
            self._left = self._tables.left_by_token(self._painted)
        # The cells of a token lose the error they have, and get the error that its scale leaves.
        change = torch.addmm(self._left, self._cells, self._tables.covers.T, alpha=-1)
        errors = change.add_(self._cells.sum(dim=1, keepdim=True))
        return errors if tokens is None else errors.gather(1, tokens)

    def take(self, tokens: torch.Tensor) -> None:
        """Each clip held takes its token: int64 [n]."""
        if self._painted is None:
            raise ValueError("take tokens after asking for their errors")
        rows = torch.arange(len(tokens), device=tokens.device)
        painted = self._painted[rows, self._tables.scale_of[tokens]]
        self._cells = torch.addcmul(self._cells, self._tables.covers[tokens], painted - self._cells)
        self._left[rows, tokens] = math.inf
        self._taken += 1
        self._order[self._clips, tokens] = self._taken

    def reopen(self, clips: torch.Tensor) -> torch.Tensor:
        """Open the frame again with these clips, int64 [n], which take its tokens back. Returns their error [n]."""
        self._order[clips] = 0
        self._clips = clips
        self._cells = self.canvas_errors(self._t)[clips]
        self._painted = None
        return self._cells.sum(dim=1)

    # -- pixels --------------------------------------------------------------------------------------------------

    def canvas_errors(self, t: int) -> torch.Tensor:
        """Error of the canvas against frame t in each cell: float64 [B, cells]."""
        cells = self._tables.cells
        with exact_products(self.frames.device):
            frames = self._frames(t)
            return torch.cat([cells.sums(self.canvas[p], frames[p]) for p in self._parts(len(frames))])

    def paint(self, t: int, order: torch.Tensor) -> None:
        """Paint frame t's tokens. order: int32 [B, V], rising from 1 in painting order, 0 where not gazed."""
        touched = order.any(dim=1).nonzero().squeeze(1)
        for part in self._parts(len(touched)):
            clips = touched[part]
            frame = self._frames(t).index_select(0, clips)
            if self._seen == t:
                views = [view.index_select(0, clips) for view in self._views]
            else:
                with exact_products(frame.device):
                    views = self._see(frame)
            latest, scale = order[clips][:, self._tables.covering].max(dim=1)
            scale = scale.masked_fill(latest == 0, -1)
            canvas = self.canvas.index_select(0, clips)
            for index in scale.unique().tolist():
                if index >= 0:
                    picture = self._tables.scales[index].up(views[index]) if index < len(views) else frame
                    mask = self._tables.cells.spread((scale == index).to(torch.uint8).mul_(255))
                    # Where the mask is 255 the picture, where 0 the canvas: 30 times faster than torch.where on bytes.
                    canvas ^= (canvas ^ picture) & mask
            _put(self.canvas, clips, canvas)

    def _painted_errors(self, t: int, clips: torch.Tensor) -> torch.Tensor:
        """Error of frame t in each cell, were it painted at each scale: float64 [n, scales, cells]."""
        cells = self._tables.cells
        painted = torch.zeros(len(clips), len(self._views) + 1, cells.count, dtype=torch.float64, device=clips.device)
        with exact_products(self.frames.device):
            for part in self._parts(len(clips)):
                frame = self._frames(t).index_select(0, clips[part])
                for index, view in enumerate(self._see(frame)):
                    _put(self._views[index], clips[part], view)
                    painted[part, index] = cells.sums(self._tables.scales[index].up(view), frame)
        self._seen = t
        return painted

    def _see(self, frame: torch.Tensor) -> list[torch.Tensor]:
        values = frame.to(torch.float32)
        return [scale.down(values) for scale in self._tables.scales]

    def _frames(self, t: int) -> torch.Tensor:
        return self.frames[:, t].reshape(self.canvas.shape)

    def _parts(self, count: int) -> list[slice]:
        size = _CPU_CHUNK if self.frames.device.type == "cpu" else max(count, 1)
        return [slice(start, start + size) for start in range(0, count, size)]


class _Scale:
    """One scale of frames held as rows of bytes [n, S, S * 3]: down to it by area, back up by nearest neighbour."""

    def __init__(self, scale: int, size: int, device: torch.device) -> None:
        self.scale = scale
        # Every `block` pixels of the frame become `out` pixels of the scale. In units of 1 / out of a frame pixel, all
        # overlaps of the two are whole numbers, and the overlaps of one scale pixel add up to `block`.
        self.blocks = math.gcd(size, scale)
        block, out = size // self.blocks, scale // self.blocks
        i, y = torch.arange(out)[:, None], torch.arange(block)
        down = (torch.minimum((i + 1) * block, (y + 1) * out) - torch.maximum(i * block, y * out)).clamp(min=0)
        up = y * out // block
        # A pixel is a sum of at most 255 * block^2 over block^2, so it lies on a rounding boundary or at least half a
        # step of 1 / block^2 under it. Adding a quarter step moves all of them at least that far from any boundary,
        # and up to block 64 float32 arithmetic errs by less.
        dtype = torch.float32 if block <= 64 else torch.float64
        self.area = block * block
        self.down_rows = down.to(device, dtype)
        # Along a row, down and up again in one product, for the three colours of `wide` blocks: tiny ones are slow.
        wide = next(
            n for n in range(1, self.blocks + 1) if self.blocks % n == 0 and (n * block >= 4 or n == self.blocks)
        )
        across = torch.kron(torch.eye(wide), torch.kron(down[up].T.contiguous(), torch.eye(3)))
        self.down_up_columns = across.to(device, dtype)
        self.row_of = (torch.arange(size) * scale // size).to(device)

    def down(self, values: torch.Tensor) -> torch.Tensor:
        """Float frames [n, S, S * 3] to uint8 [n, scale, S * 3]: at the scale's height, already wide as the frame."""
        count, size, width = values.shape
        rows = self.down_rows @ values.to(self.down_rows.dtype).view(count, self.blocks, size // self.blocks, width)
        sums = rows.view(-1, len(self.down_up_columns)) @ self.down_up_columns
        rounded = sums.mul_(1 / self.area).add_(0.5 + 0.25 / self.area).to(torch.int32)  # half up
        return rounded.to(torch.uint8).view(count, self.scale, width)  # by way of int32: twice as fast

    def up(self, view: torch.Tensor) -> torch.Tensor:
        """uint8 [n, scale, S * 3] from `down` to uint8 [n, S, S * 3]."""
        return view.index_select(1, self.row_of)


class _Cells:
    """The rectangles that the patch boundaries of all scales cut a frame into, numbered row by row."""

    def __init__(self, edges: list[int], device: torch.device) -> None:
        self.per_side = len(edges) - 1
        self.count = self.per_side**2
        spans = torch.tensor(edges).diff()
        cell_of = torch.repeat_interleave(torch.arange(self.per_side), spans)
        self.row_of = cell_of.to(device)
        self.column_of = cell_of.repeat_interleave(3).to(device)
        # Rows are first summed in bands that no boundary crosses; products with 0 and 1 do the rest.
        self.band = math.gcd(*edges)
        largest = self.band * int(spans.max()) * 3 * 255
        one_hot = torch.nn.functional.one_hot(cell_of, self.per_side)
        dtype = torch.float32 if largest < 2**24 else torch.float64
        self.columns = one_hot.repeat_interleave(3, dim=0).to(device, dtype)
        self.rows = one_hot[:: self.band].T.to(device, torch.float64)

    def sums(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Sum of absolute differences of two uint8 [n, S, S * 3] in each cell: float64 [n, cells], whole numbers."""
        count, size, width = left.shape
        difference = torch.maximum(left, right).sub_(torch.minimum(left, right))
        bands = difference.view(count, size // self.band, self.band, width).sum(dim=2, dtype=torch.int32)
        columns = bands.to(self.columns.dtype) @ self.columns
        return (self.rows @ columns.to(torch.float64)).flatten(1)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """A number for each cell [n, cells] to every byte of the cell [n, S, S * 3]."""
        grid = values.view(-1, self.per_side, self.per_side)
        return grid.index_select(2, self.column_of).index_select(1, self.row_of)


@dataclass(frozen=True)
class _Tables:
    """What depends on the vocabulary alone, on one device."""

    cells: _Cells
    scales: list[_Scale]
    """All but the finest."""
    scale_of: torch.Tensor
    """int64 [V]: scale index of each token."""
    covering: torch.Tensor
    """int64 [scales, cells]: the token of each scale that covers a cell."""
    covers: torch.Tensor
    """float64 [V, cells]: 1 where a token covers a cell."""
    counts: tuple[int, ...]
    """Tokens of each scale."""

    @classmethod
    def of(cls, vocabulary: PatchVocabulary, device: torch.device) -> "_Tables":
        scales = range(len(vocabulary.scales))
        edges = sorted({edge for index in scales for edge in vocabulary.edges(index)})
        covering = []
        for index, (offset, grid) in enumerate(zip(vocabulary.offsets, vocabulary.grids, strict=True)):
            of_cell = np.searchsorted(vocabulary.edges(index), edges[:-1], side="right") - 1
            covering.append(torch.from_numpy(offset + of_cell[:, None] * grid + of_cell).flatten())
        covers = torch.zeros(vocabulary.size, len(covering[0]), dtype=torch.float64)
        for tokens in covering:
            covers[tokens, torch.arange(len(tokens))] = 1
        return cls(
            cells=_Cells(edges, device),
            scales=[_Scale(scale, vocabulary.frame_size, device) for scale in vocabulary.scales[:-1]],
            scale_of=vocabulary.locate(torch.arange(vocabulary.size))[0].to(device),
            covering=torch.stack(covering).to(device),
            covers=covers.to(device),
            counts=vocabulary.counts,
        )

    def left_by_token(self, painted: torch.Tensor) -> torch.Tensor:
        """Error in the cells of each token once it is painted: [n, scales, cells] to [n, V]."""
        tokens = self.covers.split(self.counts)
        return torch.cat([painted[:, index] @ covers.T for index, covers in enumerate(tokens)], dim=1)


def _put(target: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """target[places] = values. On a CPU row by row: torch copies a whole row 20 times faster than it scatters bytes."""
    if target.device.type == "cpu":
        for place, value in zip(places.tolist(), values, strict=True):
            target[place] = value
    else:
        target[places] = values


def painting_order(gaze: Gaze) -> torch.Tensor:
    """int32 [B, T, V]: the place, from 1, of each token in its frame (the last, if repeated); 0 if not gazed."""
    frames, size = gaze.lengths.numel(), gaze.vocabulary.size
    lengths = gaze.lengths.reshape(-1)
    frame = torch.repeat_interleave(torch.arange(frames, device=lengths.device), lengths, output_size=len(gaze.tokens))
    place = torch.arange(1, len(frame) + 1, device=lengths.device) - (lengths.cumsum(0) - lengths)[frame]
    order = torch.zeros(frames * size, dtype=torch.int32, device=lengths.device)
    order.scatter_reduce_(0, frame * size + gaze.tokens, place.to(torch.int32), reduce="amax")
    return order.view(*gaze.lengths.shape, size)
