"""A clip seen in a mirror: left and right change places, in its frames and in its gaze."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


def mirror_frames(frames: Tensor) -> Tensor:
    """Frames [..., H, W, 3] with their columns in reverse order."""
    return frames.flip(-2)


def mirror_gaze(gaze: Gaze) -> Gaze:
    """The same patches of mirrored frames. Errors are left out: they have to be measured again.

    They would be the same but for scales that do not divide the frame: the pixels of 64 in 224 are not symmetric, and
    the canvas carries them on.
    """
    tokens = mirror_ids(gaze.vocabulary)[gaze.tokens]
    return replace(gaze, tokens=tokens, losses=None, initial=None)


@cache
def mirror_ids(vocabulary: PatchVocabulary) -> Tensor:
    """Of each patch id the id of its mirror image: int64 [V]."""
    grids = zip(vocabulary.grids, vocabulary.offsets, strict=True)
    return torch.cat([offset + torch.arange(side * side).view(side, side).flip(1).flatten() for side, offset in grids])
