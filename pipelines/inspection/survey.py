"""A dataset in numbers: its indexes added up, and tokens counted over a sample of its gazes.

Indexes are read shard by shard and only numbers are kept, about 60 bytes a clip, so a survey of millions of clips fits
in memory. How they are shown is the report's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset import shards
from pipelines.dataset.features import FEATURE_REASONS
from pipelines.dataset.shards import Dataset, ShardedDataset
from pipelines.storage import store
from pipelines.video.base import REASONS

SAMPLED_CLIPS = 512  # opened to count tokens by frame position and scale
LISTED_VIDEOS = 25  # for each reason


@dataclass
class FailedClips:
    """All clips with one outcome other than ok, for one reason."""

    outcome: str
    reason: str
    clips: int = 0
    videos: dict[str, str] = field(default_factory=dict)  # name -> a detail, in order of appearance

    @property
    def meaning(self) -> str:
        return (REASONS | FEATURE_REASONS).get(self.reason, "")

    @property
    def listed(self) -> list[tuple[str, str]]:
        return list(self.videos.items())[:LISTED_VIDEOS]


@dataclass
class Survey:
    """What the committed indexes add up to. Arrays hold one number per ok clip, in plan order."""

    committed: int
    bytes: int  # of their tars and indexes
    outcomes: dict[str, int]
    failures: list[FailedClips]
    ratio: np.ndarray  # float32 [N]
    error: np.ndarray  # float32 [N]
    met: np.ndarray  # float32 [N]
    tokens: np.ndarray  # int64 [N]
    frames: np.ndarray  # int64 [N]
    padded: np.ndarray  # int64 [N]
    shard: np.ndarray  # int64 [N]
    position: np.ndarray  # int64 [N]

    @property
    def ok(self) -> int:
        return len(self.ratio)

    @property
    def total_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def total_frames(self) -> int:
        return int(self.frames.sum())

    @property
    def mean_ratio(self) -> float:
        """Of all frames of all ok clips."""
        return self._over_frames(self.ratio)

    @property
    def mean_error(self) -> float:
        return self._over_frames(self.error)

    @property
    def mean_met(self) -> float:
        return self._over_frames(self.met)

    @property
    def reduction(self) -> float:
        """All patches over gazed patches; 0 when none was gazed."""
        return 1 / self.mean_ratio if self.ok and self.mean_ratio else 0.0

    def _over_frames(self, values: np.ndarray) -> float:
        return float(np.average(values.astype(np.float64), weights=self.frames)) if self.ok else 0.0


def take_survey(dataset: Dataset) -> Survey:
    """Read every committed index, a few at a time. Raises PipelineError for one that is damaged."""
    committed = dataset.committed()
    names = ("ratio", "loss", "met", "tokens", "frames", "padded", "shard", "position")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    outcomes = dict.fromkeys(shards.OUTCOMES, 0)
    failures: dict[tuple[str, str], FailedClips] = {}
    for table in dataset.indexes.tables(committed):
        outcome = table["outcome"].to_numpy()
        for name in np.unique(outcome):
            outcomes[str(name)] = outcomes.get(str(name), 0) + int((outcome == name).sum())
        ok = table.filter(pa.array(outcome == "ok"))
        for name in names:
            columns[name].append(ok[name].to_numpy())
        for row in table.filter(pa.array(outcome != "ok")).select(["outcome", "reason", "detail", "video"]).to_pylist():
            key = (row["outcome"], row["reason"] or "unknown")
            failure = failures.setdefault(key, FailedClips(*key))
            failure.clips += 1
            failure.videos.setdefault(row["video"], row["detail"] or "")

    def joined(name: str, kind: type) -> np.ndarray:
        return np.concatenate(columns[name] or [np.zeros(0)]).astype(kind)

    return Survey(
        committed=len(committed),
        bytes=bytes_of(dataset, committed),
        outcomes=outcomes,
        failures=sorted(failures.values(), key=lambda f: (f.outcome, -f.clips, f.reason)),
        ratio=joined("ratio", np.float32),
        error=joined("loss", np.float32),
        met=joined("met", np.float32),
        **{name: joined(name, np.int64) for name in ("tokens", "frames", "padded", "shard", "position")},
    )


def bytes_of(dataset: ShardedDataset, committed: Sequence[int]) -> int:
    """Bytes of the tars and indexes of committed shards."""
    tars = {shards.tar_url(dataset.url, shard) for shard in committed}
    stored = sum(entry.bytes for entry in store.list_objects(dataset.url / "shards") if entry.url in tars)
    return stored + sum(file.entry.bytes for file in dataset.indexes.listing().files)


def representative(ratio: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Up to `count` clips spread evenly from the lowest ratio to the highest, as (place, quantile); ties by place."""
    if not len(ratio) or not count:
        return []
    order = np.argsort(ratio, kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64))
    if count == 1:
        ranks = np.array([(len(order) - 1) // 2])
    return [(int(order[rank]), rank / max(len(order) - 1, 1)) for rank in ranks]


def index_row(dataset: Dataset, survey: Survey, place: int) -> dict[str, Any]:
    """The index row of the ok clip at a place of the survey."""
    table = dataset.read_index(int(survey.shard[place]))
    at = table["position"].to_pylist().index(int(survey.position[place]))
    row: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
    return row


@dataclass
class TokenCounts:
    """Tokens of some clips. counts float64 [T, scales]: mean per clip, by frame position and scale."""

    clips: int
    of: int
    counts: np.ndarray

    @property
    def first(self) -> float:
        return float(self.counts[0].sum()) if len(self.counts) else 0.0

    @property
    def later(self) -> float:
        return float(self.counts[1:].sum(axis=1).mean()) if len(self.counts) > 1 else 0.0


def sample_gazes(dataset: Dataset, survey: Survey) -> TokenCounts:
    """Count tokens by frame position and scale over up to SAMPLED_CLIPS clips, evenly spread over the dataset."""
    places = np.unique(np.linspace(0, survey.ok - 1, min(SAMPLED_CLIPS, survey.ok)).round().astype(np.int64))
    vocabulary, length = dataset.vocabulary, int(survey.frames.max(initial=0))
    counts = np.zeros((length, len(vocabulary.scales)))
    tables: dict[int, pa.Table] = {}
    for place in places:
        shard = int(survey.shard[place])
        if shard not in tables:
            tables = {shard: dataset.read_index(shard)}
        at = tables[shard]["position"].to_pylist().index(int(survey.position[place]))
        gaze = dataset.read_gaze(tables[shard].slice(at, 1).to_pylist()[0])
        frame = np.repeat(np.arange(gaze.num_frames), gaze.lengths[0].numpy())
        level, _, _ = vocabulary.locate(gaze.tokens.numpy())
        np.add.at(counts, (frame, level), 1)
    return TokenCounts(len(places), survey.ok, counts / max(len(places), 1))
