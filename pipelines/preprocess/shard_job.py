"""A job that makes the shards of a dataset: planned once, resumed as often as it takes, cut into parts if wanted.

A shard is a pure function of its rows of the plan, so any worker may make it, twice, or half. A job that is started
again makes exactly the shards whose index is missing, and ends with the bytes of an undisturbed run. For the same
reason the work can be cut into parts (part=K/N) that know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset import shards
from pipelines.dataset.indexes import INDEX_SCHEMA, Indexes
from pipelines.dataset.merging import merge_indexes
from pipelines.dataset.versions import about_bytes
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig, parse_part, shards_of_part
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.storage.spool import Mine, everything

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
    plan: DatasetPlan
    missing: list[int]
    passed: PassedOver = field(default_factory=PassedOver, kw_only=True)
    notice: str = field(default="", kw_only=True)

    @property
    def part(self) -> range:
        """The shards of this part: all of them without part=K/N."""
        return shards_of_part(self.config.part, self.plan.shards)

    @property
    def shards(self) -> int:
        """How many shards are planned; with part=K/N, how many of them are in this part."""
        return len(self.part)

    @property
    def clips(self) -> int:
        """How many clips the shards of this part hold."""
        return int(self.plan.outline.clips[self.part.start : self.part.stop].sum())

    @property
    def keeps_videos(self) -> bool:
        """Whether nodes keep copies of remote videos: only where a video's clips lie in several shards."""
        return self.config.cache_mb > 0 and self.plan.outline.remote

    def clips_to_make(self) -> tuple[int, int]:
        """Clips in the missing shards, and how many of them are not known to fail."""
        outline, missing = self.plan.outline, np.array(self.missing, np.int64)
        clips = int(outline.clips[missing].sum())
        return clips, clips - int(outline.refused[missing].sum())

    @cached_property
    def indexes(self) -> Indexes:
        """The indexes of the committed shards, as they were listed first."""
        return Indexes(self.output, self.schema)


def missing_shards(output: Location, plan: DatasetPlan, part: str) -> list[int]:
    """Shards of a part that are not committed."""
    mine = shards_of_part(part, plan.shards)
    missing = np.ones(len(mine), bool)
    done = np.array(shards.committed_shards(output), np.int64) - mine.start
    missing[done[(done >= 0) & (done < len(mine))]] = False
    found: list[int] = (np.flatnonzero(missing) + mine.start).tolist()
    return found


def require_new(output: Location) -> None:
    """Raise PipelineError where there are shards, and no dataset.json that says what they are."""
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")


def publish_about(output: Location, about: dict[str, Any], plan: DatasetPlan) -> None:
    """Write dataset.json, when all of the plan is there: a job killed before plans again.

    about: all of it but how much is planned.
    """
    about = about | {"clips": plan.clips, "shards": plan.shards}
    store.publish(about_bytes(about), output / "dataset.json")


def prepare_output(config: CorpusConfig, job: ShardJob | None) -> None:
    """Check that `output` can be written, remove temporaries of killed writers, and take back what retry= names.

    job: the one whose plan the output holds. Raises StoreError when the output cannot be written.
    """
    output = Location(config.output)
    store.require_writable(output)
    if parse_part(config.part)[1] == 1:
        _remove_temporaries(output, everything)
    elif job is not None:  # other parts may be writing theirs just now; finish_dataset() clears all at the end
        _remove_temporaries(output, _of_shards(job.part))
    if job is not None and config.retry == "failed" and config.part != "plan":
        mine, indexes = job.part, job.indexes
        looked_at = [shard for shard in indexes.listing().committed if shard in mine]
        tables = indexes.tables(looked_at, ["position", "outcome"])
        again = [shard for shard, index in zip(looked_at, tables, strict=True) if _worth_another_try(job, shard, index)]
        shards.uncommit_shards(output, again, job.schema)


def _worth_another_try(job: ShardJob, shard: int, index: pa.Table) -> bool:
    """Whether a shard holds clips that failed while they were made, and not because the scan could not read them."""
    failed = index.filter(pc.equal(index["outcome"], "failed"))["position"].to_numpy()
    return bool(len(failed)) and bool(job.plan.clips_of(shard)["reason"].isna().to_numpy()[failed].any())


def hopeless_clips(job: ShardJob) -> dict[str, int]:
    """How many clips of this part no retry can help, by reason: the scan could not read their videos."""
    return dict(job.plan.refused(job.part).most_common())


def finish_dataset(job: ShardJob) -> None:
    """Merge the index files that can be, and remove temporaries of killed actors; when all parts are done, of all."""
    planned = job.plan.shards
    whole = len(shards.committed_shards(job.output)) == planned
    _remove_temporaries(job.output, everything if whole else _of_shards(job.part))
    # Another part may be taking shards back just now: while one is at work, its thousands are its own.
    merge_indexes(job.output, job.schema, range(planned) if whole else shards_of_part(job.config.part, planned))


def _remove_temporaries(output: Location, mine: Mine) -> None:
    for folder in (output, output / "shards", output / "index"):
        store.remove_temporaries(folder, mine)
    store.clear_spools(output)


def _of_shards(part: range) -> Mine:
    """The temporaries of the shards of a part, which no other part writes."""

    def mine(name: str) -> bool:
        number = name.partition(".")[0]
        return number.isdigit() and int(number) in part

    return mine


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
