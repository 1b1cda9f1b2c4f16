"""A policy that proposes: block after block of a frame's patches, of which someone else says what was kept.

Plain generation (autogaze/model/generation.py) ends a frame by the losses it predicts. Here whoever measures decides
(autogaze/verified.py), and the next frame is conditioned on what was kept:

    proposals.open(vision, cap)                 # read what the frame before kept, then this frame's vision tokens
    ids, predicted = proposals.proposed()       # K patches for every row, and the loss predicted before each
    proposals.go_on(rows)                       # these rows kept all of it: they read it and propose K more
    proposals.keep(kept, anew)                  # all patches that each row kept, in order

A block is read only by rows that kept all of it, so the cache never holds a patch that was not kept, unless a row
starts its frame anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.model.generation import Generation


class Proposals(Generation):
    """B clips for which patches are proposed. Always the best patches: nothing is sampled."""

    @torch.inference_mode()
    def open(self, vision: Tensor, cap: int) -> None:
        """Begin the next frame. vision: its tokens [B, P, hidden]. cap: most patches that a row will keep of it."""
        unread = max(length + len(carry) for length, carry in zip(self.cache.lengths, self.carry, strict=True))
        self.cache.reserve(unread - max(self.cache.lengths) + vision.shape[1] + cap + self.block)
        hidden = self._prefill(vision, None)
        self._begin = list(self.cache.lengths)
        self._slot = 0
        self._gazing = list(range(self.rows))
        self._taken = torch.zeros(self.rows, self.eos + 1, dtype=torch.bool, device=self.device)
        self._taken[:, self.eos] = True
        self._ids, self._before, _ = self._choose(hidden, self._taken, None, 0)

    @torch.inference_mode()
    def go_on(self, rows: list[int]) -> None:
        """These rows, numbers rising, kept all of their last block: read it, and propose the next."""
        if self.cache.drops_rows:
            held = [self._gazing.index(row) for row in rows]
            self._ids, self._taken = self._ids[held], self._taken[held]
        self._slot += self.block
        self._gazing = rows
        stale = [start - self.block for start in self._begin]
        self._ids, self._before, _ = self._step(rows, self._ids, self._taken, None, stale, self._slot)

    def proposed(self) -> tuple[Tensor, Tensor]:
        """The last block of rows that went on: ids int64 [n, K], and float32 [n, K], the loss predicted before each.

        On the CPU. After `open` these are all rows.
        """
        ids, before = self._ids.cpu(), self._before.float().cpu()
        if not self.cache.drops_rows and len(self._gazing) < self.rows:
            ids, before = ids[self._gazing], before[self._gazing]
        return ids, before

    def keep(self, kept: list[list[int]], anew: list[int]) -> None:
        """End the frame: all patches that each row kept of it, in order.

        anew: rows that kept nothing of what was proposed. What they have read of it is forgotten.
        """
        for row in anew:
            self.cache.lengths[row] = self._begin[row]
        read = (length - begin for length, begin in zip(self.cache.lengths, self._begin, strict=True))
        self.carry = [tokens[count:] for tokens, count in zip(kept, read, strict=True)]
