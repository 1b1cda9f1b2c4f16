"""Plan a dataset of videos: from its input to the manifest and the plan in the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan_reader import VideoPlan
from pipelines.corpus.plan_writer import write_plan
from pipelines.corpus.planning import Planner
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.inputs import Progress, read_input
from pipelines.preprocess.shard_job import publish_about
from pipelines.storage.location import Location


@dataclass(frozen=True)
class PlannedCorpus:
    """A plan, what the scan of its input passed over, and a line for the user or ''."""

    plan: VideoPlan
    passed: PassedOver
    notice: str


def plan_corpus(config: CorpusConfig, about: dict[str, Any] | None, on_progress: Progress) -> PlannedCorpus:
    """Scan the input and plan its clips. Needs a running Ray.

    about: dataset.json but for what the plan says; the plan is written into the output. None: nothing is written there.
    Raises PipelineError: the input has no videos.
    """
    found, output = read_input(config, on_progress), Location(config.output)
    planner = Planner(found.root, config.clip, config.shard.clips)
    plan = write_plan(output, planner, found.tables, write=about is not None)
    if about is not None:
        publish_about(output, about | {"videos": plan.videos, "plan": plan.about()}, plan)
        if found.unfinished is not None:
            found.unfinished.remove()
    notice = ""
    if found.unfinished is not None and found.unfinished.problem:
        notice = f"what was scanned could not be kept: {found.unfinished.problem}"
    return PlannedCorpus(plan, found.passed, notice)
