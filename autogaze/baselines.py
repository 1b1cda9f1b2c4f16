"""Baselines: gazes that choose patches without a reconstructor, a given number for every frame.

Each is a pure function of clips and lengths. Within a frame ids rise, coarse to fine. The canvas shows the patch that
was painted last, so fine patches lie on top; learned reconstructors do not depend on the order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from autogaze.draws import clip_generator, patch_orders
from autogaze.gaze import Gaze
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
    """Patches of all scales, each as likely as any other, none twice in a frame.

    frames: uint8 [B, T, S, S, 3]; lengths: int64 [B, T], tokens of each frame. keys: names of the clips. A clip's
    patches depend on its key and the seed alone; a longer gaze includes the patches of a shorter one.
    Raises ValueError for frames, lengths, keys or a seed that do not fit.
    """
    clips, num_frames = as_clips(frames, vocabulary).shape[:2]
    if len(keys) != clips:
        raise ValueError(f"{len(keys)} keys for {clips} clips")
    order = np.empty((clips, num_frames, vocabulary.size), np.int64)
    for b, key in enumerate(keys):
        order[b] = patch_orders(clip_generator(key, seed, "random_patches"), num_frames, vocabulary.size)
    return first_patches(torch.from_numpy(order), lengths, vocabulary)


def coarse_to_fine(
    frames: torch.Tensor | np.ndarray,
    lengths: torch.Tensor | np.ndarray,
    *,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Gaze:
    """All patches of the coarsest scale, then of the next, and so on; those of the last scale are evenly spread.

    frames: uint8 [B, T, S, S, 3], of which only the shape matters; lengths: int64 [B, T], tokens of each frame.
    Raises ValueError for frames or lengths that do not fit.
    """
    clips, num_frames = as_clips(frames, vocabulary).shape[:2]
    return first_patches(_spread(vocabulary).expand(clips, num_frames, -1), lengths, vocabulary)


def frame_difference(
    frames: torch.Tensor | np.ndarray,
    lengths: torch.Tensor | np.ndarray,
    *,
    vocabulary: PatchVocabulary = VOCABULARY,
) -> Gaze:
    """The patches of the finest scale that changed most since the previous frame; in frame 0, those of most contrast.

    Change is the sum of absolute differences over a patch's pixels; contrast is that of their differences from its mean
    colour. Of equals the lowest id comes first. A frame with more tokens than the finest scale has patches gets coarser
    ones too, the finest of them first.

    frames: uint8 [B, T, S, S, 3]; lengths: int64 [B, T], tokens of each frame.
    Raises ValueError for frames or lengths that do not fit.
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
    return first_patches(order, lengths, vocabulary)


def _patches(frame: torch.Tensor, vocabulary: PatchVocabulary) -> torch.Tensor:
    """A frame uint8 [B, S, S, 3] cut into patches of the finest scale: int32 [B, patches, pixels, 3]."""
    grid, side = vocabulary.grids[-1], vocabulary.patch_size
    frame = frame[:, : grid * side, : grid * side]  # pixels beyond are in no patch
    cut = frame.reshape(-1, grid, side, grid, side, 3).transpose(2, 3)
    return cut.reshape(-1, grid * grid, side * side, 3).to(torch.int32)


@lru_cache
def _spread(vocabulary: PatchVocabulary) -> torch.Tensor:
    """All ids, scale by scale; within a scale any number of the first ones is spread evenly. int64 [V]."""
    order = []
    for offset, grid in zip(vocabulary.offsets, vocabulary.grids, strict=True):
        # Roberts' R2 sequence: points that fill the square evenly at every length.
        n = np.arange(64 * grid * grid)
        row, column = (((0.5 + n * step) % 1 * grid).astype(np.int64) for step in (0.7548776662466927, 0.569840290998))
        cells = list(dict.fromkeys((row * grid + column).tolist()))
        cells += sorted(set(range(grid * grid)) - set(cells))
        order += [offset + cell for cell in cells]
    return torch.tensor(order)


def first_patches(order: torch.Tensor, lengths: torch.Tensor | np.ndarray, vocabulary: PatchVocabulary) -> Gaze:
    """The gaze that takes the first `lengths` ids of each frame's order, ids rising within a frame.

    order: int64 [B, T, V] on the CPU, all ids of each frame; lengths: int64 [B, T].
    Raises ValueError for lengths that do not fit.
    """
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
    return Gaze(tokens=taken.nonzero()[:, 2].contiguous(), lengths=lengths, vocabulary=vocabulary)
