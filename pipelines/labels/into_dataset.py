"""A dataset whose gaze comes from label files, and whose plan and frames come from another dataset.

It is made shard by shard as preprocess makes one: the index is written last, and the same command again makes what is
missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipelines.dataset import shards
from pipelines.dataset.indexes import INDEX_SCHEMA
from pipelines.dataset.shards import Dataset, Outcome, copy_planned
from pipelines.dataset.versions import about_bytes
from pipelines.errors import PipelineError
from pipelines.labels.files import Labels
from pipelines.labels.keys import clip_key
from pipelines.storage import store
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.reconstruction.base import Reconstructor

UNKNOWN_UNITS = "as in the labels, which do not say"


def describe_import(
    dataset: Dataset, labels: Labels, threshold: float, measurer: Reconstructor | None = None
) -> dict[str, Any]:
    """dataset.json of the new dataset: that of the old one, except for what describes the gaze.

    What describes stored targets stays: they are of the frames. measurer: measures the errors of the labels' patches.
    """
    measured = {} if measurer is None else {"measured_by": measurer.fingerprint}
    models = {name: facts for name, facts in (dataset.about.get("models") or {}).items() if name == "targets"}
    own = {name: value for name, value in dataset.config.items() if name != "verify"}  # of the old gaze
    config = own | {"gaze": "labels", "threshold": threshold, "max_ratio": None}
    return dataset.about | {
        "config": config,
        "models": models | {"labels": labels.files} | measured,
        "units": (labels.units or UNKNOWN_UNITS) if measurer is None else measurer.units,
    }


def begin(dataset: Dataset, output: Location, about: dict[str, Any]) -> list[int]:
    """Write the new dataset's plan and dataset.json unless they are there; the shards that are still to be made.

    Raises PipelineError: the old dataset is not complete; the output holds another dataset, or cannot be written.
    """
    planned = range(dataset.shards)
    done = dataset.committed()
    if done != list(planned):
        raise PipelineError(
            f"{dataset.url}: {len(done)} of its {len(planned)} shards are committed; finish it with autogaze preprocess"
        )
    store.require_writable(output)
    place = output / "dataset.json"
    if store.exists(place):
        existing = shards.open_dataset(output).about
        differing = [name for name in sorted(existing.keys() | about.keys()) if existing.get(name) != about.get(name)]
        if differing:
            if (existing.get("models") or {}).get("labels") != about["models"]["labels"]:
                differing[differing.index("models")] = "its label files"
            raise PipelineError(
                f"output={output}: holds a dataset that differs in {', '.join(differing)}; choose another output"
            )
    elif shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    else:
        copy_planned(dataset.url, output, ("manifest.parquet", "plan.parquet"))
        store.publish(about_bytes(about), place)
    for folder in (output, output / "shards", output / "index"):
        store.remove_temporaries(folder)
    store.clear_spools(output)
    made = set(shards.committed_shards(output))
    return [shard for shard in planned if shard not in made]


def make(
    dataset: Dataset,
    output: str,
    missing: list[int],
    labels: Labels,
    threshold: float,
    threads: int = 4,
    on_shard: Callable[[], None] | None = None,
    measurer: Reconstructor | None = None,
) -> Counter[str]:
    """Make and commit shards, `threads` at once; how many clips have each outcome.

    measurer: measures the errors of the labels' patches on the stored frames, in place of losses of their own.

    Raises PipelineError: a clip of the dataset cannot be read, the output is full or denied.
    """
    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(_make_shard, dataset, output, n, labels, threshold, measurer) for n in missing]
        try:
            for future in pending:
                outcomes.update(future.result())
                if on_shard is not None:
                    on_shard()
        except BaseException:  # KeyboardInterrupt too: shards that have not begun are left for the next run
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _make_shard(
    dataset: Dataset,
    output: str,
    shard: int,
    labels: Labels,
    threshold: float,
    measurer: Reconstructor | None,
) -> Counter[str]:
    from autogaze.gaze import Gaze  # here, not above: a job is checked before it is loaded
    from autogaze.measuring import measure_errors

    def outcome(row: dict[str, Any]) -> Outcome:
        if row["outcome"] != "ok":
            return Outcome(reason=row["reason"], detail=row["detail"], filtered=row["outcome"] == "filtered")
        label = labels.kept.of(shard, row["position"])
        if label is None:
            key = clip_key(row["video"], row["start"], row["tile"])
            return Outcome(reason="no_label", detail=f"the labels have no {key}", filtered=True)
        # Frames and targets are kept as they are; the description and the gaze are written anew.
        members = dataset.read_clip(row)
        kept = [(suffix, data) for suffix, data in members.items() if suffix not in ("json", "gaze.npz")]
        gaze = Gaze.from_npz(label, dataset.vocabulary)
        if measurer is not None:
            frames = dataset.frames_of(row, members)
            if frames is None:
                raise PipelineError(f"{row['clip']}: measure= needs frames, and {dataset.url} stores none")
            gaze = measure_errors(frames[None], gaze, measurer)
        return Outcome(gaze=gaze, members=kept)

    outcomes: Counter[str] = Counter()
    planned = dataset.plan.clips_of(shard).to_dict("records")
    with shards.writing_shard(output, shard, INDEX_SCHEMA) as made:
        for clip, row in zip(planned, dataset.read_index(shard).to_pylist(), strict=True):
            found = outcome(row)
            made.writer.add(clip, shards.packed(found, threshold))
            outcomes[found.name] += 1
    return outcomes
