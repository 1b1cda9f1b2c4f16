"""A dataset of features in numbers: its indexes added up, and tokens counted over a sample of its clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.dataset import shards
from pipelines.dataset.features import FeatureDataset
from pipelines.inspection.survey import FailedClips, TokenCounts, bytes_of

_OPENED_CLIPS = 64  # opened to count tokens by frame and scale


@dataclass
class FeatureSurvey:
    """What the committed indexes add up to.

    Attributes:
        bytes: of their tars and indexes.
        tokens, frames: int64 [N], of each ok clip, in plan order.
        sample: tokens by frame position and scale, from some of them.
    """

    committed: int
    bytes: int
    outcomes: dict[str, int]
    failures: list[FailedClips]
    tokens: np.ndarray
    frames: np.ndarray
    sample: TokenCounts

    @property
    def per_frame(self) -> float:
        """Tokens of a frame, mean over all frames of all ok clips."""
        frames = int(self.frames.sum())
        return int(self.tokens.sum()) / frames if frames else 0.0


def survey_features(dataset: FeatureDataset) -> FeatureSurvey:
    """Read every committed index, and some clips. Raises PipelineError for what is damaged."""
    committed = dataset.committed()
    outcomes = dict.fromkeys(shards.OUTCOMES, 0)
    failures: dict[tuple[str, str], FailedClips] = {}
    tokens, frames, ok = [], [], 0
    every = max(1, -(-dataset.plan.clips // _OPENED_CLIPS))
    length = dataset.plan.frames
    counts, opened = np.zeros((length, len(dataset.vocabulary.scales))), 0
    for table in dataset.indexes.tables(committed):
        for row in table.to_pylist():
            outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + 1
            if row["outcome"] != "ok":
                key = row["outcome"], row["reason"] or "unknown"
                failure = failures.setdefault(key, FailedClips(*key))
                failure.clips += 1
                failure.videos.setdefault(row["video"], row["detail"] or "")
                continue
            tokens.append(row["tokens"])
            frames.append(row["frames"])
            if ok % every == 0:
                features = dataset.read_features(row)
                np.add.at(counts, (features.frame, features.scale), 1)
                opened += 1
            ok += 1
    return FeatureSurvey(
        committed=len(committed),
        bytes=bytes_of(dataset, committed),
        outcomes=outcomes,
        failures=sorted(failures.values(), key=lambda f: (f.outcome, -f.clips, f.reason)),
        tokens=np.array(tokens, np.int64),
        frames=np.array(frames, np.int64),
        sample=TokenCounts(opened, ok, counts / max(opened, 1)),
    )
