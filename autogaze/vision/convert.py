"""A gaze of one patch vocabulary as a gaze of another, by the places it covers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary

SHARE = 0.5
"""A patch is taken if gazed patches cover at least this share of its area."""


def by_coverage(gaze: Gaze, wanted: PatchVocabulary) -> Gaze:
    """The patches of another vocabulary that show what a gaze shows. Ids of a frame rise; the gaze's order is lost.

    Both vocabularies see the whole frame, so a patch is a region of it. A gazed patch goes to the scale whose patches
    are nearest in size (of two as near, the finer): there, each patch is taken that gazed patches of the same scale
    cover by at least half, or that holds a gazed patch's centre. So no gazed patch is lost, and a coarse one becomes
    many only where the wanted vocabulary has nothing as coarse.
    """
    masks = [mask.flatten(0, 1).bool() for mask in gaze.masks()]
    found = [torch.zeros(len(masks[0]), count, dtype=torch.bool, device=gaze.tokens.device) for count in wanted.counts]
    for mask, grid in zip(masks, gaze.vocabulary.grids, strict=True):
        target = min(range(len(wanted.grids)), key=lambda n: (abs(math.log(wanted.grids[n] / grid)), -wanted.grids[n]))
        found[target] |= _covered(mask.view(-1, grid, grid), wanted.grids[target]).flatten(1)
    taken = torch.cat(found, dim=1).view(*gaze.lengths.shape, wanted.size)
    return Gaze(tokens=taken.nonzero()[:, 2].contiguous(), lengths=taken.sum(dim=2), vocabulary=wanted)


def _covered(mask: Tensor, wanted: int) -> Tensor:
    """Patches of a wanted x wanted grid that a mask [n, grid, grid] covers: bool [n, wanted, wanted]."""
    grid = mask.shape[-1]
    # In units of 1 / (grid * wanted) of the frame everything is a whole number: exact in float64.
    own, other = torch.arange(grid)[None], torch.arange(wanted)[:, None]
    overlap = torch.minimum((own + 1) * wanted, (other + 1) * grid) - torch.maximum(own * wanted, other * grid)
    along = overlap.clamp(min=0).to(mask.device, torch.float64)
    area = along @ mask.to(torch.float64) @ along.T
    holds = torch.zeros(wanted, grid, dtype=torch.float64)
    holds[(2 * own[0] + 1) * wanted // (2 * grid), own[0]] = 1
    holds = holds.to(mask.device)
    centres = holds @ mask.to(torch.float64) @ holds.T
    return (area >= SHARE * grid * grid) | (centres > 0)
