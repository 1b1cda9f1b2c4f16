"""Reading a clip to measure something on: its frames and its gaze."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autogaze.gaze import Gaze
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError


def read_clip(dataset: Dataset, row: Mapping[str, Any]) -> tuple[np.ndarray, Gaze]:
    """Frames uint8 [T, S, S, 3] of a clip, and the tokens of its gaze. row: of its index.

    Raises PipelineError: it cannot be read, or its frames were not stored.
    """
    members = dataset.read_clip(row)
    frames, gaze = dataset.frames_of(row, members), dataset.gaze_of(row, members)
    if frames is None:
        raise PipelineError(f"{row['clip']}: its frames were not stored; preprocess with frames=jpeg or frames=raw")
    return frames, Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary)
