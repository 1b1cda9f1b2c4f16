"""Canvas: the reconstructor that needs no training. Each gazed patch paints its region at its scale's resolution.

A clip starts as a mid-grey canvas. A gazed patch paints its region with the current frame as seen at the patch's scale
(area-resampled down, nearest neighbour back up); the canvas stays as it is from frame to frame. The error of a frame is
the mean absolute difference between canvas and frame, over height, width and RGB, as a share of 255.

All of it is integer arithmetic on 8-bit pixels: an error is a sum of absolute differences, below 2^53 and so exact in
float64. The same frames give the same numbers on a CPU or GPU, in any batch and with any number of threads.

Why search is cheap: the patch boundaries of all scales cut the frame into cells (16 x 16 for the default vocabulary),
and a patch always paints whole cells. So the pixels are visited once a frame: for each cell, the error of the canvas,
and the error it would have if painted at each scale. What a token would remove is a sum over its cells, whatever was
painted before it, so choosing tokens touches a few hundred numbers and no pixels.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction import Reconstruction, as_clips

GREY = 128
"""The canvas before anything was gazed: 127.5 rounded half up, as every resampled pixel is."""

# Clips whose pixels are handled together. On a CPU few, so that temporaries stay in the cache (3x faster than 32 clips).
_CPU_CHUNK = 2


class Canvas:
    """The training-free reconstructor (see the module's text). It has no state; one serves any number of clips."""

    name = "canvas"
    units = "mean absolute difference of RGB, as a share of 255"

    def __init__(self, vocabulary: PatchVocabulary = VOCABULARY) -> None:
        self.vocabulary = vocabulary
        definition = f"canvas 1, scales {vocabulary.scales}, patch {vocabulary.patch_size}, grey {GREY}"
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()[:16]
        self._worst = vocabulary.frame_size**2 * 3 * 255
        self._tables: dict[torch.device, _Tables] = {}

    def search(self, frames: torch.Tensor | np.ndarray) -> "CanvasSearch":
        """Begin to choose the gaze of uint8 clips [B, T, S, S, 3], on the device they are on.

        Raises ValueError if frames have another shape or dtype.
        """
        frames = as_clips(frames, self.vocabulary)
        if frames.device not in self._tables:
            self._tables[frames.device] = _Tables.of(self.vocabulary, frames.device)
        return CanvasSearch(frames, self._tables[frames.device])

    def reconstruct(
        self, frames: torch.Tensor | np.ndarray, gaze: Gaze, at: Sequence[int] | None = None
    ) -> Reconstruction:
        """Paint uint8 clips [B, T, S, S, 3] by their gaze. at: the F frame numbers wanted, in any order; None: all.

        Returns pixels uint8 [B, F, S, S, 3] and error float32 [B, F] (a share of 255), on the frames' device.
        Raises ValueError if gaze and frames do not belong together, or a frame number does not exist.
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

        order = _painting_order(gaze).to(search.frames.device)
        pixels = search.frames.new_empty(clips, len(wanted), *search.frames.shape[2:])
        errors = torch.zeros(clips, len(wanted), dtype=torch.float64, device=pixels.device)
        for t in range(max(wanted, default=-1) + 1):
            search.paint(t, order[:, t])
            if t in wanted:
                error = search.canvas_errors(t).sum(dim=(1, 2))
                for f in (f for f, other in enumerate(wanted) if other == t):
                    pixels[:, f] = search.canvas.view_as(pixels[:, f])
                    errors[:, f] = error
        return Reconstruction(pixels, self.loss(errors).to(pixels.device))

    def loss(self, errors: torch.Tensor) -> torch.Tensor:
        """Sums of absolute differences as shares of the largest possible: float32, on the CPU."""
        # On the CPU because it divides as IEEE says; a GPU may multiply by the reciprocal and differ in the last bit.
        return (errors.cpu().to(torch.float64) / self._worst).to(torch.float32)

    def limit(self, threshold: float) -> int:
        """The largest sum of absolute differences whose float32 loss is at or under float32(threshold)."""
        bound = np.float32(threshold)
        limit = min(self._worst, int(np.nextafter(bound, np.float32(np.inf)).astype(np.float64) * self._worst) + 1)
        while np.float32(limit / self._worst) > bound:
            limit -= 1
        return limit


class CanvasSearch:
    """Clips being gazed on canvas: `autogaze.reconstruction.Search`.

    Errors are sums of absolute differences over a frame: whole numbers in float64.
    """

    def __init__(self, frames: torch.Tensor, tables: "_Tables") -> None:
        clips, _, size = frames.shape[:3]
        self.frames = frames
        self.canvas = torch.full((clips, size, size * 3), GREY, dtype=torch.uint8, device=frames.device)
        self._tables = tables
        self._t = -1
        # 1, 2, ... for the tokens of the open frame in the order each clip took them; 0 for the others.
        self._order = torch.zeros(clips, tables.covers.shape[0], dtype=torch.int32, device=frames.device)
        self._taken = 0

    def open(self, t: int) -> torch.Tensor:
        """Turn to frame t, the one after the last opened. Returns its error with no token of its own: float64 [B]."""
        if t != self._t + 1:
            raise ValueError(f"frames are opened one after another: {self._t + 1} comes next, not {t}")
        if self._taken:
            self.paint(self._t, self._order)
            self._order.zero_()
        self._t, self._taken = t, 0
        self._cells = self.canvas_errors(t).flatten(1)
        self._clips = torch.arange(len(self._cells), device=self._cells.device)
        self._painted: torch.Tensor | None = None
        return self._cells.sum(dim=1)

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the clips at these places among those held: int64 [n]."""
        self._clips, self._cells = self._clips[places], self._cells[places]
        if self._painted is not None:
            self._painted, self._left = self._painted[places], self._left[places]

    def errors(self) -> torch.Tensor:
        """Error of the open frame for each token as the next: float64 [n, V], infinite where already taken."""
        if self._painted is None:  # most frames of a video need no token, so this waits until one does
            self._painted = self._painted_errors(self._clips)
            self._left = torch.einsum("nsc,vsc->nv", self._painted, self._tables.covers_at_scale)
        # The cells of a token lose their present error and get that of its scale.
        change = torch.addmm(self._left, self._cells, self._tables.covers.T, alpha=-1)
        return change.add_(self._cells.sum(dim=1, keepdim=True))

    def take(self, tokens: torch.Tensor) -> None:
        """Each clip held takes its token: int64 [n]."""
        assert self._painted is not None, "take comes after errors"
        rows = torch.arange(len(tokens), device=tokens.device)
        painted = self._painted[rows, self._tables.scale_of[tokens]]
        self._cells = torch.addcmul(self._cells, self._tables.covers[tokens], painted - self._cells)
        self._left[rows, tokens] = math.inf
        self._taken += 1
        self._order[self._clips, tokens] = self._taken
