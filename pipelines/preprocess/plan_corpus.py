"""Plan a dataset of videos: from its input to the manifest and the plan in the output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.corpus.manifest import manifest_tables
from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan_reader import VideoPlan, part_url
from pipelines.corpus.plan_writer import MANIFEST, write_plan
from pipelines.corpus.planning import Planner
from pipelines.dataset.shards import ShardedDataset
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.inputs import JobInput, Progress, new_input, read_input
from pipelines.preprocess.shard_job import publish_about
from pipelines.storage.location import Location


@dataclass(frozen=True)
class PlannedCorpus:
    """A plan, what the scan of its input passed over, and a line for the user or ''."""

    plan: VideoPlan
    passed: PassedOver
    notice: str


def plan_corpus(
    config: CorpusConfig,
    about: dict[str, Any] | None,
    on_progress: Progress,
    inspect: Callable[[Iterator[pa.Table]], dict[str, Any]] = lambda manifest: {},
) -> PlannedCorpus:
    """Scan the input and plan its clips. Needs a running Ray.

    about: dataset.json but for what the plan says; the plan is written into the output. None: nothing is written there.
    inspect: looks at the manifest that was written before it counts; what it gives goes into dataset.json, too.
    Raises PipelineError: the input has no videos.
    """
    found, output = read_input(config, on_progress), Location(config.output)
    planner = Planner(found.root, config.clip, config.shard_clips)
    plan = write_plan(output, planner, found.tables, write=about is not None)
    if about is not None:
        about |= inspect(manifest_tables(output / MANIFEST))
        publish_about(output, about | {"videos": plan.videos, "plan": plan.about()}, plan)
    return _planned(found, plan, "", remove=about is not None)


def plan_growth(
    config: CorpusConfig,
    dataset: ShardedDataset,
    write: bool,
    on_progress: Progress,
    inspect: Callable[[Iterator[pa.Table]], object] = lambda manifest: None,
) -> PlannedCorpus:
    """Scan what is new in the input of a dataset, and plan it after what is there. Needs a running Ray.

    All that was planned stays as it is, and the growth is a new version (pipelines.dataset.versions). dataset.json is
    written last: until then, and for whoever has read it before, the dataset is what it was.

    inspect: looks at the manifest of what is new before it counts, and raises where it may not.
    """
    before = dataset.plan
    assert isinstance(before, VideoPlan)
    found = new_input(config, dataset, on_progress)
    planner = Planner(found.root, config.clip, config.shard_clips, after=before)
    plan = write_plan(dataset.url, planner, found.tables, write=write, after=before)
    versions = dataset.about.get("versions") or [_version(before)]
    if write:
        new = range(len(before.parts), len(plan.parts))
        places = [part_url(dataset.url, MANIFEST, number) for number in new]
        inspect(itertools.chain.from_iterable(map(manifest_tables, places)))
        grown = {"videos": plan.videos, "plan": plan.about(), "versions": [*versions, _version(plan)]}
        publish_about(dataset.url, dataset.about | grown, plan)
    more = f"{plan.videos - before.videos:,} new videos, {plan.clips - before.clips:,} clips in "
    more += f"{plan.shards - before.shards:,} new shards"
    return _planned(found, plan, f"the dataset grows by {more}: version {len(versions) + 1}", remove=write)


def _version(plan: VideoPlan) -> dict[str, int]:
    return {"shards": plan.shards, "clips": plan.clips, "videos": plan.videos, "parts": len(plan.parts)}


def _planned(found: JobInput, plan: VideoPlan, notice: str, remove: bool) -> PlannedCorpus:
    if remove and found.unfinished is not None:
        found.unfinished.remove()
    if found.unfinished is not None and found.unfinished.problem:
        notice = "; ".join(filter(None, [notice, f"what was scanned could not be kept: {found.unfinished.problem}"]))
    return PlannedCorpus(plan, found.passed, notice)
