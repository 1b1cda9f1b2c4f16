"""Feature maps as pictures: the three directions in which full frames vary most, as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Colours:
    """The colours of features, fixed by one set of them, so that maps of others can be held beside it.

    mean: [D]. directions: [D, 3]. low, high: [3], what becomes 0 and 255.
    """

    mean: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Colours:
        """From features [..., D], at least 4 of them: principal components, and the range that holds 98 % of each."""
        flat = features.reshape(-1, features.shape[-1]).float()
        mean = flat.mean(dim=0)
        centred = flat - mean
        directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
        # A direction's sign is arbitrary: the largest of its numbers is made positive.
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        directions = directions * largest.sign()
        along = (centred @ directions).sort(dim=0).values
        edge = len(along) // 100
        return cls(mean, directions, along[edge], along[-1 - edge])

    def __call__(self, features: Tensor) -> Tensor:
        """Features [..., D] to colours uint8 [..., 3]."""
        along = (features.float() - self.mean) @ self.directions
        share = (along - self.low) / (self.high - self.low).clamp(min=1e-12)
        return (share.clamp(0, 1) * 255).round().to(torch.uint8)
