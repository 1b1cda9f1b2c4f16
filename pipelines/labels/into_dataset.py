"""A dataset whose gaze comes from labels: the plan and the frames of another, gazed by what label files say.

Shard by shard, with the guarantees of preprocess: the index last, and what is missing made by the same command again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset, Outcome, read_members
from pipelines.errors import PipelineError
from pipelines.labels.files import Labels
from pipelines.labels.keys import clip_key
from pipelines.storage import store, urls

UNKNOWN_UNITS = "as in the labels, which do not say"


def describe_import(dataset: Dataset, labels: Labels, threshold: float) -> dict[str, Any]:
    """dataset.json of the new dataset: that of the one whose frames it has, but for what tells of the gaze.

    Stored targets are of the frames, so what they are made with stays true.
    """
    models = {name: facts for name, facts in (dataset.about.get("models") or {}).items() if name == "targets"}
    config = dict(dataset.about.get("config") or {}) | {"gaze": "labels", "threshold": threshold, "max_ratio": None}
    return dataset.about | {
        "config": config,
        "models": models | {"labels": labels.files},
        "units": labels.units or UNKNOWN_UNITS,
    }


def begin(dataset: Dataset, output: str, about: dict[str, Any]) -> list[int]:
    """Write down what the new dataset is, or find that it is there; the shards that are still to be made.

    Raises PipelineError: the dataset is not complete, or the output is another's or cannot be written.
    """
    planned = sorted(set(dataset.plan["shard"].tolist()))
    done = dataset.committed()
    if done != planned:
        raise PipelineError(
            f"{dataset.url}: {len(done)} of its {len(planned)} shards are committed; finish it with autogaze preprocess"
        )
    store.require_writable(output)
    place = urls.join(output, "dataset.json")
    if store.exists(place):
        there = shards.open_dataset(output).about
        differing = [name for name in sorted(there.keys() | about.keys()) if there.get(name) != about.get(name)]
        if differing:
            raise PipelineError(
                f"output={output}: holds a dataset that differs in {', '.join(differing)}; choose another output"
            )
    elif shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    else:
        for name in ("manifest.parquet", "plan.parquet"):
            source = urls.join(dataset.url, name)
            if name == "plan.parquet" or store.exists(source):
                store.publish(store.read(source), urls.join(output, name))
        store.publish(json.dumps(about, indent=1, sort_keys=True).encode() + b"\n", place)
    for folder in (output, urls.join(output, "shards"), urls.join(output, "index")):
        store.remove_temporaries(folder)
    there_now = set(shards.committed_shards(output))
    return [shard for shard in planned if shard not in there_now]


def make(
    dataset: Dataset,
    output: str,
    missing: list[int],
    labels: Labels,
    vocabulary: PatchVocabulary,
    threshold: float,
    threads: int = 4,
    on_shard: Callable[[], None] | None = None,
) -> Counter[str]:
    """Make and commit shards, `threads` at once; how many clips came to each outcome.

    Raises PipelineError: a clip of the dataset cannot be read, the output is full or denied.
    """
    outcomes: Counter[str] = Counter()
    plan = {int(shard): rows for shard, rows in dataset.plan.groupby("shard")}
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(_make_shard, dataset, output, plan[n], labels, vocabulary, threshold) for n in missing]
        try:
            for future in pending:
                outcomes.update(future.result())
                if on_shard is not None:
                    on_shard()
        except BaseException:  # also when interrupted: what has not begun is left for the next run
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _make_shard(
    dataset: Dataset, output: str, planned: pd.DataFrame, labels: Labels, vocabulary: PatchVocabulary, threshold: float
) -> Counter[str]:
    shard = int(planned["shard"].iloc[0])
    made = []
    for row in shards.read_index(dataset.url, shard).to_pylist():
        if row["outcome"] != "ok":
            filtered = row["outcome"] == "filtered"
            made.append(Outcome(reason=row["reason"], detail=row["detail"], filtered=filtered))
        elif row["clip"] in labels.gazes:
            # All that is stored of the clip but its description and its gaze, which are written anew.
            members = read_members(dataset, row)
            kept = [(suffix, data) for suffix, data in members.items() if suffix not in ("json", "gaze.npz")]
            made.append(Outcome(gaze=Gaze.from_npz(labels.gazes[row["clip"]], vocabulary), members=kept))
        else:
            key = clip_key(row["video"], row["start"], row["tile"])
            made.append(Outcome(reason="no_label", detail=f"the labels have no {key}", filtered=True))
    tar, index = shards.build_shard(planned.reset_index(drop=True), made, threshold)
    shards.commit_shard(output, shard, tar, index)
    return Counter(outcome.name for outcome in made)
