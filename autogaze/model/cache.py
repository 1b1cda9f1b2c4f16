"""Keys and values of every token a decoder has read, and attention over them. No token is read twice.

A row's cache holds its real tokens only. No later token sees end-of-frame slots (docs/method.md, section 'Generation'),
so they are left out, and a token's place in the cache is the number of tokens before it. A new token sees all of the
past, and the new tokens before it.

There are two ways to attend, with the same result. `RaggedCache` goes row by row and takes exactly the keys that a row
has: no mask, no padding, and nothing for finished rows. CPUs are fast at that. `PaddedCache` takes all rows at once, in
few different shapes and without waiting for the host, for proposals on a GPU (autogaze/model/proposals.py). What a GPU
gazes with by itself is in autogaze/model/wide_decoder.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.attention import past_and_own
from autogaze.model.config import AutoGazeConfig

C = TypeVar("C", bound="Cache")


class Cache(ABC):
    """The cache of B rows. A step is three calls:

        cache.begin(rows, counts, width, wanted)
        decoder(x, positions, cache.attend, wanted)     # x: [len(rows), width, hidden]
        cache.end(rows, counts)

    Of the `width` tokens of rows[i], the last counts[i] are real; from `end` on, they belong to the row's past.

    keys, values: [layers, B, heads, capacity, head_dim]. lengths: how many tokens each row holds.
    """

    drops_rows: bool
    """Whether a step may leave rows out. If not, it is given all rows, with count 0 for those without tokens."""
    spare = 0
    """Places of a row beyond its capacity, for tokens that are none."""

    def __init__(
        self, config: AutoGazeConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, rows, config.num_heads, capacity + self.spare, config.head_dim)
        self.lengths = [0] * rows
        self.keys, self.values = (self._allocate(shape, device, dtype) for _ in range(2))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row. Room at least doubles, so that a long stream seldom copies."""
        needed, capacity = max(self.lengths) + tokens, self.capacity
        if needed > capacity:
            self._resize(max(needed, 2 * capacity))

    def fork(self: C) -> C:
        """An independent copy, with no more room than is used."""
        other: C = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.lengths = list(self.lengths)
        other._resize(max(self.lengths))
        return other

    @abstractmethod
    def begin(self, rows: Sequence[int], counts: Sequence[int], width: int, wanted: Tensor) -> None:
        """Begin a step. wanted: int64 [len(rows), m], the tokens whose hidden states are needed of the last layer."""

    def end(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """End a step: its tokens now belong to the past."""
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count

    def drop(self, row: int, kept: Sequence[bool]) -> None:
        """Of the last len(kept) tokens of a row, keep these and forget the others."""
        start = self.lengths[row] - len(kept)
        chosen = [start + place for place, keep in enumerate(kept) if keep]
        self.lengths[row] = start + len(chosen)
        for held in (self.keys, self.values):
            held[:, row, :, start : self.lengths[row]] = held[:, row, :, chosen]

    @abstractmethod
    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store a layer's new keys and values, [A, n, H, D], and attend with its queries.

        queries: [A, n, H, D], or [A, m, H, D] of the tokens `wanted`. Returns their shape.
        """

    @property
    def capacity(self) -> int:
        """Tokens that fit in a row."""
        return self.keys.shape[3] - self.spare

    @staticmethod
    @abstractmethod
    def _allocate(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor: ...

    def _resize(self, capacity: int) -> None:
        used = max(self.lengths)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = self._allocate((*old.shape[:3], capacity + self.spare, old.shape[4]), old.device, old.dtype)
            new[:, :, :, :used] = old[:, :, :, :used]
            setattr(self, name, new)


class RaggedCache(Cache):
    """Attends row by row, over just the keys that a row has. For CPUs."""

    drops_rows = True

    def begin(self, rows: Sequence[int], counts: Sequence[int], width: int, wanted: Tensor) -> None:
        self._rows = list(zip(rows, counts, strict=True))
        self._width, self._wanted = width, wanted.tolist()

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        whole = queries.shape[1] == self._width
        out = torch.empty_like(queries)
        for i, (row, count) in enumerate(self._rows):
            past, skipped = self.lengths[row], self._width - count
            held_keys, held_values = self.keys[layer, row : row + 1], self.values[layer, row : row + 1]
            held_keys[:, :, past : past + count] = keys[i : i + 1, skipped:].transpose(1, 2)
            held_values[:, :, past : past + count] = values[i : i + 1, skipped:].transpose(1, 2)
            mine = queries[i : i + 1].transpose(1, 2)
            if whole:
                new = slice(past, past + count)
                seen = past_and_own(
                    mine[:, :, skipped:],
                    (held_keys[:, :, :past], held_values[:, :, :past]),
                    (held_keys[:, :, new], held_values[:, :, new]),
                    causal=True,
                )
                out[i, :skipped] = 0  # padding: any finite number will do, NaN would spread
                out[i : i + 1, skipped:] = seen.transpose(1, 2)
                continue
            for j, place in enumerate(self._wanted[i]):
                end = max(past + place - skipped + 1, 1)
                one = F.scaled_dot_product_attention(
                    mine[:, :, j : j + 1], held_keys[:, :, :end], held_values[:, :, :end]
                )
                out[i : i + 1, j : j + 1] = one.transpose(1, 2)
        return out

    @staticmethod
    def _allocate(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype)


class PaddedCache(Cache):
    """Attends with all rows at once; a mask lets each token see the places up to its own. For GPUs, and any device.

    One spare place after the last takes the tokens that are none: padding, and those of finished rows.
    """

    drops_rows = False
    spare = 1
    bucket = 512  # a step reads a multiple of so many keys, so that there are few shapes

    def __init__(
        self, config: AutoGazeConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(config, rows, -(-capacity // self.bucket) * self.bucket, device, dtype)

    def begin(self, rows: Sequence[int], counts: Sequence[int], width: int, wanted: Tensor) -> None:
        places, end = self.plan(counts, width)
        self.set_places(places.to(self.keys.device), wanted, end)

    def plan(self, counts: Sequence[int], width: int) -> tuple[Tensor, int]:
        """The place of each new token, int64 [B, width] on the CPU, and how many keys the step reads."""
        index = torch.arange(width) - width
        lengths, count = torch.tensor(self.lengths)[:, None], torch.tensor(counts)[:, None]
        places = torch.where(index >= -count, lengths + count + index, self.capacity)
        end = int((lengths + count).max())
        return places, min(-(-end // self.bucket) * self.bucket, self.capacity)

    def set_places(self, places: Tensor, wanted: Tensor, end: int) -> None:
        """Begin a step with what `plan` gave. places: int64 [B, n], on the device. end: keys before it are read."""
        self._places, self._end = places, end
        self._all = torch.arange(len(places), device=places.device)[:, None]
        self._mask, self._last_mask = self._visible(places), self._visible(places.gather(1, wanted))

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        held_keys, held_values = self.keys[layer], self.values[layer]
        held_keys[self._all, :, self._places] = keys
        held_values[self._all, :, self._places] = values
        mask = self._mask if queries.shape[1] == self._places.shape[1] else self._last_mask
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2), held_keys[:, :, : self._end], held_values[:, :, : self._end], attn_mask=mask
        )
        return out.transpose(1, 2)

    def _visible(self, places: Tensor) -> Tensor:
        visible = torch.arange(self._end, device=places.device) <= places[:, None, :, None]
        mask = torch.zeros(visible.shape, device=places.device, dtype=self.keys.dtype)
        return mask.masked_fill_(~visible, -torch.inf)

    @staticmethod
    def _allocate(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        # Zeros: masked keys get weight 0, and 0 times what memory held before may be NaN.
        return torch.zeros(shape, device=device, dtype=dtype)
