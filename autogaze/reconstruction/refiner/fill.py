"""Smooth surfaces through what a canvas shows, which also fill what was never painted: pull and push on a pyramid.

The canvas is averaged over small squares, then again and again over two by two of them, counting only what was painted.
From the coarsest level down, a square without paint takes the surface of the level above it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SURFACES = 2
"""Of squares of half a block (a block, if that is an odd number of pixels), and of squares twice as wide."""
_GREY = 0.5


def surfaces(canvas: Tensor, painted: Tensor, block: int) -> Tensor:
    """Surfaces [n, SURFACES, 3, S, S] of canvases [n, 3, S, S] in [0, 1]. painted: bool [n, G, G], of their blocks."""
    side = block // 2 if block % 2 == 0 else block
    weight = painted.to(canvas.dtype).repeat_interleave(block // side, 1).repeat_interleave(block // side, 2)[:, None]
    levels = [(F.avg_pool2d(canvas, side) * weight, weight)]
    while levels[-1][1].shape[-1] > 1:
        colour, weight = (F.avg_pool2d(each, 2, ceil_mode=True) for each in levels[-1])
        levels.append((colour, weight))
    found = [torch.full_like(levels[-1][0], _GREY)]
    for colour, weight in reversed(levels):
        above = _resized(found[-1], weight.shape[-1])
        found.append(torch.where(weight > 0, colour / weight.clamp(min=1e-6), above))
    return torch.stack([_resized(each, canvas.shape[-1]) for each in (found[-1], found[-2])], dim=1)


def _resized(pictures: Tensor, size: int) -> Tensor:
    """[n, 3, m, m] to [n, 3, size, size], bilinear."""
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
