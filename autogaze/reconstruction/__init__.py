"""What rebuilds frames from gazed patches and says how far they are from the originals: one interface and `load`.

A reconstructor sees a clip from its first frame to its last, and a frame only through its own and earlier frames'
patches. Two things are asked of it: `reconstruct` a gaze, and answer greedy search (autogaze/greedy.py), which walks a
batch of clips frame by frame and wants the error of the current frame for every token it might take next:

    search = reconstructor.search(frames)         # all clips stand before frame 0
    for t in range(T):
        errors = search.open(t)                   # [B]: frame t with no token of its own
        search.keep(torch.arange(B))              # clips to go on with, as places among those held now
        errors = search.errors()                  # [n, V]: frame t, had the clip taken this token next
        search.take(tokens)                       # [n]: they take it
    # opening the next frame makes frame t part of the past

Errors inside a search are exact and only comparable with each other: integers held in float64 for canvas, the loss
itself for a learned reconstructor. `loss` turns them into the reconstructor's units, and `limit` a threshold in these
units into the largest error that meets it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction.base import Reconstruction, Reconstructor, Search, as_clips

__all__ = ["Reconstruction", "Reconstructor", "Search", "as_clips", "load"]


def load(
    name: str | os.PathLike[str],
    vocabulary: PatchVocabulary = VOCABULARY,
    *,
    teachers: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reconstructor:
    """The reconstructor "canvas", or the learned one of a checkpoint: a folder, or a .safetensors or .pt file.

    teachers: where the models of the feature losses are, as {"dinov2_reg": path or hub id}, for a checkpoint that was
        trained with them. device, dtype: where and how the learned one computes; canvas works where the frames are.

    Raises ValueError, one line, if there is no such thing or it is of another vocabulary.
    """
    # Here, because importing the learned one takes a while.
    from autogaze.reconstruction.canvas import Canvas

    if name == "canvas":
        return Canvas(vocabulary)
    if not Path(name).exists():
        raise ValueError(f"reconstructor {str(name)!r}: neither canvas nor a checkpoint that is there")
    from autogaze.reconstruction.videomae.reconstructor import VideoMAE

    learned = VideoMAE.from_pretrained(name, teachers, device, dtype)
    if learned.vocabulary != vocabulary:
        raise ValueError(f"{name}: rebuilds from {learned.vocabulary}, not from {vocabulary}")
    return learned
