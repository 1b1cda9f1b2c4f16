"""The decoder as a CPU wants it: no padding, few passes over memory, and the same memory in every call.

It computes what `Decoder` (autogaze/model/decoder.py) does, for inference in float32. The tokens of all rows are one
matrix. Attention takes exactly the keys that a row has; neighbouring rows of one length attend in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.attention import past_and_own
from autogaze.model.cache import RaggedCache
from autogaze.model.decoder import Decoder, rope


class Stretch(NamedTuple):
    """Neighbouring rows of the cache that hold `past` tokens each, read `more`, and have the same ones wanted.

    rows: their places in the cache. read: where their tokens lie among all that are read. places: which of a row's new
    tokens are wanted. wanted: where these lie among all that are wanted.
    """

    rows: slice
    past: int
    more: int
    read: slice
    places: tuple[int, ...]
    wanted: slice


class _Layer(NamedTuple):
    norm: Tensor
    qkv: Tensor
    out: Tensor
    second_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class NarrowDecoder:
    """A decoder's weights; of queries and keys a copy in which the two halves of each rotated pair are side by side, so
    that a rotation is one complex product. What reads them writes into memory that it keeps: one thread at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, decoder.config
        self._memory: dict[str, Tensor] = {}
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Take over the decoder's weights as they are now."""
        weights, heads, head = dict(self.decoder.named_parameters()), self.config.num_heads, self.config.head_dim
        pairs = torch.arange(head).view(2, -1).T.flatten()
        order = (torch.arange(heads)[:, None] * head + pairs).flatten()
        self._layers = []
        for number in range(self.config.num_layers):
            own = {
                name.removeprefix(f"model.layers.{number}.").removesuffix(".weight"): weight
                for name, weight in weights.items()
                if name.startswith(f"model.layers.{number}.")
            }
            queries, keys, values = (own[f"self_attn.{part}_proj"] for part in "qkv")
            self._layers.append(
                _Layer(
                    own["input_layernorm"],
                    torch.cat((queries[order], keys[order], values)).T,
                    own["self_attn.o_proj"].T,
                    own["post_attention_layernorm"],
                    *(own[f"mlp.{part}_proj"].T for part in ("gate", "up", "down")),
                )
            )
        self._last_norm = weights["model.norm.weight"]

    def read(
        self,
        cache: RaggedCache,
        rows: Sequence[int],
        counts: Sequence[int],
        x: Tensor,
        positions: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Hidden states [A, m, hidden] at the places `wanted` int64 [A, m] of embedded tokens x [A, n, hidden].

        Of the n tokens of rows[i] the last counts[i] > 0 are real, and the cache holds them afterwards; what is wanted
        of other places means nothing. positions: int64 [A, n].
        """
        width, heads, head = x.shape[1], self.config.num_heads, self.config.head_dim
        count = torch.tensor(counts)[:, None]
        real = torch.arange(width) >= width - count
        places = (wanted - (width - count)).clamp_(min=0)
        chosen = (count.cumsum(0) - count + places).flatten()
        runs = list(_runs(cache.lengths, rows, counts, places.tolist()))
        x = self._kept("x", int(count.sum()), x.shape[2]).copy_(x[real])
        cosines, sines = (part[0] for part in rope(positions[real][None], self.config))
        turns = torch.complex(cosines[..., : head // 2], sines[..., head // 2 :])
        for number, layer in enumerate(self._layers):
            normed = self._norm(x, layer.norm)
            if number < self.config.num_layers - 1:
                qkv = self._product("qkv", normed, layer.qkv).view(len(x), 3, heads, head)
                _turn(qkv[:, :2].flatten(1, 2), turns)
                queries, keys, values = qkv.unbind(1)
                seen = self._kept("seen", len(x), heads * head).view(queries.shape)
                for run in runs:
                    _attend(cache, number, run, queries, keys, values, seen)
            else:  # no one reads more of it than what is wanted
                kv = self._product("qkv", normed, layer.qkv[:, heads * head :]).view(len(x), 2, heads, head)
                keys, values = kv.unbind(1)
                _turn(keys, turns)
                x, normed = x[chosen], normed[chosen]
                queries = torch.mm(normed, layer.qkv[:, : heads * head]).view(-1, heads, head)
                _turn(queries, turns[chosen])
                seen = torch.empty_like(queries)
                for run in runs:
                    _attend_with_few(cache, number, run, queries, keys, values, seen)
            _add_product(x, seen.flatten(1), layer.out)
            normed = self._norm(x, layer.second_norm)
            gated = F.silu(self._product("gate", normed, layer.gate), inplace=True)
            _add_product(x, gated.mul_(self._product("up", normed, layer.up)), layer.down)
        return self._norm(x, self._last_norm).view(*wanted.shape, -1).clone()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm, operation for operation as torch.nn.RMSNorm. What it returns lasts until the next call."""
        out = self._kept("normed", *x.shape)
        size = torch.mul(x, x, out=out).mean(dim=1, keepdim=True)
        return torch.mul(x, size.add_(self.config.rms_norm_eps).rsqrt_(), out=out).mul_(weight)

    def _product(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(x, weight, out=self._kept(name, len(x), weight.shape[1]))

    def _kept(self, name: str, rows: int, width: int) -> Tensor:
        """Memory [rows, width], the same in every call where it suffices."""
        held = self._memory.get(name)
        if held is None or len(held) < rows * width:
            held = self._memory[name] = torch.empty(rows * width)
        return held[: rows * width].view(rows, width)


def _runs(
    lengths: Sequence[int], rows: Sequence[int], counts: Sequence[int], places: Sequence[Sequence[int]]
) -> Iterator[Stretch]:
    """Cut the rows that are read into runs, as long as can be."""
    begin = read = 0
    alike = [(lengths[row], count, tuple(own)) for row, count, own in zip(rows, counts, places, strict=True)]
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end] == rows[end - 1] + 1 and alike[end] == alike[begin]:
            continue
        past, count, own = alike[begin]
        tokens, wanted = (end - begin) * count, slice(begin * len(own), end * len(own))
        yield Stretch(slice(rows[begin], rows[end - 1] + 1), past, count, slice(read, read + tokens), own, wanted)
        begin, read = end, read + tokens


def _attend(
    cache: RaggedCache, number: int, run: Stretch, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor
) -> None:
    """Hold a run's new keys and values, [tokens, H, D] of all rows, and write to `seen` what its queries see."""
    past, new = _hold(cache, number, run, keys, values)
    out = _by_row(seen[run.read], run.rows)
    past_and_own(_by_row(queries[run.read], run.rows), past, new, causal=True, out=out)


def _attend_with_few(
    cache: RaggedCache, number: int, run: Stretch, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor
) -> None:
    """The same of queries [wanted tokens, H, D] alone."""
    _hold(cache, number, run, keys, values)
    held_keys, held_values = cache.keys[number, run.rows], cache.values[number, run.rows]
    asked, answers = _by_row(queries[run.wanted], run.rows), _by_row(seen[run.wanted], run.rows)
    for index, place in enumerate(run.places):
        one, end = slice(index, index + 1), run.past + place + 1
        answers[:, :, one] = F.scaled_dot_product_attention(
            asked[:, :, one], held_keys[:, :, :end], held_values[:, :, :end]
        )


def _hold(
    cache: RaggedCache, number: int, run: Stretch, keys: Tensor, values: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Put a run's new keys and values into the cache. Returns its past there and what is new, [rows, H, n, D] each."""
    held = cache.keys[number, run.rows], cache.values[number, run.rows]
    end = run.past + run.more
    for kept, new in zip(held, (keys, values), strict=True):
        kept[:, :, run.past : end] = _by_row(new[run.read], run.rows)
    held_keys, held_values = (part[:, :, :end].split((run.past, run.more), dim=2) for part in held)
    return (held_keys[0], held_values[0]), (held_keys[1], held_values[1])


def _add_product(x: Tensor, y: Tensor, weight: Tensor) -> None:
    x.addmm_(y, weight)


def _by_row(heads: Tensor, rows: slice) -> Tensor:
    """[rows * n, H, D] -> [rows, H, n, D]."""
    apart: Tensor = heads.unflatten(0, (rows.stop - rows.start, -1))
    return apart.transpose(1, 2)


def _turn(heads: Tensor, turns: Tensor) -> None:
    """Rotary position embedding of heads [n, H, D], in place. turns: complex [n, 1, D / 2]."""
    torch.view_as_complex(heads.unflatten(-1, (-1, 2))).mul_(turns)
