"""Gazing wide: what autogaze/model/generation.py does, all rows at once, without asking the device what they chose.

See docs/method.md, section 'Generation'. Which rows still gaze, what each holds and what it carries into the next frame
are tensors on the device. So the host runs ahead of the device, and three pieces of work make up all gazing: a frame's
prefill, a block, and the prediction after the last patch. Each works on memory that stays where it is, and its shapes
follow from the number of rows and of keys alone: on a GPU each is a CUDA graph (autogaze/model/cuda_graphs.py).

The host waits once for the result. Where a threshold ends frames, it also waits once before each next frame: it lets a
frame have as many blocks as recent ones took and two more, and if a row then still gazes, as many as the cap allows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from autogaze.model.config import AutoGazeConfig
from autogaze.model.cuda_graphs import Graphs
from autogaze.model.decoder import Decoder
from autogaze.model.generation import FrameGaze
from autogaze.model.sampling import Sampling, choose, mixed
from autogaze.model.wide_decoder import WideCache, WideDecoder

FIRST_GUESS = 4
"""Blocks that the first frame is given before the host asks whether a row still gazes."""


class Size(NamedTuple):
    """What a `Wide` has room for: rows, frames whose results are held at a time, slots of a frame, tokens of a row."""

    rows: int
    frames: int
    slots: int
    tokens: int

    def holds(self, other: Size) -> bool:
        """Whether there is room for another size, of as many rows."""
        return self.rows == other.rows and all(mine >= its for mine, its in zip(self, other, strict=True))


class Wide:
    """B clips that are being gazed at. In inference mode only.

    A call begins with `begin`, then come `frame` after `frame`, and `results` ends it.

    Tensors, all on the device. W is the slots of a frame, whole blocks, and one more.
        lengths, first: int64 [B], tokens that a row's cache holds, and those before the frame's first block.
        carry: int64 [B, K], patches of a finished frame's last block, which the decoder has not read yet; else
            end-of-frame.
        active, late: bool [B], rows that still gaze at the frame; rows whose last block is read as if they did.
        ids, taken: int64 [B, K], the last block; bool [B, V + 1], what a row's frame has already.
        slots: int64 [B], how many slots a row's frame has taken.
        cap, threshold: int64 [B] and float32 [B], what ends a row's frame.
        frame_number, place, slot: int64 [1]: of the frame in the clip and among the results; of the block's first slot.
        out_ids, out_before, out_drawn, out_log_probs: [B, frames * W], the results (see `FrameGaze`).
        out_slots: int64 [B, frames].
    """

    def __init__(
        self, config: AutoGazeConfig, size: Size, positions: str, device: torch.device, dtype: torch.dtype, graphs: bool
    ) -> None:
        self.config, self.size, self.positions = config, size, positions
        self.eos, self.block, self.vision_tokens = config.vocabulary.eos, config.block_size, config.num_vision_tokens
        self.blocks = -(-size.slots // self.block)
        self.width = self.blocks * self.block + 1
        self.decoder = WideDecoder(config, device, dtype)
        self.cache = WideCache(config, size.rows, size.tokens, device, dtype)
        self.graphs = Graphs(device) if graphs else None
        self.expected = FIRST_GUESS

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        rows, block = size.rows, self.block
        self.within = torch.arange(block, device=device)
        self.patches = torch.arange(self.vision_tokens, device=device)
        self.vision = floats(rows, self.vision_tokens, config.hidden_size, dtype=dtype)
        self.lengths, self.first, self.slots, self.cap, self.batch = (numbers(rows) for _ in range(5))
        self.seeds, self.frame_seeds = numbers(rows), numbers(rows)
        self.carry, self.ids = numbers(rows, block), numbers(rows, block)
        self.frame_number, self.place, self.slot = (numbers(1) for _ in range(3))
        self.active, self.late = (floats(rows, dtype=torch.bool) for _ in range(2))
        self.taken = floats(rows, config.vocab_size, dtype=torch.bool)
        self.threshold, self.temperature = floats(rows), floats(1)
        held = rows, size.frames * self.width
        self.out_ids, self.out_drawn, self.out_slots = numbers(*held), numbers(*held), numbers(rows, size.frames)
        self.out_before, self.out_log_probs = floats(*held), floats(*held)

    # -- a call --------------------------------------------------------------------------------------------------

    def begin(self, decoder: Decoder, sampling: Sampling | None, batches: Sequence[int] | None) -> None:
        """Begin new clips, with a decoder's weights as they are now. sampling, batches: as `Generation` takes them."""
        self.sampling = None if sampling is None else replace(sampling, temperature=1.0, seeds=0)
        if sampling is not None:
            self.seeds.copy_(sampling.row_seeds(self.size.rows), non_blocking=True)
            self.temperature.fill_(sampling.temperature)
        self.together = batches is not None and self.positions == "reference"
        if batches is not None:
            self.batch.copy_(torch.tensor(batches), non_blocking=True)
        self.lengths.zero_()
        self.frame_number.zero_()
        self.carry.fill_(self.eos)
        self.slots.zero_()
        self.read = 0  # tokens that the longest row may hold, its carry included
        self.load(decoder)

    def load(self, decoder: Decoder) -> None:
        """Go on with a decoder's weights as they are now, and with room for new results."""
        self.decoder.load(decoder)
        self.out_ids.fill_(self.eos)
        self.out_before.fill_(torch.inf)
        self.out_drawn.fill_(self.eos)
        self.out_log_probs.zero_()
        self.place.fill_(-1)
        self.caps: list[int] = []  # of the frames whose results are held
        self.left = 0  # blocks that the last frame may still need

    def frame(self, vision: Tensor, cap: int, caps: Tensor, threshold: Tensor | None) -> None:
        """Gaze at the next frame.

        vision: its tokens [B, P, hidden]. cap: most slots of any row, at least 1; caps: int64 [B], of each row, 0 for
        none. threshold: float32 [B], the predicted loss that ends a row's frame; None: only the cap does.

        Its last blocks may be left for later: what comes next does them.
        """
        self._end_frame()
        self._reserve(self.vision_tokens + cap)
        self.caps.append(cap)
        self.vision.copy_(vision)
        self.cap.copy_(caps)
        if threshold is None:
            self.threshold.fill_(torch.nan)  # which nothing is under
        else:
            self.threshold.copy_(threshold)
        self.settles = threshold is not None or cap % self.block == 0
        blocks = -(-cap // self.block)
        done = blocks if threshold is None else min(self.expected, blocks)
        self.begun = self.read + self.vision_tokens
        self._do(self._prefill, "prefill", self.begun)
        self._do_blocks(1, done)
        self.read, self.left = self.begun + cap, blocks - done

    def results(self) -> list[FrameGaze]:
        """The gaze of all frames since the call began."""
        blocks = -(-self.caps[-1] // self.block)
        while True:
            if self.settles:
                self._do(self._settle, "settle", self.read)
            frames, going, longest = self._results()
            self._expect(max(frames[-1].slots))
            left, self.left = self.left, 0
            if not going:
                self.read = longest
                return frames
            self._do_blocks(blocks - left, blocks)

    def fork(self) -> Wide:
        """A copy that goes its own way, without graphs."""
        other = copy.copy(self)
        other.graphs, other.cache = None, self.cache.copy(self.cache.capacity)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.clone())
        return other

    # -- the host's part -----------------------------------------------------------------------------------------

    def _do(self, work: Callable[[int], None], name: str, tokens: int) -> None:
        """Do a piece of work after which no row holds more than `tokens`."""
        end = self.cache.keys_read(tokens)
        if self.graphs is None:
            work(end)
        else:
            self.graphs.run((name, end), lambda: work(end))

    def _do_blocks(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            self._do(self._block, "block", self.begun + number * self.block)

    def _end_frame(self) -> None:
        """Do what the last frame's slow rows still need. Waits for the device, if there may be such rows."""
        if not self.left:
            return
        going, slowest, longest = torch.stack((self.active, self.slots, self._tokens())).amax(dim=1).tolist()
        self._expect(slowest)
        left, self.left = self.left, 0
        if going:
            blocks = -(-self.caps[-1] // self.block)
            self._do_blocks(blocks - left, blocks)
        else:
            self.read = longest

    def _expect(self, slowest: int) -> None:
        """slowest: the slots that the slowest row of a frame took."""
        self.expected = -(-slowest // self.block) + 2

    def _reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row. Room at least doubles, so that a long stream seldom copies."""
        needed = self.read + tokens + self.block
        if needed > self.cache.capacity:
            self.cache = self.cache.copy(max(needed, 2 * self.cache.capacity))
            if self.graphs is not None:
                self.graphs.clear()

    def _results(self) -> tuple[list[FrameGaze], bool, int]:
        """The results as they stand, whether a row still gazes, and the tokens of the longest row with its carry."""
        drawn = [self.out_drawn.int(), self.out_log_probs.view(torch.int32)] if self.sampling is not None else []
        parts = [self.out_ids.int(), self.out_before.view(torch.int32), *drawn, self.out_slots.int()]
        state = torch.stack((self.active, self._tokens()), dim=1).int()
        told = torch.cat((*parts, state), dim=1).cpu()
        ids, before, *drawn, slots, state = told.split([*(part.shape[1] for part in parts), 2], dim=1)
        frames = []
        for number, cap in enumerate(self.caps):
            start = number * self.width
            frame = FrameGaze(
                ids[:, start : start + cap].long(),
                slots[:, number].tolist(),
                before[:, start : start + cap + 1].contiguous().view(torch.float32),
            )
            if drawn:
                frame.drawn = drawn[0][:, start : start + cap].long()
                frame.log_probs = drawn[1][:, start : start + cap].contiguous().view(torch.float32)
            frames.append(frame)
        return frames, bool(state[:, 0].any()), int(state[:, 1].max())

    def _tokens(self) -> Tensor:
        """How many tokens each row holds, its carry included: int64 [B]."""
        return self.lengths + (self.carry != self.eos).sum(dim=1)

    # -- pieces of work: on fixed memory, without the host ---------------------------------------------------------

    def _prefill(self, end: int) -> None:
        """Read the carry, then the frame's vision tokens, and choose the frame's first block."""
        block = self.block
        positions, places, count = self._of_carry(self.carry != self.eos)
        seen = self.lengths[:, None] + count + self.patches
        x = torch.cat((self.decoder.embed(self.carry), self.vision), dim=1)
        positions, places = torch.cat((positions, seen), dim=1), torch.cat((places, seen), dim=1)
        wanted = slice(block - 1, None, self.vision_tokens)  # the last of the carry, and of all
        hidden = self.decoder.read(x, positions, places, self.cache, end, wanted)
        self._tell_loss_after(hidden[:, 0])
        self.lengths.add_(count[:, 0] + self.vision_tokens)
        self.first.copy_(self.lengths)
        self.carry.fill_(self.eos)
        self.active.fill_(True)
        self.late.fill_(False)
        self.taken.zero_()
        self.taken[:, self.eos :].fill_(True)
        self.slot.zero_()
        self.frame_seeds.copy_(mixed(self.seeds + self.frame_number))
        self.frame_number.add_(1)
        self.place.add_(1)
        self._choose(hidden[:, 1])

    def _block(self, end: int) -> None:
        """Read the last block of the rows that still gaze, and choose their next."""
        reading = (self.active | self.late)[:, None] if self.together else self.active[:, None]
        own = self.lengths[:, None] + self.within
        places = own.masked_fill(~reading, self.cache.capacity)
        positions = own
        if self.positions == "reference":  # every block stands where the last K vision tokens do
            positions = (self.first[:, None] + (self.within - self.block)).clamp_(min=0)
        wanted = slice(self.block - 1, None)
        hidden = self.decoder.read(self.decoder.embed(self.ids), positions, places, self.cache, end, wanted)
        if self.together:
            kept = reading & (self.ids != self.eos)
            self._close_up(kept)
            self.lengths.add_(kept.sum(dim=1))
        else:
            self.lengths.add_(self.active, alpha=self.block)
        self.slot.add_(self.block)
        self._choose(hidden[:, 0])

    def _settle(self, end: int) -> None:
        """Predict the loss after the last patch, which no prefill will: read what is carried up to it."""
        unread = self.carry[:, -1:] != self.eos
        positions, places, count = self._of_carry((self.carry != self.eos) & unread)
        wanted = slice(self.block - 1, None)
        hidden = self.decoder.read(self.decoder.embed(self.carry), positions, places, self.cache, end, wanted)
        self._tell_loss_after(hidden[:, 0])
        self.lengths.add_(count[:, 0])
        self.carry.masked_fill_(unread, self.eos)

    def _of_carry(self, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions and places [B, K] of what is held of the carry, bool [B, K], and how many that are, [B, 1]."""
        number = held.cumsum(dim=1)
        positions = (self.lengths[:, None] + number - 1).clamp_(min=0)
        return positions, positions.masked_fill(~held, self.cache.capacity), number[:, -1:]

    def _tell_loss_after(self, hidden: Tensor) -> None:
        """Add to the results what hidden states [B, hidden] at the carry's last place predict, where a patch is there.

        It fills its block, so the block did not predict the loss after it.
        """
        at = (self.place * self.width + self.slots)[:, None].clamp_(min=0)
        unread = self.carry[:, -1:] != self.eos
        loss = torch.where(unread, self.decoder.loss(hidden), self.out_before.gather(1, at))
        self.out_before.scatter_(1, at, loss)

    def _choose(self, hidden: Tensor) -> None:
        """Choose the block after hidden states [B, hidden], and end the frame of the rows that it ends."""
        scores, predicted = self.decoder.score(hidden)
        seeds = None
        if self.sampling is not None:
            scores, seeds = scores / self.temperature, mixed(self.frame_seeds + self.slot)
        ids, log_probs = choose(scores, self.taken, self.sampling, seeds)
        self.taken.scatter_(1, ids, True)
        slots = self.slot + self.within
        hit = (predicted <= self.threshold[:, None]) & (slots > 0)  # a frame has one gaze at least
        beyond = slots >= self.cap[:, None]
        hit |= beyond
        kept = ids.masked_fill(hit, self.eos)
        ended = ~self.active[:, None]
        at = self.place * self.width + slots
        self.out_ids.index_copy_(1, at, kept.masked_fill(ended, self.eos))
        self.out_before.index_copy_(1, at, predicted.masked_fill(ended, torch.inf))
        if log_probs is not None:
            ended = ended | beyond
            self.out_drawn.index_copy_(1, at, ids.masked_fill(ended, self.eos))
            self.out_log_probs.index_copy_(1, at, log_probs.masked_fill(ended, 0.0))

        taken = (self.slot + self.block).minimum(self.cap)
        self.slots.copy_(torch.where(self.active, taken, self.slots))
        self.out_slots.index_copy_(1, self.place, self.slots[:, None])
        finished = self.active & (hit.any(dim=1) | (taken >= self.cap))
        self.carry.copy_(torch.where(finished[:, None], kept, self.carry))
        self.active.logical_and_(~finished)
        self.ids.copy_(ids)
        if self.together:
            self._read_late(finished, kept)

    def _read_late(self, finished: Tensor, kept: Tensor) -> None:
        """Do what the reference does to rows that finish before others of their batch: see `Generation._read_late`."""
        going = torch.zeros_like(self.batch).index_add_(0, self.batch, self.active.long()).gather(0, self.batch) > 0
        self.late.copy_(finished & going)
        self.ids.copy_(torch.where(self.late[:, None], kept, self.ids))
        self.carry.masked_fill_(self.late[:, None], self.eos)

    def _close_up(self, kept: Tensor) -> None:
        """Let the cache forget the last K tokens of each row but those that are kept, bool [B, K]."""
        order = (~kept).to(torch.int8).argsort(dim=1, stable=True)
        start = self.lengths[:, None]
        nothing = ~self.late[:, None]
        source, target = (start + place for place in (order, self.within))
        spare = self.cache.capacity
        self.cache.move(source.masked_fill(nothing, spare), target.masked_fill(nothing, spare))
