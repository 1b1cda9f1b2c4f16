"""What making a shard passes on: its clips once decoded, and the counts that are left once it is committed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from pipelines.preprocess.stopwatch import Stopwatch


class Failure(NamedTuple):
    """Why a clip has no frames: one of pipelines.video.base.REASONS, and a detail. filtered: left out on purpose."""

    reason: str
    detail: str
    filtered: bool = False


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A planned clip once it is decoded.

    Attributes:
        row: of the plan.
        frames: uint8 [T, S, S, 3]; None where the clip failed.
        failure: why.
        jpegs: its frames encoded, T of them; [] unless they are stored as JPEG.
        gaze: what a gaze dataset stores as its gaze; b"" where it is still to be gazed at.
        source: sha256 of the clip in that dataset.
    """

    row: Mapping[str, Any]
    frames: np.ndarray | None
    failure: Failure | None = None
    jpegs: list[bytes] = field(default_factory=list)
    gaze: bytes = b""
    source: str = ""

    @property
    def name(self) -> str:
        return str(self.row["clip"])


@dataclass
class Effort:
    """What making a shard has taken so far.

    Attributes:
        began: when its first video was begun, seconds since 1970.
        seconds: busy seconds by stage and part.
        restarts: decoder children that were replaced.
        fallbacks: videos that PyAV decoded in place of the decoder, by reason.
    """

    began: float = field(default_factory=time.time)
    seconds: Stopwatch = field(default_factory=Stopwatch)
    restarts: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Effort) -> None:
        """Count what another thread did for the same shard."""
        for name, spent in other.seconds.items():
            self.seconds[name] += spent
        self.restarts += other.restarts
        self.fallbacks.update(other.fallbacks)


@dataclass
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
    clips: int = 0
    bytes: int = 0
    ok: int = 0
    frames: int = 0
    tokens: int = 0
    loss: float = 0.0
    met: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    filtered: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)

    def count(self, frames: int, tokens: int) -> None:
        """Count a clip that is ok."""
        self.clips += 1
        self.ok += 1
        self.frames += frames
        self.tokens += tokens

    def count_failure(self, reason: str, filtered: bool = False) -> None:
        """Count a clip that failed, or was left out on purpose."""
        self.clips += 1
        if filtered:
            self.filtered += 1
        else:
            self.failed[reason] += 1

    def committed(self, size: int, effort: Effort) -> CommittedShard:
        """Itself, now that the shard is committed. size: of the tar and the index."""
        self.bytes, self.began, self.ended = size, effort.began, time.time()
        self.restarts, self.seconds, self.fallbacks = effort.restarts, effort.seconds, dict(effort.fallbacks)
        return self

    def to_row(self) -> dict[str, Any]:
        """As Ray Data moves it: a flat row of numbers and texts."""
        texts = {name: json.dumps(getattr(self, name)) for name in ("failed", "seconds", "fallbacks")}
        return vars(self) | texts

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> CommittedShard:
        values = {each.name: row[each.name] for each in fields(cls)}
        texts = {name: json.loads(row[name]) for name in ("failed", "seconds", "fallbacks")}
        return cls(**(values | texts | {"failed": Counter(texts["failed"])}))
