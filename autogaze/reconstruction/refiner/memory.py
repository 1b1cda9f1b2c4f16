"""What a clip's gaze has shown up to a frame: of every scale its latest pixels, since when, and which was painted last.

The canvas keeps what was painted last. A refiner also sees what lies beneath: fine detail of an earlier frame under a
coarse patch of this one. All of it is copies of 8-bit pixels, so it is exact on every device, in any batch.

A frame is a grid of blocks, the largest squares that no patch of any scale cuts (8 pixels for the default vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autogaze.device import sent
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.canvas import GREY

NEVER = -1


@dataclass(frozen=True)
class Memory:
    """What is known of n clips, each at a frame of its own. G blocks a side.

    t: int64 [n], the frame. pixels: uint8 [n, scales, S, S, 3], as each scale painted them last, 0 where it never did.
    since: int64 [n, scales, G, G], the frame of that, or NEVER. newest: int64 [n, G, G], the scale painted last, or
    NEVER. gazed: int64 [n], patches of frame t.
    """

    t: Tensor
    pixels: Tensor
    since: Tensor
    newest: Tensor
    gazed: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, which: slice | Tensor) -> Memory:
        """Some of them; an int64 index may name one several times."""
        return Memory(*(part[which] for part in self._parts()))

    def put(self, rows: Tensor, other: Memory) -> Memory:
        """The same, with others at rows int64 [m]."""
        parts = zip(self._parts(), other._parts(), strict=True)
        return Memory(*(own.index_copy(0, rows, part) for own, part in parts))

    def at_frame(self, t: int) -> Memory:
        """The same at a later frame, of which nothing is shown yet."""
        return Memory(torch.full_like(self.t, t), self.pixels, self.since, self.newest, torch.zeros_like(self.gazed))

    def canvas(self) -> Tensor:
        """The canvases: uint8 [n, S, S, 3]."""
        scale = _on_pixels(self.newest, self.pixels.shape[2])
        picked = self.pixels.gather(1, scale.clamp(min=0)[:, None, :, :, None].expand(-1, 1, -1, -1, 3))[:, 0]
        return picked.masked_fill(scale[..., None] == NEVER, GREY)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.t, self.pixels, self.since, self.newest, self.gazed


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
        self._tables = {torch.device("cpu"): torch.stack(covering)}

    def _covering(self, device: torch.device) -> Tensor:
        """The token of each scale that covers a block: int64 [scales, G, G]."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def nothing(self, clips: int, t: int, device: torch.device) -> Memory:
        """At frame t of clips of which nothing has been shown."""
        scales, size, blocks = len(self.vocabulary.scales), self.vocabulary.frame_size, self.blocks
        return Memory(
            t=torch.full((clips,), t, device=device),
            pixels=torch.zeros(clips, scales, size, size, 3, dtype=torch.uint8, device=device),
            since=torch.full((clips, scales, blocks, blocks), NEVER, device=device),
            newest=torch.full((clips, blocks, blocks), NEVER, device=device),
            gazed=torch.zeros(clips, dtype=torch.int64, device=device),
        )

    def painted(self, memory: Memory, tokens: Tensor, views: Tensor) -> Memory:
        """The memories after one more patch of their frames, int64 [n].

        views: uint8 [n, scales, S, S, 3], the frames at each scale.
        """
        covered = self._covering(tokens.device) == tokens[:, None, None, None]  # [n, scales, G, G]
        here, scale = covered.max(dim=1)
        shown = _on_pixels(covered.flatten(0, 1), views.shape[2]).view(views.shape[:4])
        return Memory(
            t=memory.t,
            pixels=torch.where(shown[..., None], views, memory.pixels),
            since=torch.where(covered, memory.t[:, None, None, None], memory.since),
            newest=torch.where(here, scale, memory.newest),
            gazed=memory.gazed + 1,
        )

    def after(self, views: Tensor, order: Tensor, of: Sequence[int], at: Sequence[Sequence[int]]) -> Memory:
        """The memories of R rows at their frames `at`, each from the gaze up to its end: row by row.

        views: uint8 [C, T', scales, S, S, 3] of clips, T' > max(at). order: int32 [R, T, V], the place from 1 of each
        patch in its frame's gaze, 0 if not gazed. of: the clip that each row is at.
        """
        device = views.device
        last = 1 + max(max(numbers) for numbers in at)
        order = sent(order[:, :last], device)
        place = order[:, :, self._covering(device)]  # [R, T, scales, G, G]
        frame = torch.arange(last, device=device)[:, None, None]
        since = torch.where(place > 0, frame[..., None], NEVER).cummax(dim=1).values
        latest, scale = place.max(dim=2)  # [R, T, G, G]
        painted = torch.where(latest > 0, frame, NEVER).cummax(dim=1).values
        newest = scale.gather(1, painted.clamp(min=0)).masked_fill(painted == NEVER, NEVER)
        places = [(row, of[row], number) for row, numbers in enumerate(at) for number in numbers]
        rows, clips, t = sent(torch.tensor(places, dtype=torch.int64).T.contiguous(), device)
        since = since[rows, t]
        gazed = (order > 0).sum(dim=2)[rows, t]
        return Memory(t, self._pixels(views, clips, since), since, newest[rows, t], gazed)

    def _pixels(self, views: Tensor, clips: Tensor, since: Tensor) -> Tensor:
        """The pixels uint8 [n, scales, S, S, 3] of each block from the frame of its clip that showed it last."""
        count, frames, scales, size = views.shape[:4]
        blocks = views.view(count, frames, scales, self.blocks, self.block, self.blocks, self.block * 3)
        scale, row, column = torch.meshgrid(
            *(torch.arange(number, device=views.device) for number in since.shape[1:]), indexing="ij"
        )
        picked = blocks[clips[:, None, None, None], since.clamp(min=0), scale, row, :, column]
        picked = picked.masked_fill((since == NEVER)[..., None, None], 0)  # [n, scales, G, G, block, block * 3]
        return picked.transpose(3, 4).reshape(len(clips), scales, size, size, 3)


def _on_pixels(blocks: Tensor, size: int) -> Tensor:
    """A value for each block [n, G, G] to every pixel [n, size, size]."""
    side = size // blocks.shape[1]
    return blocks.repeat_interleave(side, 1).repeat_interleave(side, 2)
