"""The Ray Data graph that makes the missing shards of a job: specs -> decode -> gaze -> commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.decode_stage import DecodeStage
from pipelines.preprocess.description import decode_config
from pipelines.preprocess.gaze_stage import GazeStage
from pipelines.preprocess.job import Job
from pipelines.preprocess.rows import CommittedShard
from pipelines.preprocess.shard_job import ShardJob
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import Workers
from pipelines.ray_data import configure_ray_data, pipeline_errors


@dataclass(frozen=True)
class Stage:
    """A stage of the graph: actors that each take a row and give one.

    Attributes:
        actor: a class whose instances are called with a row; `arguments` are its constructor's.
        actors: how many, and `cpus` and `gpus` that each asks Ray for.
        threads: rows that each works on at once.
    """

    actor: type
    arguments: tuple[Any, ...]
    actors: int
    cpus: float
    gpus: float = 0.0
    threads: int = 1


def execute(job: Job, workers: Workers, totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards. Needs a running Ray. Raises as `run_stages` does."""
    config = job.config
    stages = (
        decode_stage(job, config.frames, config.jpeg_quality, workers.decode, workers.decode_cpus, workers.decode_gpus),
        Stage(
            GazeStage,
            (job.output, job.plan, job.gazer, config.frames, workers.device),
            workers.gaze,
            workers.gaze_cpus,
            gpus=workers.gaze_gpus,
        ),
    )
    run_stages(job, stages, totals, on_shard)


def decode_stage(job: ShardJob, storage: str, quality: int, actors: int, cpus: float, gpus: float = 0.0) -> Stage:
    """The stage that decodes the videos of a job's plan; its actors decode one shard while they hand over another."""
    cache_mb = job.config.cache_mb if job.keeps_videos else 0
    return Stage(
        DecodeStage, (job.plan, decode_config(job.config), storage, quality, cache_mb), actors, cpus, gpus, threads=2
    )


def run_stages(job: ShardJob, stages: Sequence[Stage], totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards of a job. Needs a running Ray.

    stages: the first takes `{"shard": number}`, the last gives a CommittedShard. After each commit the shard is added
    to `totals`, and then `on_shard` is called.

    Raises PipelineError: the output is full or denied, storage stayed away, or too many clips failed.
    """
    import ray.data  # imported late: see cluster.local
    from ray.data import ActorPoolStrategy, ExecutionResources

    if not job.missing:
        return
    counts = [min(stage.actors, len(job.missing)) for stage in stages]
    config, clips = job.config, job.clips
    failed_before = _failed_before(job) if config.max_failed_fraction < 1 else Counter[str]()
    _require_few(failed_before, clips, config)
    configure_ray_data()
    # A few rows in flight per actor. Without a bound, decoders faster than gaze fill the object store.
    ray.data.DataContext.get_current().execution_options.resource_limits = ExecutionResources(
        object_store_memory=4 * sum(counts) * job.plan.row_bytes
    )
    rows: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in job.missing], override_num_blocks=len(job.missing)
    )
    for stage, count in zip(stages, counts, strict=True):
        at_once: dict[str, Any] = {"max_concurrent_calls_per_actor": stage.threads, "enable_true_multi_threading": True}
        rows = rows.map(
            stage.actor,
            fn_constructor_args=stage.arguments,
            compute=ActorPoolStrategy(
                size=count,
                max_tasks_in_flight_per_actor=stage.threads + 1,
                **(at_once if stage.threads > 1 else {}),
            ),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus,
        )
    for row in pipeline_errors(rows.iter_rows()):
        totals.add(CommittedShard.from_row(row))
        on_shard()
        _require_few(failed_before + totals.failed, clips, config)


def _failed_before(job: ShardJob) -> Counter[str]:
    """Reasons of the failed clips that earlier runs committed."""

    done, counts = sorted(set(job.part) - set(job.missing)), Counter[str]()
    for index in job.indexes.tables(done, ["outcome", "reason"]):
        counts.update(index.filter(pc.equal(index["outcome"], "failed"))["reason"].to_pylist())
    return counts


def _require_few(failed: Counter[str], clips: int, config: CorpusConfig) -> None:
    if failed.total() > config.max_failed_fraction * clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items()))
        raise PipelineError(
            f"stopped: {failed.total()} of {clips} clips failed ({reasons}), "
            f"more than max_failed_fraction={config.max_failed_fraction}; what is committed stays"
        )
