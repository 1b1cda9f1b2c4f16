"""Gazes made for a network's features: patches of each frame chosen where what is known of it has gone stale.

Pixels say where features change, if changes are weighed by contrast: a small change of a flat wall moves its feature
as far as a large one of a lawn. Each is a pure function of clips and lengths; ids of a frame rise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autogaze.draws import clip_generator
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.base import as_clips
from autogaze.vision.plan import covered_places

FLAT = 8.0
"""Grey levels of contrast that are added to a patch's own, so that noise on a flat patch does not count as change."""
UNSEEN = 1.0
"""Loss (1 - cosine) of a place that nothing has shown yet."""
MOVED = 0.12
"""Expected loss, on average over a frame, above which coarse patches are worth their own loss."""


def loss_of_change(change: Tensor) -> Tensor:
    """What a feature loses, as 1 - cosine, where its patch changed so much relative to its contrast.

    Measured with DINOv2-small (docs/vision.md): little up to 0.35, then a quarter of the change, up to 0.45 more.
    """
    return 0.04 * change + (0.27 * (change - 0.35)).clamp(0, 0.45)


def loss_of_scale(share: float) -> float:
    """What a feature loses, as 1 - cosine, when seen at a scale of so many patches a side, of those of the finest.

    Measured with DINOv2-small: 0.14 to 0.25 at half the finest scale, 0.26 to 0.51 at a quarter, whole frames alone.
    """
    return 0.03 + 0.19 * float(math.log2(1 / share) ** 1.3)


def stalest(frames: Tensor | np.ndarray, lengths: Tensor | np.ndarray, *, vocabulary: PatchVocabulary) -> Gaze:
    """Patches of any scale that remove most expected loss of the dense map, one after another.

    Each place of the finest grid is expected to lose what the scale it was last seen at loses, and what its pixels
    changed since. A patch is worth what all places it shows gain. A frame gets fewer patches than `lengths` where no
    patch is worth anything any more. Of equals the lowest id comes first.

    What is expected of coarse patches beside fine ones is too good, so only a frame whose mean expected loss is
    above MOVED gets any, and none that has room for every place at the finest scale.

    frames: uint8 [B, T, S, S, 3] at the vocabulary's frame size; lengths: int64 [B, T], most patches of each frame.
    Raises ValueError for frames or lengths that make no sense.
    """
    clips, counts = _checked(frames, lengths, vocabulary, vocabulary.size)
    places = covered_places(vocabulary).to(clips.device)
    there = places >= 0
    after = torch.tensor([loss_of_scale(grid / vocabulary.grids[-1]) for grid in vocabulary.grids], device=clips.device)
    after = after.repeat_interleave(torch.tensor(vocabulary.counts, device=clips.device))
    row = torch.arange(len(clips), device=clips.device)
    base = torch.full((len(clips), vocabulary.counts[-1]), UNSEEN, device=clips.device)
    seen = torch.zeros(1, device=clips.device)
    chosen = []
    for t in range(clips.shape[1]):  # frame by frame, since floats take four times the room of bytes
        now = _patches(clips[:, t], vocabulary)
        seen = seen if t else now.clone()
        loss = base + loss_of_change(_change(seen, now))
        coarse = (loss.mean(dim=1) > MOVED) & (counts[:, t] < vocabulary.counts[-1])
        taken = torch.zeros(len(clips), vocabulary.size, dtype=torch.bool, device=clips.device)
        for step in range(int(counts[:, t].max())):
            gain = ((loss[:, places] - after[:, None]).clamp(min=0) * there).sum(dim=2).masked_fill(taken, 0)
            gain[:, : vocabulary.offsets[-1]] *= coarse[:, None]
            best, id = gain.max(dim=1)
            goes = (best > 1e-6) & (counts[:, t] > step)
            if not bool(goes.any()):
                break
            taken[row[goes], id[goes]] = True
            for clip in row[goes].tolist():
                shown = places[id[clip]][there[id[clip]]]
                fresh = shown[loss[clip, shown] > after[id[clip]]]
                loss[clip, fresh] = base[clip, fresh] = after[id[clip]]
        # As the dense map has it: what a taken patch covers is new, whatever it was before.
        finest = torch.full_like(base, torch.inf)
        for clip, id in taken.nonzero().tolist():
            shown = places[id][there[id]]
            finest[clip, shown] = after[id]
        covered = finest < torch.inf
        base = torch.where(covered, finest, base)
        seen = torch.where(covered[..., None], now, seen)
        chosen.append(taken)
    return _gaze(torch.stack(chosen, dim=1), vocabulary)


