"""What passes between the actors of preprocess: a shard once decoded, and a shard once committed.

Ray Data moves flat rows of arrays, numbers and texts; each of these classes is one such row with its types.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np


class Failure(NamedTuple):
    """Why a clip has no frames: one of pipelines.video.base.REASONS, and a detail."""

    reason: str
    detail: str


@dataclass(frozen=True)
class DecodedShard:
    """A shard between decoding and gazing.

    Attributes:
        shard: its number.
        frames: uint8 [K, T, S, S, 3], of its K planned clips; zero where a clip failed.
        failures: of the clips that failed, by position in the shard.
        jpegs: the encoded frames of the other clips, T for each, clip by clip; [] unless frames are stored as JPEG.
        began: when decoding began, seconds since 1970.
        seconds: what decoding and encoding took, by name.
        restarts: decoder children that were replaced.
    """

    shard: int
    frames: np.ndarray
    failures: dict[int, Failure]
    jpegs: list[bytes]
    began: float
    seconds: dict[str, float]
    restarts: int

    @property
    def ok(self) -> np.ndarray:
        """bool [K]: which clips have frames."""
        return np.array([position not in self.failures for position in range(len(self.frames))], bool)

    def to_row(self) -> dict[str, Any]:
        # An empty array has no place in Ray's tensor columns: one zero byte, of length 0, stands for no JPEG.
        return {
            "shard": self.shard,
            "frames": self.frames,
            "failures": json.dumps(self.failures),
            "encoded": np.frombuffer(b"".join(self.jpegs) or b"\0", np.uint8),
            "encoded_sizes": np.array([len(data) for data in self.jpegs] or [0], np.int64),
            "began": self.began,
            "decode_seconds": json.dumps(self.seconds),
            "restarts": self.restarts,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> DecodedShard:
        encoded, ends = np.asarray(row["encoded"]), np.cumsum(row["encoded_sizes"]).tolist()
        begins = [0, *ends[:-1]]
        return cls(
            shard=int(row["shard"]),
            frames=row["frames"],
            failures={int(position): Failure(*words) for position, words in json.loads(row["failures"]).items()},
            jpegs=[encoded[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True) if end > begin],
            began=float(row["began"]),
            seconds=json.loads(row["decode_seconds"]),
            restarts=int(row["restarts"]),
        )


@dataclass(frozen=True)
class CommittedShard:
    """What is left of a shard once it is committed: counts.

    Attributes:
        clips, ok: planned, and gazed.
        bytes: of the tar and the index.
        frames, tokens: of the ok clips.
        loss, met: final error, and share of frames that met the threshold, each summed over the ok clips.
        failed: clips by reason.
        seconds: busy seconds by stage and part.
        began, ended: when its decoding began and its commit ended, seconds since 1970.
    """

    shard: int
    clips: int
    bytes: int
    ok: int
    frames: int
    tokens: int
    loss: float
    met: float
    failed: Counter[str]
    restarts: int
    seconds: dict[str, float]
    began: float
    ended: float

    def to_row(self) -> dict[str, Any]:
        return vars(self) | {"failed": json.dumps(self.failed), "seconds": json.dumps(self.seconds)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> CommittedShard:
        values = {field.name: row[field.name] for field in fields(cls)}
        texts = {"failed": Counter(json.loads(row["failed"])), "seconds": json.loads(row["seconds"])}
        return cls(**(values | texts))
