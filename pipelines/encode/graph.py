"""The Ray Data graph of encode: numbers of shards -> actors that make and commit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autogaze.patches import VOCABULARY
from pipelines.encode.config import POOLED
from pipelines.encode.encode_stage import ClipSource, EncodeStage, FromDataset, FromVideos, Storing
from pipelines.encode.job import EncodeJob
from pipelines.encode.workers import EncodeWorkers
from pipelines.preprocess.decoding import Decoding
from pipelines.preprocess.graph import Stage, decoding_of, run_stage
from pipelines.preprocess.layout import Layout
from pipelines.preprocess.progress import Reporter
from pipelines.preprocess.totals import Totals
from pipelines.video.base import DecodeConfig


def execute_encode(job: EncodeJob, workers: EncodeWorkers, totals: Totals, on_shard: Callable[[], None]) -> None:
    """Make the missing shards. Needs a running Ray. Raises as `run_stage` does."""
    config, dataset = job.config, job.source
    storing = Storing(POOLED[config.pooled], config.store, config.batch)
    gaze = job.gazer or (VOCABULARY if dataset is None else dataset.vocabulary)

    def arguments(layout: Layout, report: Reporter) -> tuple[Any, ...]:
        source = clip_source(job, layout)
        return job.output, source, job.encoder, storing, gaze, workers.device, layout.gazers, report

    run_stage(job, Stage(EncodeStage, arguments), workers.wanted, totals, on_shard)


def clip_source(job: EncodeJob, layout: Layout) -> ClipSource:
    """Where the actors of a job have their clips from."""
    dataset = job.source
    if dataset is None:
        return FromVideos(job.plan, decoding_of(job, layout))
    decode = DecodeConfig(
        decoder=dataset.config.get("decoder", "pyav"),
        size=dataset.vocabulary.frame_size,
        timeout_s=job.config.decoder_timeout_s,
    )
    cache_mb = job.config.cache_mb if job.keeps_videos else 0
    return FromDataset(dataset.url, Decoding(decode, cache_mb=cache_mb, decoders=layout.decoders))