def changed_most(
    frames: Tensor | np.ndarray,
    lengths: Tensor | np.ndarray,
    *,
    vocabulary: PatchVocabulary,
    contrast: bool = True,
) -> Gaze:
    """Finest patches whose pixels differ most from what was last gazed at their place; before that, from grey.

    The difference is the mean absolute one over a patch's pixels, divided by their deviation plus FLAT; contrast=False
    leaves that division out, and is the canvas's error. Of equals the lowest id comes first; ids of a frame rise.

    frames: uint8 [B, T, S, S, 3] at the vocabulary's frame size; lengths: int64 [B, T], at most a finest grid each.
    Raises ValueError for frames or lengths that make no sense.
    """
    clips, counts = _checked(frames, lengths, vocabulary, vocabulary.counts[-1])
    seen = torch.full((1,), 128.0, device=clips.device)
    chosen = []
    for t in range(clips.shape[1]):
        now = _patches(clips[:, t], vocabulary)
        error = _change(seen, now) if contrast else (now - seen).abs().mean(dim=2)
        rank = error.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        taken = rank < counts[:, t, None]
        seen = torch.where(taken[..., None], now, seen)
        chosen.append(taken)
    return _finest(torch.stack(chosen, dim=1), vocabulary)


def random_places(
    frames: Tensor | np.ndarray,
    lengths: Tensor | np.ndarray,
    keys: Sequence[str],
    *,
    vocabulary: PatchVocabulary,
    seed: int = 0,
) -> Gaze:
    """Finest patches, each as likely as any other; of a clip by its key and the seed. The rest as `changed_most`."""
    clips, counts = _checked(frames, lengths, vocabulary, vocabulary.counts[-1])
    if len(keys) != len(clips):
        raise ValueError(f"{len(keys)} keys for {len(clips)} clips")
    shape = (clips.shape[1], vocabulary.counts[-1])
    ranks = np.stack([clip_generator(key, seed, "random_places").random(shape).argsort(axis=1) for key in keys])
    return _finest(torch.from_numpy(ranks).to(counts.device) < counts[..., None], vocabulary)


def _patches(frame: Tensor, vocabulary: PatchVocabulary) -> Tensor:
    """uint8 [B, S, S, 3] as the finest patches: float32 [B, g * g, p * p * 3]."""
    grid, side = vocabulary.grids[-1], vocabulary.patch_size
    frame = frame[:, : grid * side, : grid * side]  # pixels beyond are in no patch
    cut = frame.reshape(-1, grid, side, grid, side, 3).transpose(2, 3)
    return cut.reshape(len(frame), grid * grid, -1).float()


def _change(seen: Tensor, now: Tensor) -> Tensor:
    """Mean absolute difference of patches, relative to their contrast: [B, g * g]."""
    return (now - seen).abs().mean(dim=2) / (now.std(dim=2, correction=0) + FLAT)


def _checked(
    frames: Tensor | np.ndarray, lengths: Tensor | np.ndarray, vocabulary: PatchVocabulary, most: int
) -> tuple[Tensor, Tensor]:
    clips = as_clips(frames, vocabulary)
    counts = torch.as_tensor(lengths)
    if counts.shape != clips.shape[:2] or counts.is_floating_point():
        wanted = list(clips.shape[:2])
        raise ValueError(f"lengths must be whole numbers {wanted}, not {counts.dtype} {list(counts.shape)}")
    if int(counts.min()) < 0 or int(counts.max()) > most:
        raise ValueError(f"lengths lie in 0..{most}; found {int(counts.min())}..{int(counts.max())}")
    return clips, counts.to(clips.device, torch.int64)


def _finest(taken: Tensor, vocabulary: PatchVocabulary) -> Gaze:
    """The gaze of a mask of the finest grid: bool [B, T, g * g]."""
    coarser = taken.new_zeros(*taken.shape[:2], vocabulary.offsets[-1])
    return _gaze(torch.cat((coarser, taken), dim=2), vocabulary)


def _gaze(taken: Tensor, vocabulary: PatchVocabulary) -> Gaze:
    """The gaze of a mask of all patches: bool [B, T, V]."""
    return Gaze(tokens=taken.nonzero()[:, 2].cpu(), lengths=taken.sum(dim=2).cpu(), vocabulary=vocabulary)
