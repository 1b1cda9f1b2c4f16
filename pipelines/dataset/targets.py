"""Targets in shards: teachers' features of a few frames of each clip, made by preprocess and read by later jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autogaze.reconstruction.learned import Learned
from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.targets import Targets, target_frames
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.shards import TARGETS, Dataset
from pipelines.errors import PipelineError


def make_targets(
    clip: str, frames: np.ndarray, members: Sequence[tuple[str, bytes]], count: int, reconstructor: Learned
) -> tuple[str, bytes]:
    """The member that holds the targets of `count` frames of a clip.

    Targets are of the frames as stored, after JPEG, so that a reader of the shard would compute the same.

    Args:
        clip: its name, which fixes which frames are taken.
        frames: uint8 [T, S, S, 3], before they were encoded.
        members: of the clip, its encoded frames among them.
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

    loss: whose teachers they must be of; None: any.
    Raises PipelineError, in one line, if they are of other teachers, or cannot be read.
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
