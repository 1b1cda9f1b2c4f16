"""The Ray Data graph that makes the missing shards of a job: numbers of shards -> actors that make and commit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.decoding import Decoding
from pipelines.preprocess.description import decode_config
from pipelines.preprocess.job import Job
from pipelines.preprocess.layout import Layout, NodeRoom, Wanted, lay_out
from pipelines.preprocess.progress import Reporter, watching
from pipelines.preprocess.rows import CommittedShard
from pipelines.preprocess.shard_job import ShardJob
from pipelines.preprocess.stage import PreprocessStage
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import Workers
from pipelines.ray_data import configure_ray_data, node_sizes, pipeline_errors

SHARDS_AT_ONCE = 2  # shards in an actor: the second begins to decode while the first comes to its end
IN_FLIGHT = SHARDS_AT_ONCE + 1  # and shards that it is given: the next one waits there


@dataclass(frozen=True)
class Stage:
    """The actors of a graph, which take the number of a shard and give a CommittedShard.

    Attributes:
        actor: a class whose instances are called with a row.
        arguments: of its constructor, of a layout and of what is told how far a shard is.
    """

    actor: type
    arguments: Callable[[Layout, Reporter], tuple[Any, ...]]


def execute(job: Job, workers: Workers, totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards. Needs a running Ray. Raises as `run_stage` does."""

    def arguments(layout: Layout, report: Reporter) -> tuple[Any, ...]:
        decoding = decoding_of(job, layout, job.config.frames, job.config.jpeg_quality)
        return job.output, job.plan, job.gazer, decoding, workers.device, layout.gazers, report

    run_stage(job, Stage(PreprocessStage, arguments), workers.wanted, totals, on_shard)


def decoding_of(job: ShardJob, layout: Layout, storage: str = "none", quality: int = 0) -> Decoding:
    """How the actors of a job decode the videos of its plan."""
    cache_mb = job.config.cache_mb if job.keeps_videos else 0
    return Decoding(decode_config(job.config), storage, quality, cache_mb, layout.decoders)


def run_stage(job: ShardJob, stage: Stage, wanted: Wanted, totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards of a job. Needs a running Ray.

    After each commit the shard is added to `totals`, and then `on_shard` is called. In between `totals.making` is set
    now and then, and `on_shard` called, too.

    Raises PipelineError: the output is full or denied, storage stayed away, or too many clips failed.
    """
    import ray.data  # imported late: see cluster.local
    from ray.data import ActorPoolStrategy

    if not job.missing:
        return
    config, clips = job.config, job.clips
    failed_before = _failed_before(job) if config.max_failed_fraction < 1 else Counter[str]()
    _require_few(failed_before, clips, config)
    configure_ray_data()
    layout = lay_out(wanted, len(job.missing), [NodeRoom(*size) for size in node_sizes()])
    rows: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in job.missing], override_num_blocks=len(job.missing)
    )
    with watching(totals.in_the_making) as watch:
        made = rows.map(
            stage.actor,
            fn_constructor_args=stage.arguments(layout, watch.reporter),
            compute=ActorPoolStrategy(
                size=layout.actors,
                max_tasks_in_flight_per_actor=IN_FLIGHT,
                max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=layout.cpus,
            num_gpus=layout.gpus,
        )
        for row in pipeline_errors(made.iter_rows()):
            shard = CommittedShard.from_row(row)
            watch.committed(shard.shard)
            totals.add(shard)
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
