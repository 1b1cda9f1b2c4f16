"""What the decoders of preprocess make of a shard, without the rest of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.preprocess.decoding import ClipDecoders, Decoding
from pipelines.preprocess.rows import DecodedClip, Effort
from pipelines.video.base import DecodeConfig


@dataclass
class Decoded:
    """The clips of a shard, and what they took."""

    clips: list[DecodedClip]
    effort: Effort

    @property
    def ok(self) -> list[bool]:
        return [clip.frames is not None for clip in self.clips]

    @property
    def frames(self) -> np.ndarray:
        """uint8 [clips, T, S, S, 3]; all must be ok."""
        return np.stack([clip.frames for clip in self.clips if clip.frames is not None])

    @property
    def reasons(self) -> list[str]:
        """Of the clips that failed."""
        return [clip.failure.reason for clip in self.clips if clip.failure is not None]


def decode(plan: DatasetPlan, shard: int, decoding: Decoding | None = None) -> Decoded:
    """Decode a shard; by PyAV, unless told otherwise."""
    effort = Effort()
    with ClipDecoders(plan, decoding or Decoding(DecodeConfig())) as decoders:
        return Decoded(list(decoders.clips(shard, effort)), effort)
