"""The gaze dataset that features are made of, at the version that is encoded: it may grow while that is done."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.dataset.versions import about_bytes, about_of, versions_of
from pipelines.encode.config import EncodeConfig
from pipelines.errors import PipelineError
from pipelines.loading.samples import require_decoder
from pipelines.storage import store


def open_source(config: EncodeConfig, written: Mapping[str, Any] | None) -> tuple[Dataset, Dataset | None]:
    """The gaze dataset at the version that is encoded, and at its newest whole version where that is a newer one.

    What is encoded is the newest whole version, or of features that were begun the one that they were begun from.

    written: dataset.json of the features; None where there are none yet.
    Raises PipelineError unless it is a gaze dataset, the version is whole, and its frames can be had.
    """
    source = shards.open_dataset(config.data)
    if source.about.get("format") not in shards.READABLE_FORMATS:
        raise PipelineError(
            f"data={config.data}: holds format {source.about.get('format')}, this version reads "
            + " and ".join(map(str, shards.READABLE_FORMATS))
        )
    states, committed = _states(source), source.committed()
    whole = [state for state in states if bisect.bisect_left(committed, state.shards) == state.shards]
    encoded = whole[-1] if whole else source
    begun = written and (written.get("source") or {}).get("dataset")
    if begun:
        before = (state for state in states[:-1] if hashlib.sha256(about_bytes(state.about)).hexdigest() == begun)
        encoded = source if sha256_of(source) == begun else next(before, encoded)
    there = bisect.bisect_left(committed, encoded.shards)
    if there != encoded.shards:
        raise PipelineError(
            f"data={config.data}: {there} of its {encoded.shards} shards are committed; finish it with autogaze "
            "preprocess"
        )
    if not source.frames_stored:
        require_decoder(source)
    newer = whole and whole[-1].shards > encoded.shards
    return encoded, whole[-1] if newer else None


def _states(source: Dataset) -> list[Dataset]:
    """The dataset as it was at each of its versions, the last as it is."""
    versions = versions_of(source.about, source.url)[:-1]
    return [*(Dataset(source.url, about_of(source.about, version)) for version in versions), source]


def sha256_of(source: Dataset) -> str:
    """The hash of its dataset.json, also of one at a version before the newest: of what the file was then."""
    stored = store.read(source.url / "dataset.json")
    return hashlib.sha256(stored if json.loads(stored) == source.about else about_bytes(source.about)).hexdigest()
