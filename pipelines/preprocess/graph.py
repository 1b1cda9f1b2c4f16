"""The Ray Data graph that makes the missing shards: specs -> decode -> gaze -> commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decode_stage import DecodeStage
from pipelines.preprocess.gaze_stage import GazeStage
from pipelines.preprocess.job import Job, decode_config
from pipelines.preprocess.record import Totals
from pipelines.preprocess.workers import Workers
from pipelines.ray_data import configure_ray_data, pipeline_errors

_INDEXES_AT_ONCE = 8


def execute(job: Job, workers: Workers, on_shard: Callable[[Totals], None]) -> Totals:
    """Make the missing shards; `on_shard` is called after each commit. Needs a running Ray.

    Raises PipelineError: the output is full or denied, storage stayed away, or too many clips failed.
    """
    import ray.data  # here, not above: see cluster.local
    from ray.data import ActorPoolStrategy, ExecutionResources

    totals = Totals()
    if not job.missing:
        return totals
    decode, gaze = min(workers.decode, len(job.missing)), min(workers.gaze, len(job.missing))
    config, clips = job.config, len(job.rows)
    failed_before = _failed_before(job) if config.max_failed_fraction < 1 else Counter[str]()
    _require_few(failed_before, clips, config)
    configure_ray_data()
    # A few rows in flight per actor. Without a bound, decoders faster than gaze fill the object store.
    ray.data.DataContext.get_current().execution_options.resource_limits = ExecutionResources(
        object_store_memory=4 * (decode + gaze) * job.row_bytes
    )
    rows: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in job.missing], override_num_blocks=len(job.missing)
    )
    rows = rows.map(
        DecodeStage,  # type: ignore[arg-type]  # Ray makes the actor; its stub knows functions only
        fn_constructor_args=(
            job.output,
            decode_config(config),
            config.frames,
            config.jpeg_quality,
            config.cache_mb if job.keeps_videos else 0,
        ),
        compute=ActorPoolStrategy(
            size=decode,
            max_tasks_in_flight_per_actor=3,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=workers.decode_cpus,
    )
    rows = rows.map(
        GazeStage,  # type: ignore[arg-type]
        fn_constructor_args=(job.output, job.gazer, config.frames, workers.device),
        compute=ActorPoolStrategy(size=gaze, max_tasks_in_flight_per_actor=2),
        num_cpus=workers.gaze_cpus,
        num_gpus=1 if workers.device == "cuda" else 0,
    )
    for row in pipeline_errors(rows.iter_rows()):
        totals.add(row)
        on_shard(totals)
        _require_few(failed_before + totals.failed, clips, config)
    return totals


def _failed_before(job: Job) -> Counter[str]:
    """Reasons of the failed clips that earlier runs committed."""

    def failed(shard: int) -> Counter[str]:
        rows = shards.read_index(job.output, shard).to_pandas()
        return Counter(rows["reason"][rows["outcome"] == "failed"])

    with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
        return sum(pool.map(failed, set(job.rows["shard"]) - set(job.missing)), Counter[str]())


def _require_few(failed: Counter[str], clips: int, config: PreprocessConfig) -> None:
    if failed.total() > config.max_failed_fraction * clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items()))
        raise PipelineError(
            f"stopped: {failed.total()} of {clips} clips failed ({reasons}), "
            f"more than max_failed_fraction={config.max_failed_fraction}; what is committed stays"
        )
