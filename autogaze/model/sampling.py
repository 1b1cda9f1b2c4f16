"""Choosing the K patches of a block from the network's scores, greedily or at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOWERED = -1e4  # far below any score, and far above the scores of what cannot be chosen at all


@dataclass(frozen=True)
class Sampling:
    """How to sample a gaze: scores over `temperature`, of each head the best `top_k` (None: all).

    See docs/method.md, section 'Sampling'.

    Earlier patches of the frame are left out before the best are taken, those of the same block after it; a head whose
    best were all taken by the heads before it draws among the others.

    seeds: one number for each clip, or one number that stands for as many different ones. A clip's gaze is a function
    of its frames, its limits and its seed: not of the rest of the batch, nor of the device but for rounding.

    Raises ValueError for a temperature or top_k that makes no sense.
    """

    temperature: float = 1.0
    top_k: int | None = 50
    seeds: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for no limit, not {self.top_k}")

    def row_seeds(self, rows: int) -> Tensor:
        """A seed for each of B rows, well mixed: int64 [B]. Raises ValueError if there are not as many."""
        if isinstance(self.seeds, int):
            return mixed(mixed(torch.tensor(self.seeds)) + torch.arange(rows))
        seeds = torch.as_tensor(self.seeds, dtype=torch.int64).cpu()
        if seeds.shape != (rows,):
            raise ValueError(f"one seed for each of {rows} clips is needed, not {list(seeds.shape)}")
        return mixed(seeds)


def mixed(x: Tensor) -> Tensor:
    """A well-mixed int64 of each int64: the finaliser of SplitMix64 (Steele et al. 2014), the same on every device."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio: neighbours part
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31 & (1 << 33) - 1)


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1), float32 [..., count], from int64 seeds [...]: no state, so any of them can be made alone."""
    numbers = mixed(seeds[..., None] + torch.arange(count, device=seeds.device))
    return ((numbers >> 41 & (1 << 23) - 1).float() + 0.5) / (1 << 23)


def block_seeds(seeds: Tensor | None, slot: int) -> Tensor | None:
    """The seeds of the block that begins at a slot, of those of its frame, int64 [A]."""
    return None if seeds is None else mixed(seeds + slot)


def choose(
    scores: Tensor, taken: Tensor, sampling: Sampling | None, seeds: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The K patches of a block: int64 [A, K], none of them taken, none twice; and where they are a sample, the
    log-probabilities they had: float32 [A, K].

    scores: float32 [A, K, V + 1], changed in place. taken: bool [A, V + 1]. seeds: int64 [A], of this very block.
    """
    rows, block, ids = scores.shape
    scores = scores.masked_fill_(taken[:, None], -math.inf) if sampling is None else tempered(scores, taken, sampling)
    wanted = scores
    if sampling is not None:
        assert seeds is not None
        # The greatest of the scores plus Gumbel noise is a sample of their softmax, also when some are left out later.
        wanted = scores - torch.log(-torch.log(uniform(seeds, block * ids).view(rows, block, ids)))
    chosen = []
    for head in range(block):
        chosen.append(wanted[:, head].argmax(dim=-1))
        wanted.scatter_(2, chosen[-1][:, None, None].expand(rows, block, 1), -math.inf)
    found = torch.stack(chosen, dim=1)
    if sampling is None:
        return found, None
    return found, of_block(scores, found).gather(2, found[..., None]).squeeze(2)


def tempered(scores: Tensor, taken: Tensor, sampling: Sampling) -> Tensor:
    """The scores whose softmax a head samples from, when no head of its block was before it: [A, K, V + 1].

    scores: [A, K, V + 1] as the network has them. taken: bool [A, V + 1], or [A, K, V + 1].
    """
    scores = scores.masked_fill(taken if taken.dim() == 3 else taken[:, None], -math.inf) / sampling.temperature
    if sampling.top_k is None or sampling.top_k >= scores.shape[-1]:
        return scores
    least = scores.detach().topk(sampling.top_k, dim=-1).values[..., -1:]
    return torch.where(scores < least, scores + _LOWERED, scores)


def of_block(scores: Tensor, chosen: Tensor) -> Tensor:
    """Log-probabilities [A, K, V + 1] of each head, given what the heads before it chose.

    scores: [A, K, V + 1] as `tempered` gives them. chosen: int64 [A, K].
    """
    ones = torch.zeros_like(scores, dtype=torch.int8).scatter_(2, chosen[..., None], 1)
    before = ones.cumsum(dim=1, dtype=torch.int8) - ones
    return scores.masked_fill(before > 0, -math.inf).log_softmax(dim=-1)
