"""`autogaze preprocess input=STORE output=DATASET`: a corpus of videos -> gaze shards, with progress and a summary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from autogaze.patches import VOCABULARY
from cluster.local import ClusterSize, RayConfig, running
from jobs import making
from jobs.scan_progress import ScanProgress, show_passed
from jobs.wording import byte_size, fewer, plural
from pipelines.dataset.run_records import RunRecord
from pipelines.preprocess.config import PreprocessConfig, check_preprocess_config
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import Workers, share_workers
from pipelines.schema import section

if TYPE_CHECKING:
    from pipelines.preprocess.job import Job


@dataclass
class PreprocessJob(PreprocessConfig):
    """Preprocess a video store into gaze shards."""

    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: PreprocessJob, console: Console, dry_run: bool = False) -> int:
    """Run the job, or with dry_run show what it would do; the exit status."""
    check_preprocess_config(config)
    # After the check, since it imports torch.
    from pipelines.preprocess.job import resume
    from pipelines.preprocess.shard_job import prepare_output

    job = resume(config)
    if not dry_run:
        prepare_output(config, job)
        if job and config.retry:  # which takes shards back
            job = resume(config)
    if job:
        making.note(console, job.notice)
        making.note_hopeless(console, job)
    if job and (dry_run or not job.missing or config.part == "plan"):
        return _without_work(job, console, dry_run)
    began = time.time()
    with running(config.ray) as cluster:
        ready = time.time()
        if config.part == "plan":  # on a node that may be too small to make shards
            return _without_work(job or _plan(config, console, dry_run), console, dry_run)
        workers = share_workers(config, cluster.cpus, cluster.gpus, cluster.nodes)
        job = job or _plan(config, console, dry_run)
        if dry_run or not job.missing:
            return _without_work(job, console, dry_run)
        return _make_shards(job, workers, cluster, console, {"ray": ready - began, "plan": time.time() - ready})


def _plan(config: PreprocessJob, console: Console, dry_run: bool) -> Job:
    from pipelines.preprocess.job import plan_job

    with ScanProgress(console) as progress:
        job = plan_job(config, write=not dry_run, on_progress=progress.update)
    making.note(console, job.notice)
    return job


def _without_work(job: Job, console: Console, dry_run: bool) -> int:
    if not dry_run:
        return making.end_without_work(job, console)
    _show_plan(job, console)
    return 0


def _make_shards(job: Job, workers: Workers, cluster: ClusterSize, console: Console, start_up: dict[str, float]) -> int:
    from pipelines.preprocess.graph import execute
    from pipelines.preprocess.record import how_gazed

    how = {"gaze": how_gazed(job.gazer, workers.device)}
    run = partial(execute, job, workers)
    made = making.Making("preprocess", job, workers.actors, workers.device, how, run)
    totals, record = making.make_shards(made, cluster, console, start_up)
    _show_summary(job, totals, record, console)
    return making.exit_status(job, totals)


def _show_plan(job: Job, console: Console) -> None:
    plan, config = job.rows, job.config
    todo = plan[plan["shard"].isin(job.missing) & plan["reason"].isna()]
    frames = int(todo["frames"].sum())
    # Shards of the demo footage hold this many bytes a frame, tar padding and gaze included.
    per_frame = {"jpeg": 17_000, "raw": 150_528, "none": 500}[config.frames]
    table = Table(
        title=f"what autogaze preprocess would write to {job.output}", show_header=False, title_justify="left"
    )
    refused = int(plan["reason"].notna().sum())
    for name, value in (
        ("videos", f"{plan['video'].nunique():,}"),
        ("clips", f"{len(plan):,} planned, {refused:,} already known to fail"),
        ("shards", f"{job.shards:,} planned, {len(job.missing):,} to make"),
        ("frames", f"{frames:,} to gaze"),
        ("estimated bytes", f"{frames * per_frame / 1e9:.3f} GB"),
        ("memory per row", f"{job.row_bytes / 1e6:.0f} MB of decoded frames per shard in flight"),
    ):
        table.add_row(name, value)
    console.print(table)
    show_passed(console, job.passed)


def _show_summary(job: Job, totals: Totals, record: RunRecord, console: Console) -> None:
    table = Table(show_header=False, title="summary", title_justify="left")
    table.add_row("clips", f"{totals.ok:,} ok, {totals.failed.total():,} failed of {totals.clips:,}")
    for reason, count in totals.failed.most_common():
        table.add_row("", f"[red]{count:,} {reason}[/red]")
    if totals.ok:
        possible = totals.frames * VOCABULARY.size
        table.add_row(
            "gaze",
            f"{totals.tokens:,} of {possible:,} multi-scale patches ({totals.tokens / possible:.2%}): "
            + fewer(totals.tokens, possible),
        )
        met = "" if job.gazer.threshold is None else f"; {totals.met / totals.ok:.1%} of frames met threshold "
        table.add_row(
            "predicted loss" if job.gazer.name == "policy" else "error",
            f"{totals.loss / totals.ok:.4f} mean" + (met and f"{met}{job.gazer.threshold:g}"),
        )
    table.add_row("gazed by", f"{record.gaze}, on {record.device}")
    table.add_row("size", f"{byte_size(totals.bytes)} of shards and indexes")
    table.add_row("frames", f"{totals.frames:,} in {record.seconds:.1f} s: {record.frames_per_s:.1f} frames/s")
    for stage, parts in (("decode", ("fetch",)), ("encode", ()), ("gaze", ("search", "write"))):
        if stage in record.stages:
            spent = record.stages[stage]
            inside = ", ".join(f"{part} {record.stages[part].seconds:.1f} s" for part in parts if part in record.stages)
            table.add_row(
                f"{stage} stage",
                f"{spent.seconds:.1f} s busy on {plural(spent.workers, 'worker')}"
                + (f" (of it {inside})" if inside else ""),
            )
    table.add_row(
        "slowest stage",
        f"{record.slowest_stage}; since the first clip the whole ran at {record.speed_of_light:.0%} of its rate",
    )
    if totals.restarts:
        table.add_row("decoders", f"[yellow]{totals.restarts} died or hung and were replaced[/yellow]")
    console.print(table)
    show_passed(console, job.passed)
    console.print(f"dataset: {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at it: autogaze report {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"check it:   autogaze verify {job.output}", highlight=False, markup=False, soft_wrap=True)
