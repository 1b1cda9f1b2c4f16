"""Gazing: frame by frame and, within a frame, K patches at a time. What the decoder has read stays in its cache.

See docs/method.md, section 'Generation'.

Each frame begins with a prefill. The decoder reads the last block of the frame before, which is not in the cache yet,
and then the new frame's vision tokens. The last hidden state chooses K patches at once; these are read to choose the
next K. The frame ends at its cap, or when the loss predicted before one of a block's slots meets the threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.model.cache import Cache, RaggedCache
from autogaze.model.cuda_graphs import GraphedSteps
from autogaze.model.decoder import Decoder
from autogaze.model.narrow_decoder import NarrowDecoder
from autogaze.model.sampling import Sampling, block_seeds, choose, mixed

Block = tuple[Tensor, Tensor, Tensor | None]
"""Of the next block: ids int64 [A, K], predicted losses [A, K], and log-probabilities [A, K] where they are sampled."""


@dataclass
class FrameGaze:
    """One frame's gaze of B rows in S slots, on the CPU.

    ids: int64 [B, S], the patch in each slot; the end-of-frame id in slots that are not used.
    slots: for each row, how many slots its blocks took.
    before: float32 [B, S + 1], the loss predicted before each slot; at place slots[row] the one after the row's last.
    drawn: int64 [B, S], what was sampled for each slot, also where the threshold then left it unused. End-of-frame in
        slots that nothing was sampled for. log_probs: float32 [B, S], the log-probability of what was drawn. Both are
        None unless the gaze is sampled.
    """

    ids: Tensor
    slots: list[int]
    before: Tensor
    drawn: Tensor | None = None
    log_probs: Tensor | None = None


class Generation:
    """B clips that are being gazed at.

    cache: of the tokens that the decoder has read. carry: for each row, the patches that were chosen and that the
    decoder has not read yet; it reads them with the next frame.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        positions: str,
        sampling: Sampling | None,
        graphs: GraphedSteps | None = None,
        batches: Sequence[int] | None = None,
    ) -> None:
        """graphs: runs the decode steps as CUDA graphs, on this cache and without sampling; None: kernel by kernel.

        batches: for each row, the number of its batch. Within a batch, rows that end early are changed by slower rows,
            as in the reference (docs/method.md, section 'Positions'); its results for other resolutions depend on it.
            None: no row depends on another.
        """
        self.decoder, self.cache, self.positions, self.sampling = decoder, cache, positions, sampling
        self.rows = len(cache.lengths)
        self.device = cache.keys.device
        self.eos, self.block = decoder.config.vocabulary.eos, decoder.config.block_size
        self.carry: list[list[int]] = [[] for _ in range(self.rows)]
        self.seeds = None if sampling is None else sampling.row_seeds(self.rows).to(self.device)
        self.frames = 0
        self.graphs = graphs
        self.narrow: NarrowDecoder | None = None
        if isinstance(cache, RaggedCache) and cache.keys.dtype == torch.float32:
            self.narrow = NarrowDecoder(decoder)
        self.batches = batches if positions == "reference" else None

    def fork(self) -> Generation:
        """A copy that goes its own way."""
        other = copy.copy(self)
        other.cache, other.carry = self.cache.fork(), list(self.carry)
        other.graphs = None  # they know this one's memory
        other.narrow = None if self.narrow is None else NarrowDecoder(self.decoder)
        return other

    def frame(
        self, vision: Tensor, cap: int | Sequence[int], threshold: Tensor | None, previous: FrameGaze | None
    ) -> FrameGaze:
        """Gaze at the next frame.

        vision: its tokens [B, P, hidden]. cap: most slots of a row: one number, or one for each row, 0 for none.
        threshold: float32 [B] on the CPU, the predicted loss that ends a row's frame; None: only the cap does.
        previous: the frame before. If the loss after its last patch is not predicted yet, this frame's prefill, which
            reads that patch anyway, fills it in.
        """
        seeds = None if self.seeds is None else mixed(self.seeds + self.frames)
        self.frames += 1
        caps = [cap] * self.rows if isinstance(cap, int) else list(cap)
        room, cap = torch.tensor(caps), max(1, *caps)
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
        rows = list(range(self.rows))  # that still gaze at this frame; ids, before and log_probs below are of these
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
            hit &= slot + torch.arange(self.block) < room[rows, None]
            kept = new.masked_fill(hit, self.eos)
            gaze.ids[rows, slot:end], gaze.before[rows, slot:end] = kept, predicted
            going = []
            for place, (row, finished) in enumerate(zip(rows, hit.any(dim=1).tolist(), strict=True)):
                gaze.slots[row] = min(end, caps[row])
                if finished or end >= caps[row]:
                    own = kept[place, : max(caps[row] - slot, 0)].tolist()
                    self.carry[row] = [id for id in own if id != self.eos]
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
        beyond = torch.arange(cap) >= room[:, None]  # drawn with a row's last block, and left out
        gaze.ids.masked_fill_(beyond, self.eos)
        if gaze.drawn is not None and gaze.log_probs is not None:
            gaze.drawn, gaze.log_probs = gaze.drawn[:, :cap], gaze.log_probs[:, :cap]
            gaze.drawn.masked_fill_(beyond, self.eos)
            gaze.log_probs.masked_fill_(beyond, 0.0)
        return gaze

    def _read_late(self, rows: list[int], going: list[int], kept: Tensor, stale: list[int]) -> None:
        """Do what the reference does to rows that finish before others of their batch: read their last block at once.

        It is read as in a decode step, at positions that stand still, and its used slots see the unused ones. (A row
        that finishes with its batch has its last block read in the next prefill, without the unused slots.)
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
        """Predict the loss after the last frame's last patch, which no prefill will: read what is carried."""
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
        """Read the carry, then a frame's vision tokens [B, P, hidden]. Returns the last hidden state, [B, hidden]."""
        carried = [len(tokens) for tokens in self.carry]
        width = max(carried) + vision.shape[1]
        x = vision
        if max(carried):
            tokens = self._right_aligned(self.carry, max(carried))
            x = torch.cat((self.decoder.embed(tokens), vision), dim=1)
        wanted = torch.full((self.rows, 1), width - 1, device=self.device)
        unpredicted = [row for row in range(self.rows) if previous is not None and self._unpredicted(previous, row)]
        if unpredicted:
            # The hidden state at a frame's last patch predicts the loss after it, which is still unknown.
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
        """Read the last block of the rows that still gaze, and choose their next.

        With positions="reference", every block stands at the positions of the last K vision tokens (docs/method.md,
        section 'Positions').
        """
        starts = stale if self.positions == "reference" else self.cache.lengths
        given, gazing = rows if self.cache.drops_rows else list(range(self.rows)), set(rows)
        counts = [self.block if row in gazing else 0 for row in given]
        if self.graphs is not None:
            return *self.graphs.step(counts, ids, taken, starts), None
        wanted = torch.full((len(given), 1), self.block - 1, device=self.device)
        hidden = self._read(given, counts, self.decoder.embed(ids), wanted, starts)
        return self._choose(hidden[:, -1], taken, seeds, slot)

    def _read(self, rows: list[int], counts: list[int], x: Tensor, wanted: Tensor, starts: list[int]) -> Tensor:
        """Read x [A, n, hidden]. Returns the hidden states [A, m, hidden] at the places `wanted` [A, m] of the n.

        rows: numbers of the A rows. counts: how many tokens each has; they are right-aligned, the rest is padding.
        starts: for each of all B rows, the position of its first token.
        """
        width = x.shape[1]
        first = torch.tensor([starts[row] - (width - count) for row, count in zip(rows, counts, strict=True)])
        positions = (first[:, None] + torch.arange(width)).clamp_(min=0).to(self.device)
        if self.narrow is not None:
            assert isinstance(self.cache, RaggedCache)
            hidden = self.narrow.read(self.cache, rows, counts, x, positions, wanted)
        else:
            self.cache.begin(rows, counts, width, wanted)
            hidden = self.decoder(x, positions, self.cache.attend, wanted)
        self.cache.end(rows, counts)
        return hidden

    def _choose(self, hidden: Tensor, taken: Tensor, seeds: Tensor | None, slot: int) -> Block:
        """Choose the block after hidden states [A, hidden], and mark its ids in `taken`, bool [A, ids]."""
        ids, log_probs = choose(self.decoder.scores(hidden), taken, self.sampling, block_seeds(seeds, slot))
        taken.scatter_(1, ids, True)
        return ids, self.decoder.losses(hidden), log_probs

    # -- small parts ---------------------------------------------------------------------------------------------

    def _unpredicted(self, gaze: FrameGaze, row: int) -> bool:
        """Whether the loss after a row's last patch is unknown: the patch fills its block and was not read yet."""
        slots = gaze.slots[row]
        full = bool(gaze.before[row, slots].isinf()) and int(gaze.ids[row, slots - 1]) != self.eos
        return full and bool(self.carry[row])

    def _right_aligned(self, tokens: list[list[int]], width: int) -> Tensor:
        """Token lists as int64 [B, width], the end-of-frame id before them."""
        padded = [[self.eos] * (width - len(row)) + row[:width] for row in tokens]
        return torch.tensor(padded, dtype=torch.int64).to(self.device)
