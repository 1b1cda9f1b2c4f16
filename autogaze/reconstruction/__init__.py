"""Reconstructors: they rebuild frames from gazed patches and measure how far these are from the originals.

A reconstructor rebuilds a frame from the patches of that frame and of earlier ones. It does two things: `reconstruct` a
gaze, and serve a greedy search (autogaze/greedy.py). The search goes through a batch of clips frame by frame, and needs
the error of the current frame for every token that might come next:

    search = reconstructor.search(frames)         # no frame is open yet
    for t in range(T):
        errors = search.open(t)                   # [B]: frame t without a token of its own
        search.keep(torch.arange(B))              # the clips to go on with, as places among those held now
        errors = search.errors()                  # [n, V]: frame t with each token as its next
        search.take(tokens)                       # [n]: the token that each clip takes
    # opening the next frame makes frame t part of the past

Errors within a search are exact, and comparable only with each other: whole numbers in float64 for the canvas, the loss
itself for a learned reconstructor. `loss` converts them to the reconstructor's units; `limit` converts a threshold in
these units to the largest error that meets it.
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
    weights: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    to_train: bool = False,
) -> Reconstructor:
    """The reconstructor "canvas", or the learned one of a checkpoint: a folder, or a .safetensors or .pt file.

    teachers: the models of the feature losses, as {"dinov2_reg": path or hub id}, for a checkpoint that was trained
        with them. weights: to go on with another loss than it was trained with, see
        autogaze.reconstruction.losses.reweighted. device, dtype: of the learned one's computations (the refiner's are
        float32, its teachers' dtype); the canvas works on the device of the frames. to_train:
        the folder may also be transformers' ViT-MAE of images, which a VideoMAE can begin from.

    Raises ValueError, in one line, if there is no such checkpoint or it has another vocabulary.
    """
    # Imported here, because the learned one takes a while.
    from autogaze.reconstruction.canvas import Canvas

    if name == "canvas":
        return Canvas(vocabulary)
    if not Path(name).exists():
        raise ValueError(f"reconstructor {str(name)!r}: neither canvas nor an existing checkpoint")
    from autogaze.reconstruction.learned import Learned, learned_class
    from autogaze.reconstruction.videomae.reconstructor import VideoMAE
    from autogaze.reconstruction.videomae.vit_mae import is_vit_mae

    learned: Learned
    if to_train and is_vit_mae(name):
        learned = VideoMAE.from_vit_mae(name, teachers, device, weights)
    else:
        learned = learned_class(name).from_pretrained(name, teachers, device, dtype, weights)
    if learned.vocabulary != vocabulary:
        raise ValueError(f"{name}: rebuilds from {learned.vocabulary}, not from {vocabulary}")
    return learned
