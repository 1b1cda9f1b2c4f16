"""What passes between the actors of preprocess: a shard once decoded, and a shard once committed.

Ray Data moves flat rows of arrays, numbers and texts; each of these classes is one such row with its types.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np


class Failure(NamedTuple):
    """Why a clip has no frames: one of pipelines.video.base.REASONS, and a detail. filtered: left out on purpose."""

    reason: str
    detail: str
    filtered: bool = False


@dataclass(frozen=True)
class DecodedShard:
    """A shard between decoding and gazing.

    Attributes:
        shard: its number.
        frames: uint8 [K, T, S, S, 3], of its K planned clips; zero where a clip failed.
        failures: of the clips that failed, by position in the shard.
        jpegs: the encoded frames of the other clips, T for each, clip by clip; [] unless frames are stored as JPEG.
        gazes: what a gaze dataset stores as the gaze of each of them; [] where they are still to be gazed at.
        sources: sha256 of each of them in that dataset.
        began: when decoding began, seconds since 1970.
        seconds: what decoding and encoding took, by name.
        restarts: decoder children that were replaced.
        fallbacks: videos that PyAV decoded in place of the decoder, by reason.
    """

    shard: int
    frames: np.ndarray
    failures: dict[int, Failure]
    jpegs: list[bytes]
    began: float
    seconds: dict[str, float]
    restarts: int
    gazes: list[bytes] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    fallbacks: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> np.ndarray:
        """bool [K]: which clips have frames."""
        return np.array([position not in self.failures for position in range(len(self.frames))], bool)

    def to_row(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "frames": self.frames,
            "failures": json.dumps(self.failures),
            **_joined("encoded", self.jpegs),
            **_joined("gazes", self.gazes),
            "sources": json.dumps(self.sources),
            "began": self.began,
            "decode_seconds": json.dumps(self.seconds),
            "restarts": self.restarts,
            "fallbacks": json.dumps(self.fallbacks),
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> DecodedShard:
        return cls(
            shard=int(row["shard"]),
            frames=row["frames"],
            failures={int(position): Failure(*words) for position, words in json.loads(row["failures"]).items()},
            jpegs=_cut(row, "encoded"),
            gazes=_cut(row, "gazes"),
            sources=json.loads(row["sources"]),
            began=float(row["began"]),
            seconds=json.loads(row["decode_seconds"]),
            restarts=int(row["restarts"]),
            fallbacks=json.loads(row["fallbacks"]),
        )


def _joined(name: str, parts: list[bytes]) -> dict[str, np.ndarray]:
    """Texts as two arrays of a row, which `_cut` reads."""
    # An empty array has no place in Ray's tensor columns: one zero byte, of length 0, stands for none.
    return {
        name: np.frombuffer(b"".join(parts) or b"\0", np.uint8),
        f"{name}_sizes": np.array([len(data) for data in parts] or [0], np.int64),
    }


def _cut(row: dict[str, Any], name: str) -> list[bytes]:
    joined, ends = np.asarray(row[name]), np.cumsum(row[f"{name}_sizes"]).tolist()
    return [joined[begin:end].tobytes() for begin, end in zip([0, *ends[:-1]], ends, strict=True) if end > begin]


@dataclass(frozen=True)
class CommittedShard:
    """What is left of a shard once it is committed: counts.

    Attributes:
        clips, ok: planned, and gazed (or encoded).
        bytes: of the tar and the index.
        frames, tokens: of the ok clips.
        loss, met: final error, and share of frames that met the threshold, each summed over the ok clips; 0 where
            nothing was gazed at.
        failed: clips by reason.
        fallbacks: videos that PyAV decoded in place of the decoder, by reason.
        filtered: clips that were left out on purpose.
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
    filtered: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        texts = {name: json.dumps(getattr(self, name)) for name in ("failed", "seconds", "fallbacks")}
        return vars(self) | texts

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> CommittedShard:
        values = {each.name: row[each.name] for each in fields(cls)}
        texts = {name: json.loads(row[name]) for name in ("failed", "seconds", "fallbacks")}
        return cls(**(values | texts | {"failed": Counter(texts["failed"])}))
