"""What a run of preprocess has done so far, added up shard by shard."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.preprocess.rows import CommittedShard


@dataclass
class Totals:
    """Sums over the shards that a run has committed: see CommittedShard.

    Attributes:
        shards: those whose rows are counted. newest: the one that was added last.
        began: when the first decoding began, seconds since 1970; infinite before.
        first_commit, last_commit: when the first and the last shard were committed.
        making: clips that are done in shards that are not committed yet, as far as it is known.
    """

    shards: set[int] = field(default_factory=set)
    newest: int = -1
    clips: int = 0
    bytes: int = 0
    ok: int = 0
    frames: int = 0
    tokens: int = 0
    loss: float = 0.0
    met: float = 0.0
    restarts: int = 0
    filtered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = float("inf")
    first_commit: float = float("inf")
    last_commit: float = 0.0
    making: int = 0

    def in_the_making(self, clips: int) -> None:
        """Note how many clips are done in shards that are not committed yet. Another thread may read it."""
        self.making = clips

    def add(self, shard: CommittedShard) -> None:
        self.shards.add(shard.shard)
        self.newest = shard.shard
        for name in ("clips", "bytes", "ok", "frames", "tokens", "loss", "met", "restarts", "filtered"):
            setattr(self, name, getattr(self, name) + getattr(shard, name))
        # New ones, since threads that show progress may be reading these.
        self.failed = self.failed + shard.failed
        self.fallbacks = self.fallbacks + Counter(shard.fallbacks)
        more = {stage: self.seconds.get(stage, 0.0) + spent for stage, spent in shard.seconds.items()}
        self.seconds = self.seconds | more
        self.began = min(self.began, shard.began)
        self.first_commit = min(self.first_commit, shard.ended)
        self.last_commit = max(self.last_commit, shard.ended)

    def add_index(self, shard: int, index: pa.Table) -> None:
        """Count a shard by its index, without times: it was committed, and the run interrupted before it was told."""
        self.shards.add(shard)
        rows = index.to_pandas()
        ok = rows[rows["outcome"] == "ok"]
        self.clips += len(rows)
        self.ok += len(ok)
        self.filtered += int((rows["outcome"] == "filtered").sum())
        self.failed.update(rows["reason"][rows["outcome"] == "failed"])
        self.frames += int(ok["frames"].sum())
        self.tokens += int(ok["tokens"].sum())

    @property
    def span(self) -> float:
        """Seconds from the first decoding to the last commit."""
        return self.last_commit - self.began

    def speed_of_light(self, workers: dict[str, int]) -> tuple[str, float]:
        """(slowest stage, rate of the whole / rate of that stage alone with its workers always busy)."""
        busy = {stage: self.seconds[stage] / count for stage, count in workers.items()}
        slowest = max(busy, key=lambda stage: busy[stage])
        return slowest, busy[slowest] / self.span if self.span > 0 else 0.0
