"""What is wrong with a clip of token features, given its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.dataset.features import ClipFeatures, FeatureDataset, as_float32
from pipelines.dataset.members import BadSample, split_members


def check_features(dataset: FeatureDataset, row: Mapping[str, Any], data: bytes) -> list[str]:
    """Problems of one ok clip, in words. row: of its index. data: the bytes that it names, their hash checked."""
    try:
        features = dataset.features_of(row, split_members(data, str(row["clip"])))
    except BadSample as error:
        return [str(error)]
    return [*_of_places(dataset, features, int(row["frames"])), *_of_values(features)]


def _of_places(dataset: FeatureDataset, features: ClipFeatures, frames: int) -> list[str]:
    """Frames must not fall, and lie in the clip; ids lie in the vocabulary, and have the scale that is stored."""
    vocabulary, problems = dataset.vocabulary, []
    frame, patch = features.frame, features.id
    if len(frame) and (frame[0] < 0 or frame[-1] >= frames or bool((np.diff(frame) < 0).any())):
        problems.append(f"its tokens' frames do not rise from 0 to {frames - 1}")
    if len(patch) and (int(patch.min()) < 0 or int(patch.max()) >= vocabulary.size):
        problems.append(f"its ids lie in {int(patch.min())}..{int(patch.max())}, not in 0..{vocabulary.size - 1}")
    elif (np.searchsorted(vocabulary.offsets, patch, "right") - 1 != features.scale).any():
        problems.append("its scales are not those of its ids")
    return problems


def _of_values(features: ClipFeatures) -> list[str]:
    named = {**features.layers, **{f"pooled_{name}": values for name, values in features.pooled.items()}}
    return [
        f"{name} holds NaN or infinity" for name, values in named.items() if not np.isfinite(as_float32(values)).all()
    ]
