"""Token merging (ToMe, Bolya et al. 2023), to compare with: every patch is cut, and alike tokens are merged on the way.

Frame by frame. In each layer, between attention and MLP, tokens are dealt in turns to two sets; each of the first finds
the most alike of the second by the cosine of keys, and the most alike pairs become their mean, weighted by how many
patches each stands for. Attention counts a token as often as patches it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.vision.encoded import TokenFeatures
from autogaze.vision.encoder import GazedEncoder
from autogaze.vision.plan import Plan


@dataclass(frozen=True, eq=False)
class Merged:
    """features: of every patch of the finest scale, each with the feature of the token it went into. So a merged token
        counts in pooling as often as patches it stands for.
    tokens: patches and merged patches that each layer's MLP saw, of one frame.
    """

    features: TokenFeatures
    tokens: list[int]

    @property
    def tokens_per_frame(self) -> float:
        """The mean of `tokens` over the layers: what merging costs, to be compared with gazed patches of a frame."""
        return sum(self.tokens) / len(self.tokens)


def least_share() -> float:
    """The most that one layer can merge leaves half of its tokens."""
    return 0.5


def tokens_per_layer(patches: int, layers: int, share: float) -> list[int]:
    """Tokens after each layer's merging, so that layers see `share` of the patches on average: falling by one factor.

    Where even halving in every layer leaves more than that, halving it is.
    """
    low, high = least_share(), 1.0
    for _ in range(50):
        factor = (low + high) / 2
        mean = sum(factor ** (n + 1) for n in range(layers)) / layers
        low, high = (low, factor) if mean > share else (factor, high)
    counts, now = [], patches
    for n in range(layers):
        now = max(round(patches * high ** (n + 1)), -(-now // 2), 1)
        counts.append(now)
    return counts


def within_reach(encoder: GazedEncoder, share: float) -> bool:
    """Whether merging can bring the layers to so few of a frame's patches on average, to within a tenth.

    It cannot in networks with rotary positions, nor below what halving in every layer leaves.
    """
    if encoder.family.rotation(encoder.model, 1) is not None:
        return False
    patches, layers = encoder.vocabulary.counts[-1], len(encoder.family.layers(encoder.model))
    return sum(tokens_per_layer(patches, layers, share)) <= 1.1 * share * patches * layers


@torch.no_grad()
def merge(encoder: GazedEncoder, frames: Tensor | np.ndarray, share: float) -> Merged:
    """Encode whole frames with merging; frames as in `GazedEncoder.encode`, at the encoder's finest scale.

    share: of a frame's patches that layers see on average. Raises ValueError for a network with rotary positions.
    """
    family, model = encoder.family, encoder.model
    if family.rotation(model, 1) is not None:
        raise ValueError(f"{family.name} turns queries and keys by place, which merged tokens have not")
    given = encoder.as_clips(frames)
    count, prefix = encoder.vocabulary.counts[-1], encoder.prefix_count
    clips, times = given.shape[:2]
    plan = Plan.of(encoder.own_gaze(None, given, None), prefix)
    x = encoder.embedded(given, plan).view(clips * times, prefix + count, -1)  # each frame's own tokens come first
    size = x.new_ones(x.shape[:2])
    went = torch.arange(count, device=x.device).expand(len(x), -1)  # the token, prefix aside, of each place
    layers = family.layers(model)
    kept = tokens_per_layer(count, len(layers), share)
    for layer, wanted in zip(layers, kept, strict=True):
        normed = layer.norm1(x)
        query, key, value = (
            part(normed).unflatten(2, (encoder.heads, -1)).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        bias = size.log()[:, None, None].to(query.dtype)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        seen = layer.out(seen.transpose(1, 2).flatten(2))
        x = x + (seen if layer.scale1 is None else layer.scale1(seen))
        fewer = x.shape[1] - prefix - wanted
        if fewer > 0:
            x, size, went = _merged(x, size, went, key.mean(dim=1), prefix, fewer)
        changed = layer.mlp(layer.norm2(x))
        x = x + (changed if layer.scale2 is None else layer.scale2(changed))
    last = family.final_norm(model)
    x = x if last is None else last(x)
    features = x[:, prefix:].gather(1, went[..., None].expand(-1, -1, x.shape[2])).flatten(0, 1)
    own = x[:, :prefix].view(clips, times, prefix, x.shape[2])
    return Merged(TokenFeatures(features, plan, [], own, encoder), kept)


def _merged(
    x: Tensor, size: Tensor, went: Tensor, key: Tensor, prefix: int, fewer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and places with `fewer` tokens of each frame merged into others."""
    frames, count = x.shape[0], x.shape[1] - prefix
    key = F.normalize(key[:, prefix:], dim=-1)
    alike, partner = (key[:, ::2] @ key[:, 1::2].transpose(1, 2)).max(dim=2)
    order = alike.argsort(dim=1, descending=True)
    gone, stay = order[:, :fewer], order[:, fewer:].sort(dim=1).values
    into = partner.gather(1, gone)
    # New numbers: first those of the first set that stay, then the second set.
    number = torch.empty(frames, count, dtype=torch.int64, device=x.device)
    first = torch.empty_like(order)
    first.scatter_(1, stay, torch.arange(stay.shape[1], device=x.device).expand_as(stay))
    first.scatter_(1, gone, into + stay.shape[1])
    number[:, ::2] = first
    number[:, 1::2] = torch.arange(count // 2, device=x.device) + stay.shape[1]
    patches, weight = x[:, prefix:], size[:, prefix:, None]
    left = count - fewer
    total = x.new_zeros(frames, left, 1).scatter_add(1, number[..., None], weight)
    sums = x.new_zeros(frames, left, x.shape[2])
    sums.scatter_add_(1, number[..., None].expand_as(patches), patches * weight)
    x = torch.cat((x[:, :prefix], sums / total), dim=1)
    return x, torch.cat((size[:, :prefix], total[..., 0]), dim=1), number.gather(1, went)
