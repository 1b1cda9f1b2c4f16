"""Gazing for a vision model of other scales or another patch size than the policy's.

See docs/method.md, section 'Other sizes'.

The frame is cut into tiles of as many patches as the policy's frame has, each is gazed as a frame of its own, and the
tiles' patches are laid side by side again. The order of the gaze is lost in it, as in the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


def needs_adaptation(own: PatchVocabulary, wanted: PatchVocabulary) -> bool:
    """Whether a vocabulary is another than the policy's: other scales, or other grids."""
    return (own.scales, own.counts) != (wanted.scales, wanted.counts)


def check(own: PatchVocabulary, wanted: PatchVocabulary) -> None:
    """Raise ValueError if the policy cannot be adapted to a vocabulary."""
    if len(own.scales) != len(wanted.scales):
        raise ValueError(
            f"a policy of {len(own.scales)} scales {own.scales} cannot gaze at the {len(wanted.scales)} scales"
            f" {wanted.scales}: give as many"
        )
    tiles = tiles_per_side(own, wanted)
    for mine, theirs in zip(own.grids, wanted.grids, strict=True):
        if theirs > tiles * mine:
            raise ValueError(
                f"scales {wanted.scales} have a grid of {theirs}x{theirs}, and {tiles}x{tiles} tiles of the policy only"
                f" {tiles * mine}x{tiles * mine}: a scale must not be larger, of the frame, than {own.scales} are"
            )


def tiles_per_side(own: PatchVocabulary, wanted: PatchVocabulary) -> int:
    return -(-wanted.grids[-1] // own.grids[-1])


def cut(images: Tensor, own: PatchVocabulary, wanted: PatchVocabulary) -> Tensor:
    """Preprocessed frames [B, T, 3, S, S] -> tiles [B * tiles, T, 3, s, s], row by row; zeros complete the last ones.

    Raises ValueError if S is not the last of the wanted scales.
    """
    side = wanted.frame_size
    if tuple(images.shape[-2:]) != (side, side):
        raise ValueError(
            f"frames of {images.shape[-2]}x{images.shape[-1]} pixels: scales {wanted.scales} want {side}x{side}"
        )
    tiles, tile = tiles_per_side(own, wanted), own.grids[-1] * wanted.patch_size
    images = F.pad(images, (0, tiles * tile - side, 0, tiles * tile - side))
    images = images.unflatten(4, (tiles, tile)).unflatten(3, (tiles, tile))  # [B, T, 3, rows, s, columns, s]
    return images.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)


def join(gaze: Gaze, own: PatchVocabulary, wanted: PatchVocabulary) -> Gaze:
    """The gaze of B * tiles tiles -> that of B frames, ids ascending; what lies in the completed border is left out."""
    tiles, frames = tiles_per_side(own, wanted), gaze.num_frames
    found = []
    for mask, grid, kept in zip(gaze.masks(), own.grids, wanted.grids, strict=True):
        whole = mask.view(-1, tiles, tiles, frames, grid, grid).permute(0, 3, 1, 4, 2, 5)
        whole = whole.reshape(-1, frames, tiles * grid, tiles * grid)
        found.append(whole[:, :, :kept, :kept].flatten(2))
    gazed = torch.cat(found, dim=2)
    return Gaze(gazed.nonzero()[:, 2], gazed.sum(dim=2, dtype=torch.int64), vocabulary=wanted)
