"""Reading clips to measure something on: their frames and their gaze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autogaze.gaze import Gaze
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Some clips of a dataset. keys: their names. frames: uint8 [B, T, S, S, 3]. stored: their gaze, tokens only."""

    keys: list[str]
    frames: np.ndarray
    stored: Gaze


def read_batches(dataset: Dataset, rows: Sequence[Mapping[str, Any]], batch: int) -> Iterator[ClipBatch]:
    """The clips of index rows, `batch` at a time; all have the same number of frames. Raises as `read_clip` does."""
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        clips = [read_clip(dataset, row) for row in part]
        frames = np.stack([clip for clip, _ in clips])
        yield ClipBatch([str(row["clip"]) for row in part], frames, Gaze.cat([gaze for _, gaze in clips]))


def read_clip(dataset: Dataset, row: Mapping[str, Any]) -> tuple[np.ndarray, Gaze]:
    """Frames uint8 [T, S, S, 3] of a clip, and the tokens of its gaze. row: of its index.

    Raises PipelineError: it cannot be read, or its frames were not stored.
    """
    members = dataset.read_clip(row)
    frames, gaze = dataset.frames_of(row, members), dataset.gaze_of(row, members)
    if frames is None:
        raise PipelineError(f"{row['clip']}: its frames were not stored; preprocess with frames=jpeg or frames=raw")
    return frames, Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary)
