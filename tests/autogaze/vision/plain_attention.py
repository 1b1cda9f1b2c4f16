"""Attention modes as masks, from their definitions, one row and one patch at a time."""

from __future__ import annotations

import torch

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


def mask(gaze: Gaze, mode: str, prefix: int) -> torch.Tensor:
    """Which of the N packed rows of a gaze sees which: bool [N, N]."""
    rows = []  # (clip, frame, id or None for a frame's own token)
    for clip in range(gaze.clips):
        for frame, ids in enumerate(gaze.frames(clip)):
            rows += [(clip, frame, None)] * (prefix if ids else 0) + [(clip, frame, id) for id in ids]
    shown = {
        (clip, frame): visible(gaze.frames(clip)[: frame + 1], gaze.vocabulary)
        for clip in range(gaze.clips)
        for frame in range(gaze.num_frames)
    }

    def sees(one: tuple, other: tuple) -> bool:
        (clip, t, _), (place, s, id) = one, other
        if clip != place or s > t:
            return False
        if s == t or mode == "block_causal":
            return True
        if mode == "first_frame":
            return s == 0
        return mode == "newest" and id is not None and (s, id) in shown[clip, t]

    return torch.tensor([[sees(one, other) for other in rows] for one in rows], dtype=torch.bool)


def visible(frames: list[list[int]], vocabulary: PatchVocabulary) -> set[tuple[int, int]]:
    """(frame, id) of the patches that show at some place after the last frame."""
    found = {}
    for place, (t, id) in _shown(frames, vocabulary).items():
        found[place] = (t, id)
    return set(found.values())


def _shown(frames: list[list[int]], vocabulary: PatchVocabulary) -> dict[tuple[int, int], tuple[int, int]]:
    shown: dict[tuple[int, int], tuple[int, int]] = {}
    finest = vocabulary.grids[-1]
    for t, ids in enumerate(frames):
        for id in sorted(ids):  # coarse to fine, since ids rise with scales
            scale, row, column = vocabulary.locate(id)
            grid = vocabulary.grids[scale]
            for y in range(finest):
                for x in range(finest):
                    if int((y + 0.5) / finest * grid) == row and int((x + 0.5) / finest * grid) == column:
                        shown[y, x] = (t, id)
    return shown


def dense(gaze: Gaze, clip: int, tokens: torch.Tensor, fill: str) -> torch.Tensor:
    """[T, g, g, D] of one clip: place by place. tokens: [M, D] of the clip, in its order."""
    vocabulary, frames = gaze.vocabulary, gaze.frames(clip)
    grid, at, count = vocabulary.grids[-1], {}, 0
    for t, ids in enumerate(frames):
        for id in ids:
            at[t, id] = tokens[count]
            count += 1
    out = torch.zeros(len(frames), grid, grid, tokens.shape[1])
    for t in range(len(frames)):
        for (y, x), (s, id) in _shown(frames[: t + 1], vocabulary).items():
            if fill == "carry" or s == t:
                out[t, y, x] = at[s, id]
    return out
