"""What a clip's gaze has shown up to a frame: of every scale its latest pixels, since when, and which was painted last.

The canvas keeps what was painted last. A refiner also sees what lies beneath: fine detail of an earlier frame under a
coarse patch of this one. All of it is copies of 8-bit pixels, so it is exact on every device.

A frame is a grid of blocks, the largest squares that no patch of any scale cuts (8 pixels for the default vocabulary).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.canvas import GREY

NEVER = -1


@dataclass(frozen=True)
class Memory:
    """What is known of one clip at frame t. G blocks a side.

    pixels: uint8 [scales, S, S, 3], as each scale painted them last, 0 where it never did. since: int64 [scales, G, G],
    the frame of that, or NEVER. newest: int64 [G, G], the scale painted last, or NEVER. gazed: patches of frame t.
    """

    t: int
    pixels: Tensor
    since: Tensor
    newest: Tensor
    gazed: int

    def at_frame(self, t: int) -> Memory:
        """The same at a later frame, of which nothing is shown yet."""
        return replace(self, t=t, gazed=0)

    def canvas(self) -> Tensor:
        """The canvas: uint8 [S, S, 3]."""
        scale = self._on_pixels(self.newest)
        picked = self.pixels.gather(0, scale.clamp(min=0)[None, :, :, None].expand(1, -1, -1, 3))[0]
        return picked.masked_fill(scale[:, :, None] == NEVER, GREY)

    def _on_pixels(self, blocks: Tensor) -> Tensor:
        """A number for each block [G, G] to every pixel [S, S]."""
        side = self.pixels.shape[1] // len(blocks)
        return blocks.repeat_interleave(side, 0).repeat_interleave(side, 1)


class Painter:
    """Follows the gaze of clips of a vocabulary. block: side of a block, in pixels."""

    def __init__(self, vocabulary: PatchVocabulary, block: int) -> None:
        self.vocabulary, self.block = vocabulary, block
        self.blocks = vocabulary.frame_size // block
        corners = np.arange(self.blocks) * block
        covering = []  # the token of each scale that covers a block
        for index, (offset, grid) in enumerate(zip(vocabulary.offsets, vocabulary.grids, strict=True)):
            place = np.searchsorted(vocabulary.edges(index), corners, side="right") - 1
            covering.append(torch.from_numpy(offset + place[:, None] * grid + place))
        self._covering = torch.stack(covering)

    def nothing(self, t: int, device: torch.device) -> Memory:
        """At frame t of a clip of which nothing has been shown."""
        scales, size = len(self.vocabulary.scales), self.vocabulary.frame_size
        return Memory(
            t=t,
            pixels=torch.zeros(scales, size, size, 3, dtype=torch.uint8, device=device),
            since=torch.full((scales, self.blocks, self.blocks), NEVER, device=device),
            newest=torch.full((self.blocks, self.blocks), NEVER, device=device),
            gazed=0,
        )

    def painted(self, memory: Memory, token: int, views: Tensor) -> Memory:
        """The memory after one more patch of its frame. views: uint8 [scales, S, S, 3], the frame at each scale."""
        covered = self._covering == token
        scale = int(covered.any(dim=2).any(dim=1).nonzero())
        rows, columns = (covered[scale].any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        blocks = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        region = tuple(slice(part.start * self.block, part.stop * self.block) for part in blocks)
        pixels, since, newest = memory.pixels.clone(), memory.since.clone(), memory.newest.clone()
        pixels[scale][region] = views[scale][region]
        since[scale][blocks] = memory.t
        newest[blocks] = scale
        return replace(memory, pixels=pixels, since=since, newest=newest, gazed=memory.gazed + 1)

    def after(self, views: Tensor, order: Tensor, at: list[int]) -> list[Memory]:
        """The memories of a clip at its frames `at`, each from the gaze up to its end.

        views: uint8 [T', scales, S, S, 3], with T' > max(at). order: int32 [T, V], the place from 1 of each patch in
        its frame's gaze, 0 if not gazed.
        """
        device = views.device
        order, covering = order.to(device), self._covering.to(device)
        blank = self.nothing(0, device)
        since, newest, found = blank.since, blank.newest, {}
        for t in range(max(at) + 1):
            place, scale = order[t][covering].max(dim=0)
            since = torch.where(order[t][covering] > 0, t, since)
            newest = torch.where(place > 0, scale, newest)
            if t in at:
                gazed = int((order[t] > 0).sum())
                found[t] = Memory(t, self._pixels(views, since), since, newest, gazed)
        return [found[t] for t in at]

    def _pixels(self, views: Tensor, since: Tensor) -> Tensor:
        """The pixels uint8 [scales, S, S, 3] of each block from the frame that showed it last."""
        frames, scales, size = views.shape[:3]
        blocks = views.view(frames, scales, self.blocks, self.block, self.blocks, self.block * 3)
        scale, row, column = torch.meshgrid(
            *(torch.arange(count, device=views.device) for count in since.shape), indexing="ij"
        )
        picked = blocks[since.clamp(min=0), scale, row, :, column]  # [scales, G, G, block, block * 3]
        picked = picked.masked_fill((since == NEVER)[..., None, None], 0)
        return picked.transpose(2, 3).reshape(scales, size, size, 3)
