"""A job of preprocess: planned once, resumed as often as it takes, and cut into parts if wanted.

A shard is a pure function of its rows of the plan, so any worker may make it, twice, or half. A job that is started
again makes exactly the shards whose index is missing, and ends with the bytes of an undisturbed run. For the same
reason the work can be cut into parts (part=K/N) that know nothing of each other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

import pandas as pd
import pyarrow.compute as pc

from autogaze.patches import VOCABULARY
from pipelines.corpus.manifest import manifest_bytes
from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan import clip_bytes, make_plan, plan_bytes
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.gazing.settings import gaze_settings
from pipelines.preprocess.config import (
    PreprocessConfig,
    check_preprocess_config,
    parse_part,
    shards_of_part,
)
from pipelines.preprocess.description import describe, require_same, with_own_threshold
from pipelines.preprocess.inputs import Progress, planned_input, read_input, require_input
from pipelines.storage import store
from pipelines.storage.location import Location


@dataclass(frozen=True)
class Job:
    """A planned job.

    Attributes:
        output: the dataset.
        plan: of the whole dataset, whatever `part` is.
        missing: shards of this part that are not committed.
        passed: what the scan of the input passed over.
        notice: a line for the user, or ''.
    """

    config: PreprocessConfig
    gazer: ResolvedGaze
    output: Location
    plan: pd.DataFrame
    missing: list[int]
    passed: PassedOver = field(default_factory=PassedOver)
    notice: str = ""

    @property
    def shards(self) -> int:
        """How many shards are planned; with part=K/N, how many of them are in this part."""
        return len(shards_of_part(self.config.part, _shards_planned(self.plan)))

    @property
    def rows(self) -> pd.DataFrame:
        """The plan's rows of this part's shards."""
        mine = shards_of_part(self.config.part, _shards_planned(self.plan))
        return self.plan[self.plan["shard"].between(mine.start, mine.stop - 1)]

    @property
    def keeps_videos(self) -> bool:
        """Whether nodes keep copies of remote videos: only where a video's clips lie in several shards."""
        videos, shard = self.plan["video"].to_numpy(), self.plan["shard"].to_numpy()
        straddling = (videos[1:] == videos[:-1]) & (shard[1:] != shard[:-1])
        places = self.plan["object"].to_numpy()[1:][straddling]
        return self.config.cache_mb > 0 and not all(Location.as_is(place).is_local for place in places)

    @property
    def row_bytes(self) -> int:
        """Bytes of the decoded frames of the largest shard: the most that one row of the Ray dataset holds."""
        return int(self.plan["shard"].value_counts().max()) * clip_bytes(self.config.clip.frames)


def resume(config: PreprocessConfig) -> Job | None:
    """The job whose plan `output` holds; None when there is no plan yet. Needs no Ray and writes nothing.

    Raises PipelineError: input missing or empty; output made with another config, weights or software; a checkpoint
    that does not load.
    """
    check_preprocess_config(config)
    output = Location(config.output)
    if store.exists(output / "dataset.json"):
        dataset = shards.open_dataset(output)
        config = with_own_threshold(config, dataset.about)
        gazer = resolve_gaze(config)
        require_same(dataset.about, describe(config, gazer), output)
        _require_own_plan(dataset)
        return _job(config, gazer, output, dataset.plan, *planned_input(config, output))
    resolve_gaze(config)  # refuses a checkpoint that does not load
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    require_input(config)
    return None


def _require_own_plan(dataset: shards.Dataset) -> None:
    """Raise PipelineError for a plan that was written again since: workers read its shards by row groups."""
    place = dataset.url / "plan.parquet"
    if hashlib.sha256(store.read(place)).hexdigest() != dataset.about.get("plan"):
        raise PipelineError(
            f"{place}: its hash is not the one in dataset.json; put the original back, or choose another output"
        )


