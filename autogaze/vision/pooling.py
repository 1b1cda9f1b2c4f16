"""Pooling of groups of packed tokens of any lengths, without padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_pool(tokens: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean of each group's tokens [M, D]: [groups, D]; zero for a group without. group: int64 [M]."""
    sums = tokens.new_zeros(groups, tokens.shape[1]).index_add(0, group, tokens)
    counts = torch.bincount(group, minlength=groups).clamp(min=1)
    return sums / counts[:, None]


def attention_pool(head: Any, tokens: Tensor, group: Tensor, groups: int) -> Tensor:
    """SigLIP's head on each group's tokens [M, D] alone: [groups, D]; zero for a group without. group: int64 [M]."""
    attend, probe = head.attention, head.probe.reshape(1, -1)
    width, heads = tokens.shape[1], attend.num_heads
    weights, biases = attend.in_proj_weight.split(width), attend.in_proj_bias.split(width)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(1, (heads, -1))
        for x, weight, bias in zip((probe, tokens, tokens), weights, biases, strict=True)
    )
    scores = ((query * key).sum(dim=-1) / (width // heads) ** 0.5).float()  # [M, heads]
    index = group[:, None].expand_as(scores)
    highest = scores.new_full((groups, heads), -torch.inf).scatter_reduce(0, index, scores.detach(), reduce="amax")
    shares = (scores - highest[group]).exp()
    total = scores.new_zeros(groups, heads).index_add(0, group, shares)
    shares = (shares / total[group]).to(value.dtype)
    seen = value.new_zeros(groups, heads, width // heads).index_add(0, group, shares[..., None] * value)
    pooled = attend.out_proj(seen.flatten(1))
    pooled = pooled + head.mlp(head.layernorm(pooled))
    there = torch.bincount(group, minlength=groups) > 0
    result: Tensor = pooled * there[:, None]
    return result
