"""A job of preprocess: planned from its input, or resumed from the plan that its output holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from autogaze.patches import VOCABULARY
from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset.shards import Dataset, read_about
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.gazing.settings import gaze_settings
from pipelines.preprocess.config import CorpusConfig, PreprocessConfig, check_preprocess_config
from pipelines.preprocess.description import describe, require_same, with_own_defaults
from pipelines.preprocess.inputs import Progress, has_new_input, planned_input, require_input
from pipelines.preprocess.parity import parity_of
from pipelines.preprocess.plan_corpus import plan_corpus, plan_growth
from pipelines.preprocess.shard_job import (
    ShardJob,
    missing_shards,
    parts_to_make,
    require_new,
)
from pipelines.storage import store
from pipelines.storage.location import Location


@dataclass(frozen=True)
class Job(ShardJob):
    """A planned job of preprocess. gazer: what gazes."""

    config: PreprocessConfig
    gazer: ResolvedGaze


def resume(config: PreprocessConfig) -> Job | None:
    """The job whose plan `output` holds; None when there is no plan yet, or it is to grow first.

    Needs no Ray and writes nothing.

    Raises PipelineError: input missing or empty; output made with another config, weights or software; a checkpoint
    that does not load.
    """
    check_preprocess_config(config)
    output = Location(config.output)
    if store.exists(output / "dataset.json"):
        dataset = Dataset(output, read_about(output))
        config = with_own_defaults(config, dataset.about)
        gazer = resolve_gaze(config)
        require_same(dataset.about, describe(config, gazer), output)
        if config.grow and config.part in ("", "plan") and has_new_input(config, dataset):
            return None
        return _job(config, gazer, output, dataset.plan, *planned_input(config, dataset))
    resolve_gaze(config)  # refuses a checkpoint that does not load
    require_new(output)
    require_input(config)
    return None


def plan_job(config: PreprocessConfig, write: bool = True, on_progress: Progress = lambda done, total: None) -> Job:
    """Scan the input and plan a new dataset, or with `grow` what is new for the one that is there; write the plan into
    `output` unless `write` is False. Needs a running Ray.

    What was scanned is kept beside `output` until the plan is there, so that a job that is interrupted goes on, and one
    after a dry run has the scan already.

    on_progress: called with the number of objects that are scanned, and of all.
    Raises PipelineError: the input has no videos.
    """
    output = Location(config.output)
    if config.grow and store.exists(output / "dataset.json"):
        dataset = Dataset(output, read_about(output))
        config = with_own_defaults(config, dataset.about)
        gazer = resolve_gaze(config)
        planned = plan_growth(config, dataset, write, on_progress, lambda manifest: parity_of(config, manifest))
    else:
        gazer = resolve_gaze(config)
        about = describe(config, gazer) if write else None
        planned = plan_corpus(config, about, on_progress, lambda manifest: parity_of(config, manifest))
    return _job(config, gazer, output, planned.plan, planned.passed, planned.notice)


def _job(
    config: PreprocessConfig,
    gazer: ResolvedGaze,
    output: Location,
    plan: DatasetPlan,
    passed: PassedOver,
    notice: str,
) -> Job:
    missing = missing_shards(output, plan, config.part)
    return Job(config, output, plan, missing, gazer, passed=passed, notice=notice)


def missing_parts(config: PreprocessConfig, parts: int) -> list[int]:
    """The K of part=K/`parts` that have shards to make; all of them while there is no plan. Needs no Ray.

    Raises PipelineError as `resume` does.
    """
    return parts_to_make(config, parts, resume)


def resolve_gaze(config: PreprocessConfig) -> ResolvedGaze:
    """The gaze of a config that has been checked: see `resolve_corpus_gaze`."""
    return resolve_corpus_gaze(config, config.targets.frames)


def resolve_corpus_gaze(config: CorpusConfig, targets: int = 0) -> ResolvedGaze:
    """The gaze of a job over a corpus. Its networks are loaded once, on the CPU, to fingerprint them.

    targets: frames of each clip whose targets are stored.
    Raises PipelineError: a checkpoint does not load, or does not fit the job's clips.
    """
    resolved = gazers.resolve(gaze_settings(config), targets)
    resolved.require_clips(asdict(config.clip))
    if resolved.vocabulary != VOCABULARY:
        raise PipelineError(
            f"policy.checkpoint={config.policy.checkpoint}: has scales {resolved.vocabulary.scales}, and preprocess "
            f"makes frames for {VOCABULARY.scales}"
        )
    return resolved
