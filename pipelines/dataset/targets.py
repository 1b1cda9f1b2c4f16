"""Targets in shards: teacher features of some original frames of each clip, made by preprocess, read by later jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.targets import Targets, target_frames
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.shards import TARGETS, Dataset
from pipelines.errors import PipelineError


def make_targets(
    clip: str, frames: np.ndarray, members: Sequence[tuple[str, bytes]], count: int, reconstructor: VideoMAE
) -> tuple[str, bytes]:
    """The member with the targets of `count` frames of a clip: uint8 frames [T, S, S, 3] and how they are stored.

    They are of the stored frames, so that they equal what a reader of the shard would compute.
    Raises PipelineError if a teacher's features cannot be stored.
    """
    at = target_frames(clip, len(frames), count)
    jpegs = [member for member in members if member[0].endswith(".jpg")]
    stored = decode_frames(dict(jpegs[t] for t in at)) if jpegs else frames[at]
    assert stored is not None
    try:
        images = reconstructor.normalised(torch.from_numpy(stored)).float()
        return TARGETS, Targets.of(reconstructor.frame_loss, images, at).to_npz()
    except ValueError as error:
        raise PipelineError(f"targets.frames={count}: {clip}: {error}") from error


def read_targets(dataset: Dataset, row: dict[str, Any], loss: FrameLoss | None = None) -> Targets | None:
    """The targets of a clip, from its index row; None where the dataset stores none.

    loss: what they are for; None: anything. Raises PipelineError, in one line, if they are of other teachers than the
    loss's, or cannot be read.
    """
    data = dataset.read_clip(row).get(TARGETS)
    if data is None:
        return None
    try:
        targets = Targets.from_npz(data)
        if loss is not None:
            targets.require(loss)
    except ValueError as error:
        raise PipelineError(f"{row['clip']} of {dataset.url}: {error}") from error
    return targets
