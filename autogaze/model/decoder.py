"""The gaze decoder: a small Llama that reads vision tokens and gazed patches, and scores the next K patches at once.

The layers do not know where attention's keys come from: `Decoder.forward` is given a function that attends, so that
generation (autogaze/model/cache.py) and teacher forcing (autogaze/model/scoring.py) share every other line. Parameter
names are the reference's, so that its checkpoints load as they are (docs/method.md, section 'Network').
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.model.config import AutoGazeConfig, RopeScaling

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [B, m, H, D], keys [B, n, H, D], values [B, n, H, D]) -> [B, m, H, D]; m < n in the last layer."""

Rotation = tuple[Tensor, Tensor]
"""What turns heads by their positions: see `rope`. The first half of a head is paired with the second (NeoX order)."""


class Attention(nn.Module):
    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.head_dim))


class MLP(nn.Module):
    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotation: Rotation, attend: Callable[[Tensor, Tensor, Tensor], Tensor], wanted: Tensor | None
    ) -> Tensor:
        """x [B, n, hidden] -> the same, or [B, m, hidden] at the places `wanted` int64 [B, m] alone."""
        attention = self.self_attn
        normed = self.input_layernorm(x)
        keys = rotate(attention.heads(attention.k_proj(normed)), rotation)
        values = attention.heads(attention.v_proj(normed))
        if wanted is not None:
            x, normed = take(x, wanted), take(normed, wanted)
            rotation = take(rotation[0], wanted), take(rotation[1], wanted)
        queries = rotate(attention.heads(attention.q_proj(normed)), rotation)
        x = x + attention.o_proj(attend(queries, keys, values).flatten(-2))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Decoder(nn.Module):
    """Tokens in, hidden states out, and two heads on them: scores of the next K patches, and the loss before each."""

    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Llama(config)
        self.lm_head = nn.Linear(config.hidden_size, config.block_size * config.vocab_size, bias=False)
        self.task_loss_prediction_head = nn.Linear(config.hidden_size, config.block_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, wanted: Tensor) -> Tensor:
        """Hidden states [B, m, hidden] at the places `wanted` int64 [B, m] of embedded tokens x [B, n, hidden].

        positions: int64 [B, n]. Of the last layer, only keys and values are made for all n: nothing reads the rest.
        """
        rotation = rope(positions, self.config)
        last = len(self.model.layers) - 1
        for number, layer in enumerate(self.model.layers):
            x = layer(
                x,
                rotation,
                lambda queries, keys, values, number=number: attend(number, queries, keys, values),
                wanted if number == last else None,
            )
        return self.model.norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [...] -> [..., hidden]."""
        return self.model.embed_tokens(tokens)

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., K, V + 1] of the K patches that come after each hidden state [..., hidden]."""
        return self.lm_head(hidden).float().unflatten(-1, (self.config.block_size, self.config.vocab_size))

    def losses(self, hidden: Tensor) -> Tensor:
        """Predicted loss of the frame, float32 [..., K], before each of the K patches after a hidden state."""
        return self.task_loss_prediction_head(hidden).float()


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows of x [B, n, ...] at places int64 [B, m] -> [B, m, ...]."""
    return x[torch.arange(len(places), device=places.device)[:, None], places]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding of heads x [B, n, H, D], the first half of a head paired with the second."""
    cosines, sines = rotation
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines).to(x.dtype)


def rope(positions: Tensor, config: AutoGazeConfig) -> Rotation:
    """Cosines, and sines with the sign they have in `rotate`: float32 [B, n, 1, D] each, of positions int64 [B, n]."""
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, positions.device)
    angles = positions[..., None].float() * frequencies
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), dim=-1)[:, :, None], torch.cat((-sines, sines), dim=-1)[:, :, None]


@cache
def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """Radians per position, float32 [head_dim / 2], with Llama 3's scaling where there is one.

    Waves longer than the original context / low_freq_factor are slowed by `factor`, those shorter than the original
    context / high_freq_factor are left, and those between are blended (Llama 3.1; Hugging Face's `llama3` rope type).
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if scaling is None:
        return frequencies.to(device)
    context = scaling.original_max_position_embeddings
    waves = 2 * math.pi / frequencies
    kept = (context / waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).to(device)
