"""Write a dataset's gaze as label files in the reference's format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.labels.keys import clip_key, require_distinct
from pipelines.storage import store

_SHARDS_AT_ONCE = 4


@dataclass
class Exported:
    """How many clips are in the file, and why the others are not."""

    clips: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by reason


def export_labels(
    dataset: Dataset, url: str, full_keys: bool = False, on_shard: Callable[[int, int], None] | None = None
) -> Exported:
    """Write the gaze of a dataset's ok clips as one label file, which appears complete or not at all.

    full_keys: name videos by their whole paths, which the reference does not.
    on_shard: called with the number of shards done, and of all.
    Raises PipelineError: two videos with one key, a clip that cannot be read, nothing to export, output not writable.
    """
    if not full_keys:
        require_distinct(dataset.plan.uris)
    units, shards, done = dataset.about.get("units"), dataset.committed(), Exported()
    with store.publishing(url) as out, ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        before = "{\n"
        for begin in range(0, len(shards), _SHARDS_AT_ONCE):
            part = shards[begin : begin + _SHARDS_AT_ONCE]
            for number, labels in enumerate(pool.map(lambda shard: _labels_of(dataset, shard, full_keys), part)):
                for key, label in labels:
                    if isinstance(label, str):
                        done.left_out[label] += 1
                        continue
                    # json.dumps escapes all that is not ASCII, so the file is valid whatever a video is called.
                    text = json.dumps(label | ({"units": units} if units else {}))
                    out.write(f"{before}{json.dumps(key)}: {text}".encode())
                    before, done.clips = ",\n", done.clips + 1
                if on_shard is not None:
                    on_shard(begin + number + 1, len(shards))
        if not done.clips:
            reasons = ", ".join(f"{count} {reason}" for reason, count in done.left_out.items())
            raise PipelineError(f"{dataset.url}: no clip in it can be a label ({reasons or 'no shard is committed'})")
        out.write(b"\n}\n")
    return done


def _labels_of(dataset: Dataset, shard: int, full_keys: bool) -> list[tuple[str, dict[str, Any] | str]]:
    """(key, label) of each clip of a shard; where there is no label, the reason in its place."""
    labels: list[tuple[str, dict[str, Any] | str]] = []
    for row in dataset.read_index(shard).to_pylist():
        key = clip_key(row["video"], row["start"], row["tile"], full_keys)
        if row["outcome"] != "ok":
            labels.append((key, row["outcome"]))
            continue
        gaze = dataset.read_gaze(row)
        if gaze.losses is None:
            labels.append((key, "without losses"))
            continue
        label = gaze.to_label(0) | {"start": row["start"], "stride": row["stride"]}
        if gaze.initial is not None:
            label["initial_losses"] = gaze.initial[0].tolist()
        if gaze.places is not None and gaze.slots is not None:
            label["places"] = [part.tolist() for part in gaze.places.split(gaze.lengths[0].tolist())]
            label["slots"] = gaze.slots[0].tolist()
        label |= {"scales": list(dataset.vocabulary.scales), "patch_size": dataset.vocabulary.patch_size}
        labels.append((key, label))
    return labels
