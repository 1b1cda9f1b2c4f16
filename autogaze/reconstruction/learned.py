"""The learned reconstructors: which there are, and of which kind a checkpoint is."""

from __future__ import annotations

import os
from typing import TypeAlias

from autogaze.reconstruction.refiner.config import is_refiner
from autogaze.reconstruction.refiner.reconstructor import Refiner
from autogaze.reconstruction.videomae.reconstructor import VideoMAE

Learned: TypeAlias = VideoMAE | Refiner
"""Beside the interface of all reconstructors they have

- a `frame_loss`, whose targets can be computed beforehand and given to `reconstruct`;
- `errors`, those of `reconstruct` without its pixels;
- `normalised`, which makes the frames that the teachers are given;
- a `config`, and `max_frames`, the longest clip (None: any)."""


def learned_class(place: str | os.PathLike[str]) -> type[VideoMAE] | type[Refiner]:
    """The class that opens a checkpoint, by the config.json in it or beside it; VideoMAE where it does not say."""
    return Refiner if is_refiner(place) else VideoMAE
