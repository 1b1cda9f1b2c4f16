"""Rows of pixels of gazed patches, cut straight out of the frames: nothing of what was not gazed is ever touched.

A scale shows the whole frame resized to its side: bicubic (a = -0.75), align_corners off, no antialias, as PyTorch's
F.interpolate; the identity where the frame has that side. Each pixel of a patch then depends on 4 x 4 pixels of the
frame, which are all that is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.device import sent
from autogaze.patches import PatchVocabulary

_AT_ONCE = 2**24
"""Numbers of a frame that are held as floats while rows are cut: 64 MB."""


def cut_rows(
    frames: Tensor, frame: Tensor, ids: Tensor, vocabulary: PatchVocabulary, mean: Tensor, std: Tensor
) -> Tensor:
    """Rows (channel, y, x) of the patches: float32 [M, 3 * p * p], in the encoder's normalisation.

    frames: uint8 [F, H, W, 3], normalised here by mean and std [3] of pixels in [0, 1]; or floats [F, H, W, 3] (any
        strides) that already are. frame, ids: int64 [M], the frame of each patch, and its id in the vocabulary;
        best on the CPU: how many patches each scale has is then known without asking a GPU.
    """
    side = vocabulary.patch_size
    device = frames.device
    rows = torch.empty(len(ids), 3, side, side, device=device)
    scale, top, left = vocabulary.locate(ids)
    for index, pixels in enumerate(vocabulary.scales):
        here = (scale == index).nonzero().squeeze(1)
        if len(here):
            whole = tuple(frames.shape[1:3]) == (pixels, pixels)
            for part in here.split(max(1, _AT_ONCE // (3 * side * side * (1 if whole else 16)))):
                y = _taps(sent(top[part], device), frames.shape[1], pixels, side, whole)
                x = _taps(sent(left[part], device), frames.shape[2], pixels, side, whole)
                rows[sent(part, device)] = _sampled(frames, sent(frame[part], device), y, x).movedim(-1, 1)
    if frames.dtype == torch.uint8:
        rows.div_(255).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
    return rows.flatten(1)


_Taps = tuple[Tensor, Tensor | None]
"""Pixels of the frame along an axis, int64 [m, p, taps], and what each weighs, float32; None: one, of weight 1."""


def _taps(place: Tensor, length: int, scale: int, side: int, whole: bool) -> _Taps:
    """Of the patches at `place` [m] along an axis: where their pixels come from."""
    pixel = place[:, None] * side + torch.arange(side, device=place.device)
    if whole:
        return pixel[..., None], None
    # In float32, as F.interpolate has it: a ratio of sizes is rounded before it is multiplied.
    ratio = torch.tensor(length, dtype=torch.float32) / scale
    at = (pixel + 0.5) * ratio - 0.5
    below = at.floor()
    t = (at - below)[..., None]
    near = torch.cat((t + 1, t, 1 - t, 2 - t), dim=-1)  # distances of the four taps
    a = -0.75
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    outer = ((a * near - 5 * a) * near + 8 * a) * near - 4 * a
    weights = torch.stack((outer[..., 0], inner[..., 1], inner[..., 2], outer[..., 3]), dim=-1)
    taps = below.long()[..., None] + torch.arange(-1, 3, device=place.device)
    return taps.clamp_(0, length - 1), weights


def _sampled(frames: Tensor, frame: Tensor, y: _Taps, x: _Taps) -> Tensor:
    """Weighted sums of the frames' pixels: float32 [m, p, p, 3]."""
    (rows, row_weights), (columns, column_weights) = y, x
    picked = frames[frame[:, None, None], rows.flatten(1)[:, :, None], columns.flatten(1)[:, None]].float()
    if row_weights is None or column_weights is None:
        return picked
    count, side = rows.shape[:2]
    picked = picked.view(count, side, 4, -1)
    picked = torch.einsum("myt,mytx->myx", row_weights, picked).view(count, side, side, 4, 3)
    return torch.einsum("mxt,myxtc->myxc", column_weights, picked)
