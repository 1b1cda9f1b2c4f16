"""The Ray Data graph of encode: specs -> frames and gaze -> features -> commit."""

from __future__ import annotations

from collections.abc import Callable

from autogaze.patches import VOCABULARY
from pipelines.encode.config import POOLED
from pipelines.encode.encode_stage import EncodeStage, Storing
from pipelines.encode.job import EncodeJob
from pipelines.encode.read_stage import ReadStage
from pipelines.encode.workers import EncodeWorkers
from pipelines.preprocess.graph import Stage, decode_stage, run_stages
from pipelines.preprocess.totals import Totals
from pipelines.video.base import DecodeConfig


def execute_encode(job: EncodeJob, workers: EncodeWorkers, totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards. Needs a running Ray. Raises as `run_stages` does."""
    config, source, gazer = job.config, job.source, job.gazer
    if source is None:
        first = decode_stage(job, "none", 0, workers.decode, workers.decode_cpus)
    else:
        decode = DecodeConfig(
            decoder=source.config.get("decoder", "pyav"),
            size=source.vocabulary.frame_size,
            timeout_s=config.decoder_timeout_s,
        )
        cache_mb = config.cache_mb if job.keeps_videos else 0
        first = Stage(ReadStage, (source.url, decode, cache_mb), workers.decode, workers.decode_cpus, threads=2)
    storing = Storing(POOLED[config.pooled], config.store, config.batch)
    gaze = gazer or (VOCABULARY if source is None else source.vocabulary)
    second = Stage(
        EncodeStage,
        (job.output, job.plan, job.encoder, storing, gaze, workers.device),
        workers.encode,
        workers.encode_cpus,
        gpus=workers.gpus,
    )
    run_stages(job, (first, second), totals, on_shard)
