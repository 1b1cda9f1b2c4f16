"""`autogaze preprocess input=STORE output=DATASET`: a corpus of videos -> gaze shards, with progress and a summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from autogaze.patches import VOCABULARY
from cluster.local import RayConfig
from jobs import making
from jobs.scan_progress import show_passed
from jobs.wording import byte_size, fewer
from pipelines.corpus.inputs import is_manifest
from pipelines.dataset.run_records import RunRecord
from pipelines.preprocess.config import PreprocessConfig, check_preprocess_config
from pipelines.preprocess.decoding import PIECE_BYTES
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import share_workers
from pipelines.schema import section
from pipelines.video.base import ON_GPU

if TYPE_CHECKING:
    from pipelines.preprocess.job import Job


@dataclass
class PreprocessJob(PreprocessConfig):
    """Preprocess a video store into gaze shards."""

    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: PreprocessJob, console: Console, dry_run: bool = False) -> int:
    """Run the job, or with dry_run show what it would do; the exit status."""
    check_preprocess_config(config)
    making.require_source(config)
    # After the checks, since these import torch.
    from pipelines.preprocess.graph import execute
    from pipelines.preprocess.job import plan_job, resume
    from pipelines.preprocess.record import how_gazed

    steps = making.MakingJob(
        name="preprocess",
        resume=resume,
        plan=plan_job,
        plans_on_ray=config.decoder in ON_GPU or not is_manifest(config.input),
        share=share_workers,
        execute=execute,
        how=lambda job, workers: {"gaze": how_gazed(job.gazer, workers.device)},
        show_plan=_show_plan,
        show_summary=_show_summary,
    )
    return making.run(steps, config, config.ray, console, dry_run)


def _show_plan(job: Job, console: Console) -> None:
    plan, config = job.plan, job.config
    frames = job.clips_to_make()[1] * plan.frames
    # Shards of the demo footage hold this many bytes a frame, tar padding and gaze included.
    size = frames * {"jpeg": 17_000, "raw": 150_528, "none": 500}[config.frames]
    table = Table(
        title=f"what autogaze preprocess would write to {job.output}", show_header=False, title_justify="left"
    )
    refused = int(plan.outline.refused[job.part.start : job.part.stop].sum())
    for name, value in (
        ("videos", f"{plan.outline.videos(job.part):,}"),
        ("clips", f"{job.clips:,} planned, {refused:,} already known to fail"),
        ("shards", f"{job.shards:,} planned, {len(job.missing):,} to make"),
        ("frames", f"{frames:,} to gaze"),
        ("estimated bytes", f"{size / 1e9:.3f} GB, {byte_size(size // max(len(job.missing), 1))} a shard"),
        ("memory", f"{PIECE_BYTES / 1e6:.0f} MB of decoded frames a decoder, however large a shard is"),
    ):
        table.add_row(name, value)
    console.print(table)
    show_passed(console, job.passed)


def _show_summary(job: Job, totals: Totals, record: RunRecord, console: Console) -> None:
    table = making.summary_of(totals)
    if totals.ok:
        possible = totals.frames * VOCABULARY.size
        table.add_row(
            "gaze",
            f"{totals.tokens:,} of {possible:,} multi-scale patches ({totals.tokens / possible:.2%}): "
            + fewer(totals.tokens, possible),
        )
        shown = f"{totals.loss / totals.ok:.4f} mean"
        if job.gazer.threshold is not None:
            met = f"met threshold {job.gazer.threshold:g}"
            if not job.gazer.settings.measured:
                met = f"are predicted to meet threshold {job.gazer.threshold:g}"
                if job.gazer.calibration is not None:  # whose threshold is of measured errors, in other units perhaps
                    met = f"ended by the calibration for {job.gazer.threshold:g}"
            shown += f"; {totals.met / totals.ok:.1%} of frames {met}"
        table.add_row(job.gazer.measure, shown)
    table.add_row("gazed by", f"{record.gaze}, on {record.device}")
    making.show_summary(table, job, totals, record, console)