def plan_job(config: PreprocessConfig, write: bool = True, on_progress: Progress = lambda done, total: None) -> Job:
    """Scan the input and plan a new dataset; write the plan into `output` unless `write` is False. Needs a running Ray.

    What was scanned is kept beside `output` until the plan is there, so that a job that is interrupted goes on, and one
    after a dry run has the scan already.

    on_progress: called with the number of objects that are scanned, and of all.
    Raises PipelineError: the input has no videos.
    """
    gazer, output = resolve_gaze(config), Location(config.output)
    found = read_input(config, on_progress)
    manifest, notice = found.manifest, ""
    plan = make_plan(manifest, found.root, config.clip, config.shard.clips)
    if found.unfinished is not None and found.unfinished.problem:
        notice = f"what was scanned could not be kept: {found.unfinished.problem}"
    if write:
        data = plan_bytes(plan)
        about = describe(config, gazer) | {
            "plan": hashlib.sha256(data).hexdigest(),
            "videos": len(manifest),
            "clips": len(plan),
            "shards": _shards_planned(plan),
        }
        store.publish(manifest_bytes(manifest), output / "manifest.parquet")
        store.publish(data, output / "plan.parquet")
        # Last, since it says that the others are complete: a job killed before this line plans again.
        text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
        store.publish(text, output / "dataset.json")
        if found.unfinished is not None:
            found.unfinished.remove()
    return _job(config, gazer, output, plan, found.passed, notice)


def _job(
    config: PreprocessConfig,
    gazer: ResolvedGaze,
    output: Location,
    plan: pd.DataFrame,
    passed: PassedOver,
    notice: str,
) -> Job:
    done = set(shards.committed_shards(output))
    mine = shards_of_part(config.part, _shards_planned(plan))
    return Job(config, gazer, output, plan, [shard for shard in mine if shard not in done], passed, notice)


def prepare_output(config: PreprocessConfig, job: Job | None) -> None:
    """Check that `output` can be written, remove temporaries of killed writers, and take back what retry= names.

    job: as `resume` gives it. Raises StoreError when the output cannot be written.
    """
    output = Location(config.output)
    store.require_writable(output)
    _, parts = parse_part(config.part)
    if parts == 1:  # else another part may be writing them just now; remove_leftovers() clears them at the end
        _remove_temporaries(output)
    if job is not None and config.retry == "failed" and config.part != "plan":
        # A clip whose video the scan could not read has failed in the plan already, which stays as it is.
        worth = {
            int(shard): set(rows["position"]) for shard, rows in job.rows[job.rows["reason"].isna()].groupby("shard")
        }
        for shard in shards.committed_shards(output):
            if worth.get(shard) and worth[shard] & _failed_positions(output, shard):
                shards.uncommit_shard(output, shard)


def _failed_positions(output: Location, shard: int) -> set[int]:
    index = shards.read_index(output, shard, ["position", "outcome"])
    return set(index.filter(pc.equal(index["outcome"], "failed"))["position"].to_pylist())


def hopeless_clips(job: Job) -> dict[str, int]:
    """How many clips of this part no retry can help, by reason: the scan could not read their videos."""
    counts: dict[str, int] = job.rows["reason"].dropna().value_counts().to_dict()
    return counts


def remove_leftovers(job: Job) -> None:
    """Remove temporaries of killed parts, if all parts are done now."""
    _, parts = parse_part(job.config.part)
    if parts > 1 and len(shards.committed_shards(job.output)) == _shards_planned(job.plan):
        _remove_temporaries(job.output)


def _remove_temporaries(output: Location) -> None:
    for folder in (output, output / "shards", output / "index"):
        store.remove_temporaries(folder)


def missing_parts(config: PreprocessConfig, parts: int) -> list[int]:
    """The K of part=K/`parts` that have shards to make; all of them while there is no plan. Needs no Ray.

    Raises PipelineError as `resume` does.
    """
    if parts < 1:
        raise PipelineError(f"parts={parts}: must be at least 1")
    job = resume(replace(config, part=""))
    if job is None:
        return list(range(parts))
    missing = set(job.missing)
    return [part for part in range(parts) if not missing.isdisjoint(shards_of_part(f"{part}/{parts}", job.shards))]


def _shards_planned(plan: pd.DataFrame) -> int:
    """How many shards a plan has."""
    return int(plan["shard"].max()) + 1 if len(plan) else 0


def resolve_gaze(config: PreprocessConfig) -> ResolvedGaze:
    """The gaze of a config that has been checked. Its networks are loaded once, on the CPU, to fingerprint them.

    Raises PipelineError: a checkpoint does not load, or does not fit the job's clips.
    """
    resolved = gazers.resolve(gaze_settings(config), config.targets.frames)
    resolved.require(config.clip.frames)
    if resolved.vocabulary != VOCABULARY:
        raise PipelineError(
            f"policy.checkpoint={config.policy.checkpoint}: has scales {resolved.vocabulary.scales}, and preprocess "
            f"makes frames for {VOCABULARY.scales}"
        )
    return resolved
