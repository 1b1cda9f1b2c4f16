"""A job that makes the shards of a dataset: planned once, resumed as often as it takes, cut into parts if wanted.

A shard is a pure function of its rows of the plan, so any worker may make it, twice, or half. A job that is started
again makes exactly the shards whose index is missing, and ends with the bytes of an undisturbed run. For the same
reason the work can be cut into parts (part=K/N) that know nothing of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan import clip_bytes
from pipelines.dataset import shards
from pipelines.dataset.indexes import INDEX_SCHEMA, Indexes
from pipelines.dataset.merging import merge_indexes
from pipelines.dataset.shards import ShardedDataset
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig, parse_part, shards_of_part
from pipelines.storage import store
from pipelines.storage.location import Location

ConfigT = TypeVar("ConfigT", bound=CorpusConfig)


@dataclass(frozen=True)
class ShardJob:
    """A planned job.

    Attributes:
        schema: of the indexes that it writes.
        output: the dataset.
        plan: of the whole dataset, whatever `part` is.
        missing: shards of this part that are not committed.
        passed: what the scan of the input passed over.
        notice: a line for the user, or ''.
    """

    schema: ClassVar[pa.Schema] = INDEX_SCHEMA
    config: CorpusConfig
    output: Location
    plan: pd.DataFrame
    missing: list[int]
    passed: PassedOver = field(default_factory=PassedOver, kw_only=True)
    notice: str = field(default="", kw_only=True)

    @property
    def shards(self) -> int:
        """How many shards are planned; with part=K/N, how many of them are in this part."""
        return len(shards_of_part(self.config.part, shards_planned(self.plan)))

    @property
    def rows(self) -> pd.DataFrame:
        """The plan's rows of this part's shards."""
        mine = shards_of_part(self.config.part, shards_planned(self.plan))
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
        return int(self.plan["shard"].value_counts().max()) * clip_bytes(int(self.plan["frames"].max()))

    @cached_property
    def indexes(self) -> Indexes:
        """The indexes of the committed shards, as they were listed first."""
        return Indexes(self.output, self.schema)


def missing_shards(output: Location, plan: pd.DataFrame, part: str) -> list[int]:
    """Shards of a part that are not committed."""
    done = set(shards.committed_shards(output))
    return [shard for shard in shards_of_part(part, shards_planned(plan)) if shard not in done]


def require_own_plan(dataset: ShardedDataset) -> None:
    """Raise PipelineError for a plan that was written again since: workers read its shards by row groups."""
    place = dataset.url / "plan.parquet"
    if hashlib.sha256(store.read(place)).hexdigest() != dataset.about.get("plan"):
        raise PipelineError(
            f"{place}: its hash is not the one in dataset.json; put the original back, or choose another output"
        )


def require_new(output: Location) -> None:
    """Raise PipelineError where there are shards, and no dataset.json that says what they are."""
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")


def publish_plan(output: Location, files: dict[str, bytes], about: dict[str, Any], plan: pd.DataFrame) -> None:
    """Write what a dataset begins with: files by name, plan.parquet among them, and dataset.json.

    about: all of dataset.json but what the plan says.
    """
    counts = {"clips": len(plan), "shards": shards_planned(plan)}
    about = about | {"plan": hashlib.sha256(files["plan.parquet"]).hexdigest()} | counts
    for name, data in files.items():
        store.publish(data, output / name)
    # Last, since it says that the others are complete: a job killed before this line plans again.
    store.publish(json.dumps(about, indent=1, sort_keys=True).encode() + b"\n", output / "dataset.json")


def prepare_output(config: CorpusConfig, job: ShardJob | None) -> None:
    """Check that `output` can be written, remove temporaries of killed writers, and take back what retry= names.

    job: the one whose plan the output holds. Raises StoreError when the output cannot be written.
    """
    output = Location(config.output)
    store.require_writable(output)
    _, parts = parse_part(config.part)
    if parts == 1:  # else another part may be writing them just now; finish_dataset() clears them at the end
        _remove_temporaries(output)
    if job is not None and config.retry == "failed" and config.part != "plan":
        # A clip whose video the scan could not read has failed in the plan already, which stays as it is.
        worth = {
            int(shard): set(rows["position"]) for shard, rows in job.rows[job.rows["reason"].isna()].groupby("shard")
        }
        looked_at = [shard for shard in job.indexes.listing().committed if worth.get(shard)]
        indexes = job.indexes.tables(looked_at, ["position", "outcome"])
        again = [shard for shard, index in zip(looked_at, indexes, strict=True) if worth[shard] & _failed(index)]
        shards.uncommit_shards(output, again, job.schema)


def _failed(index: pa.Table) -> set[int]:
    """Positions of the failed clips of a shard."""
    return set(index.filter(pc.equal(index["outcome"], "failed"))["position"].to_pylist())


def hopeless_clips(job: ShardJob) -> dict[str, int]:
    """How many clips of this part no retry can help, by reason: the scan could not read their videos."""
    counts: dict[str, int] = job.rows["reason"].dropna().value_counts().to_dict()
    return counts


def finish_dataset(job: ShardJob) -> None:
    """Merge the index files that can be; and if all parts are done now, remove temporaries of killed ones."""
    _, parts = parse_part(job.config.part)
    planned = shards_planned(job.plan)
    whole = len(shards.committed_shards(job.output)) == planned
    if parts > 1 and whole:
        _remove_temporaries(job.output)
    # Another part may be taking shards back just now: while one is at work, its thousands are its own.
    merge_indexes(job.output, job.schema, range(planned) if whole else shards_of_part(job.config.part, planned))


def _remove_temporaries(output: Location) -> None:
    for folder in (output, output / "shards", output / "index"):
        store.remove_temporaries(folder)


def parts_to_make(config: ConfigT, parts: int, resume: Callable[[ConfigT], ShardJob | None]) -> list[int]:
    """The K of part=K/`parts` that have shards to make; all of them while there is no plan. Needs no Ray.

    resume: the job whose plan the output holds. Raises PipelineError as it does.
    """
    if parts < 1:
        raise PipelineError(f"parts={parts}: must be at least 1")
    job = resume(replace(config, part=""))
    if job is None:
        return list(range(parts))
    missing = set(job.missing)
    return [part for part in range(parts) if not missing.isdisjoint(shards_of_part(f"{part}/{parts}", job.shards))]


def shards_planned(plan: pd.DataFrame) -> int:
    """How many shards a plan has."""
    return int(plan["shard"].max()) + 1 if len(plan) else 0
