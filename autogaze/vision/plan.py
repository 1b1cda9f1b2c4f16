"""The plan of an encoding: which gazed patch becomes which row, and which places of the frame each shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


@dataclass(frozen=True, eq=False)
class Plan:
    """M gazed patches of B clips of T frames, and the N rows that they and the frames' own tokens take in the network.

    Rows are packed: frame after frame of clip after clip, no padding. In each frame that has patches, `prefix` rows
    (class token, registers) come first; a frame without patches has no rows at all.

    clip, frame, id: int64 [M], in the order of the gaze. frame counts from `start`.
    lengths: int64 [B, T], patches of each frame. All on the CPU.
    start: number of the first frame, where frames came before (a stream).
    """

    clip: Tensor
    frame: Tensor
    id: Tensor
    lengths: Tensor
    prefix: int
    vocabulary: PatchVocabulary
    start: int = 0

    @classmethod
    def of(cls, gaze: Gaze, prefix: int, start: int = 0) -> Plan:
        """The plan of a gaze, for a network that adds `prefix` tokens to each frame."""
        lengths = gaze.lengths.cpu()
        clips, frames = lengths.shape
        owner = torch.repeat_interleave(torch.arange(clips * frames), lengths.reshape(-1))
        clip, frame = owner // max(frames, 1), owner % max(frames, 1) + start
        return cls(clip, frame, gaze.tokens.cpu(), lengths, prefix, gaze.vocabulary, start)

    @property
    def tokens(self) -> int:
        """M."""
        return len(self.id)

    @cached_property
    def place(self) -> Tensor:
        """Which of all B * T frames each patch is of: int64 [M]."""
        return self.clip * self.lengths.shape[1] + self.frame - self.start

    @cached_property
    def rows_per_frame(self) -> Tensor:
        """int64 [B * T]."""
        lengths = self.lengths.reshape(-1)
        return lengths + self.prefix * (lengths > 0)

    @cached_property
    def ends(self) -> Tensor:
        """The row after the last of each frame: int64 [B * T]; the last is N."""
        return self.rows_per_frame.cumsum(0)

    @property
    def rows(self) -> int:
        """N."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def row(self) -> Tensor:
        """The row of each patch: int64 [M], rising."""
        if not self.prefix:
            return torch.arange(self.tokens)
        return torch.arange(self.tokens) + self.prefix * (self.lengths.reshape(-1) > 0).cumsum(0)[self.place]

    @cached_property
    def prefix_rows(self) -> Tensor:
        """The rows of the frames' own tokens: int64 [frames with patches, prefix]."""
        starts = (self.ends - self.rows_per_frame)[self.lengths.reshape(-1) > 0]
        return starts[:, None] + torch.arange(self.prefix)

    @cached_property
    def located(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale index, row and column of each patch on its scale's grid: int64 [M] each."""
        return self.vocabulary.locate(self.id)

    def newest(self) -> Tensor:
        """Which patch is seen at each place of the finest grid after each frame: int64 [B, T, g * g]; -1: none yet.

        The newest that covers the place; of one frame's, the finest (of the same patch twice, the later).
        """
        clips, frames = self.lengths.shape
        places = covered_places(self.vocabulary)[self.id]
        real = places >= 0
        count, scales = max(self.tokens, 1), len(self.vocabulary.scales)
        scale = self.located[0]
        # One number that grows with frame, then scale, then place in the gaze: the largest is the newest.
        code = ((self.frame - self.start) * scales + scale) * count + torch.arange(self.tokens)
        size = self.vocabulary.counts[-1]
        flat = (self.place[:, None] * size + places)[real]
        seen = torch.full((clips * frames * size,), -1)
        seen.scatter_reduce_(0, flat, code[:, None].expand_as(places)[real], reduce="amax")
        newest = seen.view(clips, frames, size).cummax(dim=1).values
        return torch.where(newest >= 0, newest % count, -1)


@lru_cache
def covered_places(vocabulary: PatchVocabulary) -> Tensor:
    """The places of the finest grid that each patch shows, those whose centres lie in it: int64 [V, most], -1 fills."""
    grid = vocabulary.grids[-1]
    owners, shown = [], []  # of each scale: the patch that holds each place, and whether one does
    for offset, coarse, scale in zip(vocabulary.offsets, vocabulary.grids, vocabulary.scales, strict=True):
        along = (2 * torch.arange(grid) + 1) * scale // (2 * vocabulary.frame_size)
        owners.append((offset + along[:, None] * coarse + along).flatten())
        shown.append(((along[:, None] < coarse) & (along < coarse)).flatten())
    there = torch.cat(shown)
    owner = torch.cat(owners)[there]
    place = torch.arange(grid * grid).repeat(len(owners))[there]
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=vocabulary.size)
    column = torch.arange(len(owner)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    places = torch.full((vocabulary.size, int(counts.max())), -1)
    places[owner[order], column] = place[order]
    return places
