"""Gazing: frame by frame, block by block, on a cache that is read but never read again.

See docs/method.md, section 'Generation'.

A frame begins with its prefill: the patches of the frame before that are not in the cache yet (its last block), then
the vision tokens. From the last hidden state K patches are chosen at once, and fed back for the next K, until the
frame's cap is reached or the loss predicted before some slot of a block meets the threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.model.cache import Cache
from autogaze.model.cuda_graphs import Block, GraphedSteps
from autogaze.model.decoder import Decoder
from autogaze.model.sampling import Sampling, block_seeds, choose, mixed


@dataclass
class FrameGaze:
    """One frame's gaze of B rows, on the CPU.

    ids: int64 [B, S], the end-of-frame id in unused slots. slots: list of B, how many of the S the row's blocks took.
    before: float32 [B, S + 1], the loss predicted before each slot, and after the last one a row took.
    drawn, log_probs: int64 and float32 [B, S], of a sample: what was drawn for each slot, also where the threshold then
        left it unused (end-of-frame in slots never drawn for), and the log-probability it had; or None.
    """

    ids: Tensor
    slots: list[int]
    before: Tensor
    drawn: Tensor | None = None
    log_probs: Tensor | None = None


class Generation:
    """B clips being gazed: what was read (the cache), and what was chosen and is still to be read (the carry)."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        positions: str,
        sampling: Sampling | None,
        graphs: GraphedSteps | None = None,
        batches: Sequence[int] | None = None,
    ) -> None:
        """graphs: runs the decode steps, on this cache; None: they run as they are.

        batches: for each row the number of a batch. Rows of one batch influence each other as the reference's do
            (docs/method.md, section 'Positions'), which its vectors for other resolutions hold. None: they do not.
        """
        self.decoder, self.cache, self.positions, self.sampling = decoder, cache, positions, sampling
        self.rows = len(cache.lengths)
        self.device = cache.keys.device
        self.eos, self.block = decoder.config.vocabulary.eos, decoder.config.block_size
        self.carry: list[list[int]] = [[] for _ in range(self.rows)]
        self.seeds = None if sampling is None else sampling.row_seeds(self.rows).to(self.device)
        self.frames = 0
        self.graphs = graphs
        self.batches = batches if positions == "reference" else None

    def fork(self) -> Generation:
        """A copy that goes its own way."""
        other = copy.copy(self)
        other.cache, other.carry = self.cache.fork(), list(self.carry)
        other.graphs = None  # they know this one's memory
        return other

    def frame(self, vision: Tensor, cap: int, threshold: Tensor | None, previous: FrameGaze | None) -> FrameGaze:
        """Gaze at the next frame.

        vision: its tokens [B, P, hidden]. cap: most slots. threshold: float32 [B] on the CPU, a loss; None for no stop.
        previous: the frame before, whose last prediction this one can make on the way, for nothing.
        """
        seeds = None if self.seeds is None else mixed(self.seeds + self.frames)
        self.frames += 1
        self.cache.reserve(self.block + vision.shape[1] + cap)
        hidden = self._prefill(vision, previous)
        taken = torch.zeros(self.rows, self.eos + 1, dtype=torch.bool, device=self.device)
        taken[:, self.eos] = True
        width = -(-cap // self.block) * self.block
        gaze = FrameGaze(
            torch.full((self.rows, width), self.eos), [0] * self.rows, torch.full((self.rows, width + 1), torch.inf)
        )
        if seeds is not None:
            gaze.drawn, gaze.log_probs = torch.full_like(gaze.ids, self.eos), torch.zeros(self.rows, width)
        rows = list(range(self.rows))  # those still gazing at this frame; what the steps below hold is theirs
        self.carry = [[] for _ in rows]
        ids, before, log_probs = self._choose(hidden, taken, seeds, 0)
        stale = [length - self.block for length in self.cache.lengths]
        for slot in range(0, width, self.block):
            end = slot + self.block
            new, predicted = ids.cpu(), before.cpu()
            if not self.cache.drops_rows and len(rows) < self.rows:
                new, predicted = new[rows], predicted[rows]
            if gaze.drawn is not None and gaze.log_probs is not None and log_probs is not None:
                gaze.drawn[rows, slot:end] = new
                gaze.log_probs[rows, slot:end] = log_probs.cpu() if self.cache.drops_rows else log_probs.cpu()[rows]
            hit = torch.zeros(new.shape, dtype=torch.bool)
            if threshold is not None:
                hit = predicted <= threshold[rows, None]
                if slot == 0:
                    hit[:, 0] = False  # a frame has one gaze at least
            hit[:, max(cap - slot, 0) :] = False
            kept = new.masked_fill(hit, self.eos)
            gaze.ids[rows, slot:end], gaze.before[rows, slot:end] = kept, predicted
            going = []
            for place, (row, finished) in enumerate(zip(rows, hit.any(dim=1).tolist(), strict=True)):
                gaze.slots[row] = min(end, cap)
                if finished or end >= cap:
                    self.carry[row] = [id for id in kept[place, : cap - slot].tolist() if id != self.eos]
                else:
                    going.append(place)
            if not going:
                break
            if self.batches is not None:
                self._read_late(rows, going, kept, stale)
            if len(going) < len(rows):
                rows = [rows[place] for place in going]
                if self.cache.drops_rows:
                    taken, ids = taken[going], ids[going]
                    seeds = None if seeds is None else seeds[going]
            ids, before, log_probs = self._step(rows, ids, taken, seeds, stale, end)
        gaze.ids, gaze.before = gaze.ids[:, :cap], gaze.before[:, : cap + 1]
        if gaze.drawn is not None and gaze.log_probs is not None:
            gaze.drawn, gaze.log_probs = gaze.drawn[:, :cap], gaze.log_probs[:, :cap]
        return gaze

    def _read_late(self, rows: list[int], going: list[int], kept: Tensor, stale: list[int]) -> None:
        """What the reference does to a row that finishes before its batch: its last block is read like any other.

        At stale positions, that is, and with its unused slots seen by the used ones.
        """
        assert self.batches is not None
        active = {self.batches[rows[place]] for place in going}
        late = {
            row: kept[place] for place, row in enumerate(rows) if place not in going and self.batches[row] in active
        }
        if not late:
            return
        given = list(late) if self.cache.drops_rows else list(range(self.rows))
        nothing = torch.full_like(kept[0], self.eos)
        ids = torch.stack([late.get(row, nothing) for row in given]).to(self.device)
        wanted = torch.full((len(given), 1), self.block - 1, device=self.device)
        self._read(given, [self.block * (row in late) for row in given], self.decoder.embed(ids), wanted, stale)
        for row, block in late.items():
            self.cache.drop(row, (block != self.eos).tolist())
            self.carry[row] = []

    def settle(self, gaze: FrameGaze) -> None:
        """Complete the predictions of the last frame, which no other frame follows (yet): read what is carried."""
        rows = [row for row in range(self.rows) if self._unpredicted(gaze, row)]
        if not rows:
            return
        counts = [len(self.carry[row]) if row in rows else 0 for row in range(self.rows)]
        width = max(counts)
        self.cache.reserve(width)
        tokens = self._right_aligned(self.carry, width)
        last = torch.full((self.rows, 1), width - 1, device=self.device)
        given = rows if self.cache.drops_rows else list(range(self.rows))
        places = torch.tensor(given, device=self.device)
        hidden = self._read(
            given, [counts[row] for row in given], self.decoder.embed(tokens[places]), last[places], self.cache.lengths
        )
        predicted = self.decoder.losses(hidden[:, 0])[:, 0].cpu()
        for row, loss in zip(given, predicted.tolist(), strict=True):
            if row in rows:
                gaze.before[row, gaze.slots[row]] = loss
                self.carry[row] = []

    # -- steps ---------------------------------------------------------------------------------------------------

    def _prefill(self, vision: Tensor, previous: FrameGaze | None) -> Tensor:
        """Read the carry and a frame's vision tokens [B, P, hidden]; the hidden state after them, [B, hidden]."""
        carried = [len(tokens) for tokens in self.carry]
        width = max(carried) + vision.shape[1]
        x = vision
        if max(carried):
            tokens = self._right_aligned(self.carry, max(carried))
            x = torch.cat((self.decoder.embed(tokens), vision), dim=1)
        wanted = torch.full((self.rows, 1), width - 1, device=self.device)
        unpredicted = [row for row in range(self.rows) if previous is not None and self._unpredicted(previous, row)]
        if unpredicted:
            # What comes last of a frame's patches tells the loss after it, which nothing has told yet.
            wanted = torch.cat((torch.full_like(wanted, max(carried) - 1), wanted), dim=1)
        counts = [count + vision.shape[1] for count in carried]
        hidden = self._read(list(range(self.rows)), counts, x, wanted, self.cache.lengths)
        if unpredicted:
            assert previous is not None
            predicted = self.decoder.losses(hidden[:, 0])[:, 0].cpu()
            for row in unpredicted:
                previous.before[row, previous.slots[row]] = predicted[row]
        return hidden[:, -1]

    def _step(
        self, rows: list[int], ids: Tensor, taken: Tensor, seeds: Tensor | None, stale: list[int], slot: int
    ) -> Block:
        """Read the last block of the rows still gazing, and choose their next.

        The reference gives every such block the positions of the last K vision tokens.
        See docs/method.md, section 'Positions'.
        """
        starts = stale if self.positions == "reference" else self.cache.lengths
        given, gazing = rows if self.cache.drops_rows else list(range(self.rows)), set(rows)
        counts = [self.block if row in gazing else 0 for row in given]
        if self.graphs is not None:
            return self.graphs.step(counts, ids, taken, block_seeds(seeds, slot), starts)
        wanted = torch.full((len(given), 1), self.block - 1, device=self.device)
        hidden = self._read(given, counts, self.decoder.embed(ids), wanted, starts)
        return self._choose(hidden[:, -1], taken, seeds, slot)

    def _read(self, rows: list[int], counts: list[int], x: Tensor, wanted: Tensor, starts: list[int]) -> Tensor:
        """Hidden states [A, m, hidden] at `wanted` of x [A, n, hidden]; row i has counts[i] tokens, the last of the n.

        starts: for each of the B rows, the position of its first token.
        """
        width = x.shape[1]
        first = torch.tensor([starts[row] - (width - count) for row, count in zip(rows, counts, strict=True)])
        positions = (first[:, None] + torch.arange(width)).clamp_(min=0).to(self.device)
        self.cache.begin(rows, counts, width, wanted)
        hidden = self.decoder(x, positions, self.cache.attend, wanted)
        self.cache.end(rows, counts)
        return hidden

    def _choose(self, hidden: Tensor, taken: Tensor, seeds: Tensor | None, slot: int) -> Block:
        """The block after hidden states [A, hidden], whose ids become part of `taken`."""
        ids, log_probs = choose(self.decoder.scores(hidden), taken, self.sampling, block_seeds(seeds, slot))
        taken.scatter_(1, ids, True)
        return ids, self.decoder.losses(hidden), log_probs

    # -- small parts ---------------------------------------------------------------------------------------------

    def _unpredicted(self, gaze: FrameGaze, row: int) -> bool:
        """Whether a row's last block is full to its end, so that the loss after it has not been predicted."""
        slots = gaze.slots[row]
        full = bool(gaze.before[row, slots].isinf()) and int(gaze.ids[row, slots - 1]) != self.eos
        return full and bool(self.carry[row])

    def _right_aligned(self, tokens: list[list[int]], width: int) -> Tensor:
        """Token lists as int64 [B, width], the end-of-frame id before them."""
        padded = [[self.eos] * (width - len(row)) + row[:width] for row in tokens]
        return torch.tensor(padded, dtype=torch.int64).to(self.device)
