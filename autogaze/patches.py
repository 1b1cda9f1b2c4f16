"""The multi-scale patch vocabulary: which patch of a frame a token id stands for, and where the patch is.

A square frame is seen at several scales. Each scale is cut into patches of the same size in its own pixels, so a patch
of a coarse scale covers a larger region of the frame. Ids run from the coarsest scale to the finest, row by row: the
released scales 32, 64, 112 and 224 with patches of 16 pixels give 4 + 16 + 49 + 196 = 265 ids.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:  # what only counts patches, such as a command that is refused, does without torch's seconds
    import torch

Ids = TypeVar("Ids", int, np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class PatchVocabulary:
    """The patches of a frame at every scale, numbered.

    scales: side lengths in pixels, strictly increasing, each at least patch_size. The largest is the side of the frame;
    the others need not divide it (64 does not divide 224). Where a scale is no multiple of patch_size, as SigLIP
    so400m's 384 of 14, it has as many patches as fit, from the top left, and its last pixels are in none.

    Raises ValueError for scales that cannot be cut into patches.
    """

    scales: tuple[int, ...] = (32, 64, 112, 224)
    patch_size: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(int(scale) for scale in self.scales))
        object.__setattr__(self, "patch_size", int(self.patch_size))
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, not {self.patch_size}")
        if not self.scales:
            raise ValueError("scales is empty: name at least one side length, e.g. (32, 64, 112, 224)")
        for scale in self.scales:
            if scale < self.patch_size:
                raise ValueError(f"scale {scale} is smaller than patch_size {self.patch_size}, and holds no patch")
        if any(left >= right for left, right in pairwise(self.scales)):
            raise ValueError(f"scales must be strictly increasing, not {self.scales}")

    @property
    def grids(self) -> tuple[int, ...]:
        """Patches per side of each scale."""
        return tuple(scale // self.patch_size for scale in self.scales)

    def require_whole(self, what: str) -> None:
        """Raise ValueError, naming `what` needs it, unless every pixel is in a patch of each scale."""
        for scale in self.scales:
            if scale % self.patch_size:
                raise ValueError(f"scale {scale} is not a positive multiple of patch_size {self.patch_size}; {what}")

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches of each scale."""
        return tuple(grid * grid for grid in self.grids)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First id of each scale."""
        return tuple(accumulate(self.counts[:-1], initial=0))

    @cached_property
    def size(self) -> int:
        """Number of patches, and so of ids that stand for a patch."""
        return sum(self.counts)

    @property
    def eos(self) -> int:
        """The id after the last patch: end of frame, and padding."""
        return self.size

    @property
    def frame_size(self) -> int:
        """Side of the frame in pixels: the largest scale."""
        return self.scales[-1]

    def locate(self, ids: Ids) -> tuple[Ids, Ids, Ids]:
        """(scale_index, row, col) of ids, as the same kind (int, array or tensor) and shape.

        Raises ValueError if an id stands for no patch.
        """
        if isinstance(ids, int | np.integer):
            self._check_range(1, ids)
            scale = bisect.bisect_right(self.offsets, ids) - 1
            within = ids - self.offsets[scale]
            grid = self.grids[scale]
        elif isinstance(ids, np.ndarray):
            self._check_range(ids.size, ids)
            scale = np.searchsorted(self.offsets, ids, side="right") - 1
            within = ids - np.asarray(self.offsets)[scale]
            grid = np.asarray(self.grids)[scale]
        else:
            import torch

            from autogaze.device import constant

            self._check_range(ids.numel(), ids)
            offsets, grids = constant(self.offsets, ids.device), constant(self.grids, ids.device)
            scale = torch.bucketize(ids, offsets, right=True) - 1
            within, grid = ids - offsets[scale], grids[scale]
        return scale, within // grid, within % grid

    def id(self, scale_index: int, row: int, col: int) -> int:
        """The id of the patch at (row, col) of a scale. Raises ValueError if there is none."""
        if not 0 <= scale_index < len(self.scales):
            raise ValueError(f"scale_index {scale_index} is outside 0..{len(self.scales) - 1}")
        grid = self.grids[scale_index]
        if not (0 <= row < grid and 0 <= col < grid):
            raise ValueError(
                f"row {row}, col {col} is outside the {grid}x{grid} grid of scale {self.scales[scale_index]}"
            )
        return self.offsets[scale_index] + row * grid + col

    def edges(self, scale_index: int) -> list[int]:
        """Pixel positions, along one axis of the frame, at which a scale's patches begin, and the last one's end.

        Frame pixel y belongs to the patch row that holds scale pixel floor(y * scale / frame_size), so the rows of
        pixels r*patch_size..(r+1)*patch_size of the scale begin at the ceiling of r*patch_size * frame_size / scale.
        """
        scale = self.scales[scale_index]
        return [-(-row * self.patch_size * self.frame_size // scale) for row in range(self.grids[scale_index] + 1)]

    def box(self, id: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of a patch in pixels of the frame, bottom and right exclusive."""
        scale_index, row, col = self.locate(id)
        edges = self.edges(scale_index)
        return edges[row], edges[col], edges[row + 1], edges[col + 1]

    def cap(self, ratio: float) -> int:
        """The most tokens of a frame at a gazing ratio in (0, 1]: trunc(ratio * size) in float32, at least 1.

        See docs/method.md, section 'Limits of a frame'.
        """
        if not 0 < ratio <= 1:
            raise ValueError(f"a gazing ratio lies in (0, 1], not {ratio}")
        return max(1, int(np.float32(ratio) * np.float32(self.size)))

    def masks(self, tokens: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        """Which patches are gazed, per scale: the reference's `gazing_mask`.

        tokens: int64 [N], the ids of all frames one after another. lengths: int64 [...], tokens of each frame, in that
        order. Returns one uint8 [..., count] of 0 and 1 for each scale, coarse to fine.
        """
        import torch

        frames = lengths.numel()
        frame = torch.repeat_interleave(torch.arange(frames, device=tokens.device), lengths.reshape(-1))
        mask = torch.zeros(frames, self.size, dtype=torch.uint8, device=tokens.device)
        mask[frame, tokens] = 1
        return list(mask.view(*lengths.shape, self.size).split(self.counts, dim=-1))

    def _check_range(self, count: int, ids: Ids) -> None:
        lowest, highest = (ids, ids) if isinstance(ids, int) else (ids.min(), ids.max()) if count else (0, 0)
        if lowest < 0 or highest >= self.size:
            raise ValueError(f"patch ids lie in 0..{self.size - 1}; found {int(lowest)}..{int(highest)}")


VOCABULARY = PatchVocabulary()
