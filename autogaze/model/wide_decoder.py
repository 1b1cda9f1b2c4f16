"""The decoder as a GPU wants it: all rows at once in few, large kernels, on memory that stays where it is.

It computes what `Decoder` (autogaze/model/decoder.py) does, for inference. It has a copy of the weights in which the
projections of one input are one matrix, so that a graph of it outlives any change of the policy's own parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.model.config import AutoGazeConfig
from autogaze.model.decoder import Decoder, rope


class WideCache:
    """Keys and values of the tokens that B rows have read.

    tokens: [layers, B, capacity + 1, 2, heads, head_dim], keys and values. One spare place after the last takes the
    tokens that are none: padding, and those of rows that have ended. A token sees the places up to its own.
    turns: cosines and sines of each position, float32 [capacity + K, 2, head_dim] (see `rope`).
    """

    bucket = 512  # a pass reads a multiple of so many keys, so that there are few shapes

    def __init__(
        self, config: AutoGazeConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.capacity = -(-capacity // self.bucket) * self.bucket
        shape = (config.num_layers, rows, self.capacity + 1, 2, config.num_heads, config.head_dim)
        # Zeros: masked keys get weight 0, and 0 times what memory held before may be NaN.
        self.tokens = torch.zeros(shape, device=device, dtype=dtype)
        self.index = torch.arange(self.capacity, device=device)
        self.first = torch.arange(rows, device=device)[:, None] * (self.capacity + 1)
        positions = torch.arange(self.capacity + config.block_size, device=device)[None]
        self.turns = torch.stack([part[0, :, 0] for part in rope(positions, config)], dim=1)

    def keys_read(self, tokens: int) -> int:
        """How many keys a pass reads when no row has more than `tokens`."""
        return min(-(-tokens // self.bucket) * self.bucket, self.capacity)

    def copy(self, capacity: int) -> WideCache:
        """The same tokens, with another capacity."""
        rows, device, dtype = self.tokens.shape[1], self.tokens.device, self.tokens.dtype
        other = WideCache(self.config, rows, capacity, device, dtype)
        held = min(self.capacity, other.capacity)
        other.tokens[:, :, :held] = self.tokens[:, :, :held]
        return other

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the tokens at places `source` of each row to places `target`, int64 [B, n] each."""
        flat = self.tokens.flatten(1, 2)
        flat.index_copy_(1, (self.first + target).flatten(), flat.index_select(1, (self.first + source).flatten()))


class WideDecoder:
    """Weights, joined: those of queries, keys and values; of gate and up; of the two heads."""

    def __init__(self, config: AutoGazeConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        layers, hidden, inner = config.num_layers, config.hidden_size, config.num_heads * config.head_dim

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        self.embedding = empty(config.vocab_size, hidden)
        self.norms = empty(2 * layers + 1, hidden)  # two of each layer, and the last
        self.qkv, self.out = empty(layers, 3, inner, hidden), empty(layers, hidden, inner)
        self.gate_up = empty(layers, 2, config.intermediate_size, hidden)
        self.down = empty(layers, hidden, config.intermediate_size)
        self.scores = config.block_size * config.vocab_size
        self.heads = empty(self.scores + config.block_size, hidden)

    @torch.no_grad()
    def load(self, decoder: Decoder) -> None:
        """Take over a decoder's weights as they are now."""
        weights = dict(decoder.named_parameters())
        places = {
            "model.embed_tokens": self.embedding,
            "model.norm": self.norms[-1],
            "lm_head": self.heads[: self.scores],
            "task_loss_prediction_head": self.heads[self.scores :],
        }
        for number in range(self.config.num_layers):
            attention, mlp, norms = self.qkv[number], self.gate_up[number], self.norms[2 * number : 2 * number + 2]
            parts = dict(zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), attention, strict=True))
            parts |= {"self_attn.o_proj": self.out[number], "mlp.down_proj": self.down[number]}
            parts |= dict(zip(("mlp.gate_proj", "mlp.up_proj"), mlp, strict=True))
            parts |= dict(zip(("input_layernorm", "post_attention_layernorm"), norms, strict=True))
            places |= {f"model.layers.{number}.{name}": place for name, place in parts.items()}
        torch._foreach_copy_(list(places.values()), [weights[f"{name}.weight"] for name in places])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, n] -> [B, n, hidden]."""
        return F.embedding(tokens, self.embedding)

    def read(self, x: Tensor, positions: Tensor, places: Tensor, cache: WideCache, end: int, wanted: slice) -> Tensor:
        """Hidden states [B, m, hidden] of the tokens `wanted` of x [B, n, hidden], which the cache holds afterwards.

        positions: int64 [B, n]. places: int64 [B, n], where the cache holds each token, its spare place for those that
        are none (what they give means nothing). end: places before it are read.
        """
        config = self.config
        rows, width, hidden = x.shape
        heads, head = config.num_heads, config.head_dim
        flat = (cache.first + places).flatten()
        turns = cache.turns.index_select(0, positions.flatten()).view(rows, width, 2, 1, 1, head)
        cosines, sines = turns[:, :, 0], turns[:, :, 1]
        mask = torch.zeros(rows, 1, width, end, device=x.device, dtype=x.dtype)
        mask.masked_fill_(cache.index[:end] > places[:, None, :, None], -torch.inf)
        x = x.reshape(rows * width, hidden)
        for number in range(config.num_layers):
            held = cache.tokens[number]
            normed = self._norm(x, 2 * number)
            qkv = F.linear(normed, self.qkv[number].flatten(0, 1)).view(rows, width, 3, heads, head)
            turned = qkv[:, :, :2]
            torch.addcmul(turned * cosines, turned.roll(head // 2, dims=-1), sines, out=turned)
            held.flatten(0, 1).index_copy_(0, flat, qkv.flatten(0, 1)[:, 1:])
            queries = qkv[:, :, 0]
            if number == config.num_layers - 1:  # no one reads more of it
                queries, mask = queries[:, wanted], mask[:, :, wanted]
                x = x.view(rows, width, hidden)[:, wanted].reshape(-1, hidden)
            keys, values = held[:, :end, 0], held[:, :end, 1]
            seen = F.scaled_dot_product_attention(
                queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
            )
            x = torch.addmm(x, seen.transpose(1, 2).reshape(len(x), -1), self.out[number].T)
            gated = F.linear(self._norm(x, 2 * number + 1), self.gate_up[number].flatten(0, 1))
            gate, up = gated.chunk(2, dim=1)
            x = torch.addmm(x, F.silu(gate).mul_(up), self.down[number].T)
        return self._norm(x, -1).view(rows, -1, hidden)

    def score(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of hidden states [B, hidden]: scores float32 [B, K, V + 1] of the next K patches, predicted losses [B, K]."""
        both = F.linear(hidden, self.heads).float()
        by_patch = both[:, : self.scores].unflatten(1, (self.config.block_size, self.config.vocab_size))
        return by_patch, both[:, self.scores :]

    def loss(self, hidden: Tensor) -> Tensor:
        """The loss predicted at hidden states [B, hidden], before the next patch: float32 [B, 1]."""
        return F.linear(hidden, self.heads[self.scores : self.scores + 1]).float()

    def _norm(self, x: Tensor, number: int) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norms[number], self.config.rms_norm_eps)
