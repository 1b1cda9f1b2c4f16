"""Teacher forcing: the network's scores of a given gaze, all frames in one pass, with gradients.

See docs/method.md, section 'Teacher forcing'.

A clip becomes one sequence of vision tokens and real patches, always at the positions of `consistent` generation.
Sequences of a batch are padded behind their ends, where causal attention does not look, so no mask is needed. Slot j
of a frame is scored from the hidden state before its block of K; only these few states leave the last layer. If a gaze
has unused slots, the hidden state after one may be needed too: such end-of-frame tokens are queries beside the
sequence, which no other token sees.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.attention import of_new_shapes
from autogaze.device import sent
from autogaze.gaze import Gaze
from autogaze.model.decoder import Decoder
from autogaze.model.sampling import Sampling, of_block, tempered


class Scores(NamedTuple):
    """Scores of each slot of `gaze.padded()`. An unused slot is scored as the end of the frame.

    log_probs: float32 [B, N], log(p + 1e-8) of the slot's id, over all ids at temperature 1, as in the reference; or
        log-probabilities of what was drawn, in the distribution it was drawn from.
    loss_predictions: float32 [B, N], the predicted loss of the frame after the slot.
    entropies: float32 [B, N], in nats, of the distribution that each slot was drawn from, without gradients; or None.
    """

    log_probs: Tensor
    loss_predictions: Tensor
    entropies: Tensor | None = None

    def __repr__(self) -> str:
        """Shapes, not the numbers."""
        held = (f"{name}={None if part is None else list(part.shape)}" for name, part in self._asdict().items())
        return f"Scores({', '.join(held)})"


@of_new_shapes()
def score(
    decoder: Decoder, vision: Tensor, gaze: Gaze, sample: Sampling | None = None, drawn: Tensor | None = None
) -> Scores:
    """Score a gaze of B clips of T frames. vision: tokens [B, T, P, hidden] on the decoder's device.

    sample, drawn: see `AutoGaze.score`.
    """
    device = vision.device
    layout = laid_out_tokens(gaze, vision.shape[2], decoder.config.block_size, device)
    tokens = decoder.embed(layout.tokens)
    # The sequences are gathered from all tokens, and one of zeros for padding.
    x = torch.cat((vision.flatten(0, 2), tokens, vision.new_zeros(1, vision.shape[3])))[layout.sequence]
    rows, length = layout.sequence.shape
    beside = layout.beside
    end_of_frame = decoder.embed(torch.full_like(beside, gaze.vocabulary.eos))
    positions = torch.cat((torch.arange(length, device=device).expand(rows, -1), beside), dim=1)
    attend = _Attention(length, beside, layout.states_see)
    hidden = decoder(torch.cat((x, end_of_frame), dim=1), positions, attend, layout.states)

    ids, slot_of_block = layout.ids, layout.slot_of_block
    scores = decoder.scores(hidden[:, layout.state_of_block])  # [B, blocks, K, V + 1]
    # Head k predicts the loss before slot k of the block behind its state: the loss after slot o is what head o + 1
    # predicts, and after the last slot, head 0 of the next state.
    losses = decoder.losses(hidden).flatten(1)[:, layout.slot + 1]
    row = torch.arange(rows, device=device)[:, None]
    if sample is None:
        chosen = scores.softmax(dim=-1).flatten(1, 2)[row, slot_of_block, ids]
        return Scores(torch.log(chosen + 1e-8), losses)
    ids = ids if drawn is None else sent(drawn, device)
    every = _as_sampled(scores, ids, layout, sample).flatten(1, 2)[:, slot_of_block]
    with torch.no_grad():
        entropies = -(every.exp() * every.masked_fill(every.isinf(), 0)).sum(dim=-1)
    return Scores(every.gather(2, ids[..., None]).squeeze(2), losses, entropies)


def _as_sampled(scores: Tensor, ids: Tensor, layout: TokenLayout, sample: Sampling) -> Tensor:
    """Log-probabilities [B, blocks, K, V + 1] of the distributions that slots were drawn from.

    scores: the network's, [B, blocks, K, V + 1]. ids: int64 [B, N], what was drawn.
    """
    rows, blocks, block, size = scores.shape
    eos = size - 1
    drawn = ids.new_full((rows, blocks * block), eos)
    drawn[:, layout.slot_of_block] = ids
    drawn = drawn.view(rows, blocks, block)
    held = torch.zeros(rows, blocks, size, dtype=torch.int16, device=ids.device).scatter_(2, drawn, 1)
    earlier = held.cumsum(dim=1, dtype=torch.int16) - held  # by earlier blocks, those of earlier frames too
    taken = earlier > earlier[:, layout.first_of_block]
    taken[..., eos] = True
    scores = tempered(scores.flatten(0, 1), taken.flatten(0, 1), sample)
    # An unused slot holds the end-of-frame id, which cannot be drawn: it is no choice, and its log-probability nothing.
    drawn = drawn.flatten(0, 1)
    every = of_block(scores, drawn)
    every = every.masked_fill((drawn == eos)[..., None], 0.0)
    return every.view(rows, blocks, block, size)


_built: WeakKeyDictionary[Gaze, tuple[tuple[int, int, torch.device], TokenLayout]] = WeakKeyDictionary()
"""The layouts that were built ahead, of gazes that are still there."""


def lay_out_tokens(gaze: Gaze, vision: int, block: int, device: torch.device) -> None:
    """Build what `score` of this very gaze needs besides the frames, for vision tokens [B, T, vision, hidden].

    It takes the host 15 ms for 64 clips, in which a GPU would wait. `score` then finds it.
    """
    _built[gaze] = (vision, block, device), TokenLayout(gaze, vision, block).to(device)


def laid_out_tokens(gaze: Gaze, vision: int, block: int, device: torch.device) -> TokenLayout:
    """The layout of a gaze, built ahead or now."""
    built = _built.get(gaze)
    if built is not None and built[0] == (vision, block, device):
        return built[1]
    return TokenLayout(gaze, vision, block).to(device)


class TokenLayout:
    """Where everything lies, as index tensors. L is the longest sequence, N the slots of the padded layout.

    A frame of n slots has 1 + n // K states that something is read from: that of its last vision token, and of every
    K-th slot. M is how many there are in all, E how many of them are unused slots in some row.

    tokens: of the gaze.
    sequence: int64 [B, L], which token of [vision; gaze; none] is at each place.
    beside: int64 [B, E], positions of the end-of-frame tokens beside the sequence.
    states: int64 [B, M], place of each state in [sequence; beside]; states_see: int64 [B, M], the last place it sees.
    state_of_block: int64 [blocks], the state before each block of slots; first_of_block: the first of its frame.
    slot, slot_of_block: int64 [N], each slot counted in K per state, and in K per block.
    ids: int64 [B, N], what each slot holds.
    """

    def __init__(self, gaze: Gaze, vision: int, block: int) -> None:
        self.tokens, lengths, (rows, frames) = gaze.tokens, gaze.lengths, gaze.lengths.shape
        padded = gaze.padded()
        slots = padded["num_gazing_each_frame"]
        frame_of_slot = torch.repeat_interleave(torch.arange(frames), slots)
        first_slot = slots.cumsum(0) - slots
        place = torch.arange(len(frame_of_slot)) - first_slot[frame_of_slot]
        self.ids = torch.where(
            padded["if_padded_gazing"], gaze.vocabulary.eos, padded["gazing_pos"] - frame_of_slot * gaze.vocabulary.size
        )
        used = ~padded["if_padded_gazing"]

        start = torch.arange(frames) * vision + lengths.cumsum(1) - lengths  # [B, T], where each frame begins
        length = int((lengths.sum(1) + frames * vision).max())
        self.sequence = torch.full((rows, length), rows * frames * vision + len(gaze.tokens))
        row = torch.arange(rows)[:, None, None]
        grid = torch.arange(rows * frames * vision).view(rows, frames, vision)
        self.sequence[row, start[:, :, None] + torch.arange(vision)] = grid
        used_before = used.cumsum(1) - used.to(torch.int64)  # [B, N], real tokens in earlier slots of the row
        in_sequence = (frame_of_slot + 1) * vision + used_before  # the place of each slot's token, if it is one
        owner = used.nonzero()[:, 0]  # row by row, as the tokens of a gaze
        self.sequence[owner, in_sequence[used]] = rows * frames * vision + torch.arange(len(gaze.tokens))

        states = 1 + slots // block
        first_state = states.cumsum(0) - states
        frame = torch.repeat_interleave(torch.arange(frames), states)
        number = torch.arange(len(frame)) - first_state[frame]  # of the state within its frame
        last_vision = start[:, frame] + vision - 1
        if len(place):
            slot = (first_slot[frame] + number * block - 1).clamp(min=0)  # that it belongs to, but for number 0
            real = (number == 0) | used[:, slot]
            self.states_see = torch.where(number == 0, last_vision, in_sequence[:, slot] - (~real).to(torch.int64))
        else:
            real, self.states_see = torch.ones_like(last_vision, dtype=torch.bool), last_vision
        apart = (~real).any(dim=0).nonzero().squeeze(1)
        self.beside = self.states_see[:, apart]
        index = torch.zeros(len(frame), dtype=torch.int64)
        index[apart] = torch.arange(len(apart))
        self.states = torch.where(real, self.states_see, length + index)

        blocks = -(-slots // block)
        first_block = blocks.cumsum(0) - blocks
        of_block = torch.repeat_interleave(torch.arange(frames), blocks)
        self.state_of_block = first_state[of_block] + torch.arange(len(of_block)) - first_block[of_block]
        self.first_of_block = first_block[of_block]
        self.slot = first_state[frame_of_slot] * block + place
        self.slot_of_block = first_block[frame_of_slot] * block + place

    def to(self, device: torch.device) -> TokenLayout:
        """The same, on a device."""
        for name, part in vars(self).items():
            setattr(self, name, sent(part, device))
        return self


class _Attention:
    """Causal attention of [sequence; beside]: see `TokenLayout`."""

    def __init__(self, length: int, beside: Tensor, states_see: Tensor) -> None:
        self.length = length
        places = torch.arange(length, device=beside.device)
        self.beside_sees = (places <= beside[:, :, None])[:, None]
        self.states_see = (places <= states_see[:, :, None])[:, None]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        last = queries.shape[1] != keys.shape[1]
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        keys, values = keys[:, :, : self.length], values[:, :, : self.length]
        if last:
            out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.states_see)
        else:
            out = F.scaled_dot_product_attention(queries[:, :, : self.length], keys, values, is_causal=True)
            if queries.shape[2] > self.length:
                rest = F.scaled_dot_product_attention(
                    queries[:, :, self.length :], keys, values, attn_mask=self.beside_sees
                )
                out = torch.cat((out, rest), dim=2)
        return out.transpose(1, 2)
