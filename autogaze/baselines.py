"""Gazes to compare with: they choose patches without a reconstructor, a fixed number for every frame.

Each is a pure function of clips and lengths. Within a frame ids rise, coarse to fine: on the canvas, where the last
patch painted is the one seen, fine patches then lie on top; learned reconstructors do not mind the order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.lengths import clip_generator
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction.base import as_clips


def random_patches(
    frames: torch.Tensor | np.ndarray,
    lengths: torch.Tensor | np.ndarray,
    keys: Sequence[str],
    *,
    seed: int = 0,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Gaze:
    """Patches of any scale, each as likely as any other, no two of a frame the same.

    frames: uint8 [B, T, S, S, 3]; lengths: int64 [B, T], exactly so many tokens. keys: names of the clips. A clip's
    patches depend on its key and the seed alone, and those of more tokens include those of fewer.
    Raises ValueError for frames, lengths, keys or a seed that make no sense.
    """
    clips, num_frames = as_clips(frames, vocabulary).shape[:2]
    if len(keys) != clips:
        raise ValueError(f"{len(keys)} keys for {clips} clips")
    order = np.empty((clips, num_frames, vocabulary.size), np.int64)
    for b, key in enumerate(keys):
        order[b] = clip_generator(key, seed, "random_patches").random(order.shape[1:]).argsort(axis=1)
    return _first(torch.from_numpy(order), lengths, vocabulary)


def coarse_to_fine(
    frames: torch.Tensor | np.ndarray,
    lengths: torch.Tensor | np.ndarray,
    *,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Gaze:
    """All patches of the coarsest scale, then all of the next; of the last, those there is room for, evenly spread.

    frames: uint8 [B, T, S, S, 3], of which only the shape matters; lengths: int64 [B, T], exactly so many tokens.
    Raises ValueError for frames or lengths that make no sense.
    """
    clips, num_frames = as_clips(frames, vocabulary).shape[:2]
    return _first(_spread(vocabulary).expand(clips, num_frames, -1), lengths, vocabulary)


def frame_difference(
    frames: torch.Tensor | np.ndarray,
    lengths: torch.Tensor | np.ndarray,
    *,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Gaze:
    """Patches of the finest scale that changed most since the frame before; of frame 0, those of most contrast.

    Change is the sum of absolute differences over a patch's pixels, contrast that of their differences from its mean
    colour. Of equals the lowest id comes first. A frame with room for more than the finest scale gets coarser patches
    as well, the finest of them first.

    frames: uint8 [B, T, S, S, 3]; lengths: int64 [B, T], exactly so many tokens.
    Raises ValueError for frames or lengths that make no sense.
    """
    frames = as_clips(frames, vocabulary)
    clips, num_frames = frames.shape[:2]
    offset = vocabulary.offsets[-1]
    order = torch.empty(clips, num_frames, vocabulary.size, dtype=torch.int64)
    order[..., vocabulary.counts[-1] :] = torch.arange(offset - 1, -1, -1)
    for t in range(num_frames):  # frame by frame, since int32 takes four times the room of frames
        now = _patches(frames[:, t], vocabulary)
        if t:
            change = (now - _patches(frames[:, t - 1], vocabulary)).abs()
        else:
            change = (now * now.shape[2] - now.sum(dim=2, keepdim=True)).abs()
        score = change.sum(dim=(2, 3))  # whole numbers: the same order on every device
        order[:, t, : vocabulary.counts[-1]] = score.cpu().sort(dim=1, descending=True, stable=True).indices + offset
    return _first(order, lengths, vocabulary)


def _patches(frame: torch.Tensor, vocabulary: PatchVocabulary) -> torch.Tensor:
    """uint8 [B, S, S, 3] as the finest patches: int32 [B, patches, pixels, 3]."""
    grid, side = vocabulary.grids[-1], vocabulary.patch_size
    cut = frame.reshape(-1, grid, side, grid, side, 3).transpose(2, 3)
    return cut.reshape(-1, grid * grid, side * side, 3).to(torch.int32)


@lru_cache
def _spread(vocabulary: PatchVocabulary) -> torch.Tensor:
    """All ids, scale by scale, those of a scale so that any number of the first ones lie evenly: int64 [V]."""
    order = []
    for offset, grid in zip(vocabulary.offsets, vocabulary.grids, strict=True):
        # A sequence of points that fills the square evenly at every length (Roberts' R2, of the plastic number).
        n = np.arange(64 * grid * grid)
        row, column = (((0.5 + n * step) % 1 * grid).astype(np.int64) for step in (0.7548776662466927, 0.569840290998))
        cells = list(dict.fromkeys((row * grid + column).tolist()))
        cells += sorted(set(range(grid * grid)) - set(cells))
        order += [offset + cell for cell in cells]
    return torch.tensor(order)


def _first(order: torch.Tensor, lengths: torch.Tensor | np.ndarray, vocabulary: PatchVocabulary) -> Gaze:
    """The gaze that holds the first tokens of order, int64 [B, T, V] on the CPU, of each frame, ids rising."""
    lengths = torch.as_tensor(lengths).cpu()
    if lengths.shape != order.shape[:2] or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be whole numbers {list(order.shape[:2])}, not {lengths.dtype} {list(lengths.shape)}"
        )
    if int(lengths.min()) < 0 or int(lengths.max()) > vocabulary.size:
        raise ValueError(
            f"lengths lie in 0..{vocabulary.size}, the patches of a frame; found {lengths.min()}..{lengths.max()}"
        )
    lengths = lengths.to(torch.int64)
    taken = torch.zeros(order.shape, dtype=torch.bool)
    taken.scatter_(2, order, torch.arange(vocabulary.size) < lengths[..., None])
    return Gaze(taken.nonzero()[:, 2].contiguous(), lengths, vocabulary=vocabulary)
