"""`autogaze preprocess input=STORE output=DATASET`: a corpus of videos -> gaze shards, with progress and a summary."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from autogaze.patches import VOCABULARY
from cluster.local import ClusterSize, RayConfig, running
from cluster.probes import alive_nodes, probing
from jobs.scan_progress import ScanProgress, show_passed
from jobs.wording import byte_size, fewer, plural
from pipelines.dataset.run_records import RunRecord, new_record_url
from pipelines.preprocess.config import PreprocessConfig, check_preprocess_config
from pipelines.preprocess.decode_stage import clear_video_cache
from pipelines.preprocess.series import PreprocessSeries
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import Workers, share_workers
from pipelines.schema import section
from pipelines.storage import store

if TYPE_CHECKING:
    from pipelines.preprocess.job import Job

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
_RECORD_SECONDS = 15.0  # between two records of a run that goes on, for `autogaze status` elsewhere


@dataclass
class PreprocessJob(PreprocessConfig):
    """Preprocess a video store into gaze shards."""

    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: PreprocessJob, console: Console, dry_run: bool = False) -> int:
    """Run the job, or with dry_run show what it would do; the exit status."""
    check_preprocess_config(config)
    # After the check, since it imports torch.
    from pipelines.preprocess.job import hopeless_clips, prepare_output, resume

    job = resume(config)
    if not dry_run:
        prepare_output(config, job)
        if job and config.retry:  # which takes shards back
            job = resume(config)
    if job:
        _note(console, job.notice)
    if job and config.retry and (hopeless := hopeless_clips(job)):
        reasons = ", ".join(f"{count} {reason}" for reason, count in hopeless.items())
        _note(
            console,
            f"not tried again: {sum(hopeless.values())} clips that had failed when they were planned ({reasons}); mend "
            "their videos, and preprocess these into another output",
        )
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
    _note(console, job.notice)
    return job


def _note(console: Console, text: str) -> None:
    """Print what the user should know; nothing for ''."""
    if text:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _without_work(job: Job, console: Console, dry_run: bool) -> int:
    """End a job that makes no shard: a dry run, one that only plans, or one with nothing left to do."""
    from pipelines.preprocess.job import remove_leftovers

    if dry_run:
        _show_plan(job, console)
    elif job.config.part == "plan":
        console.print(
            f"planned: {len(job.rows)} clips in {job.shards} shards, {len(job.missing)} to make", highlight=False
        )
    else:
        remove_leftovers(job)
        of_part = "" if not job.config.part else f" of part {job.config.part}"
        console.print(f"nothing to do: all {job.shards} shards{of_part} are committed", highlight=False)
    return 0


def _make_shards(job: Job, workers: Workers, cluster: ClusterSize, console: Console, start_up: dict[str, float]) -> int:
    from pipelines.preprocess.graph import execute
    from pipelines.preprocess.job import remove_leftovers

    planned = int(job.plan["shard"].isin(job.missing).sum())
    done_before = job.shards - len(job.missing)
    console.print(
        f"{plural(planned, 'clip')} in {plural(len(job.missing), 'shard')}"
        + (f" ({done_before} of {job.shards} shards done before)" if done_before else "")
        + f"; {workers.decode} decode and {plural(workers.gaze, 'gaze worker')} on {plural(cluster.nodes, 'node')}, "
        + f"gaze on {workers.device}",
        highlight=False,
    )
    totals, exported, recorder = (
        Totals(),
        PreprocessSeries(job.output, planned),
        _Recorder(job, workers, cluster, start_up),
    )
    try:
        with _Bar(console, planned) as bar:

            def on_shard() -> None:
                bar.update(totals)
                exported.update(totals)
                recorder.while_running(totals)

            execute(job, workers, totals, on_shard)
        remove_leftovers(job)
        if job.keeps_videos:
            with probing(alive_nodes()) as probes:
                probes.call(clear_video_cache)
        record = recorder.publish(totals, "done")
    except (KeyboardInterrupt, SystemExit):
        recorder.publish(totals, "interrupted")
        raise
    finally:  # another error leaves no record: it may be a full disk, and its own message must be the last
        exported.close()
    _show_summary(job, totals, record, console)
    # No clip of the whole corpus is ok: what runs next must not take that for success. A part may be one bad shard.
    return 1 if not job.config.part and totals.ok == 0 and len(job.missing) == job.shards else 0


class _Recorder:
    """Writes the record of a run beside its dataset: now and then while it runs, and at its end."""

    def __init__(self, job: Job, workers: Workers, cluster: ClusterSize, start_up: dict[str, float]) -> None:
        self._job, self._workers, self._cluster, self._start_up = job, workers, cluster, start_up
        self._began = time.time()
        self._url = new_record_url(job.output, self._began)
        self._published = time.monotonic()

    def while_running(self, totals: Totals) -> None:
        """Publish a record unless one was published just now."""
        if time.monotonic() - self._published >= _RECORD_SECONDS:
            self.publish(totals, "running")

    def publish(self, totals: Totals, status: str) -> RunRecord:
        from pipelines.preprocess.record import run_record

        seconds = time.time() - self._began
        record = run_record(
            self._job, totals, self._workers, asdict(self._cluster), self._began, seconds, status, self._start_up
        )
        store.publish(record.to_json(), self._url)
        self._published = time.monotonic()
        return record


class _Bar:
    """Live progress on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, console: Console, clips: int) -> None:
        self.console, self.clips = console, clips
        self.printed = time.monotonic()
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]clips"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]}"),
                console=console,
            )
            self.task = self.progress.add_task("clips", total=clips, rate="starting", failed="0 failed")

    def __enter__(self) -> _Bar:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.progress:
            self.progress.stop()

    def update(self, totals: Totals) -> None:
        failed, rate = totals.failed.total(), totals.clips / max(totals.span, 1e-9)
        if self.progress:
            shown = f"[red]{failed} failed[/red]" if failed else "0 failed"
            self.progress.update(self.task, completed=totals.clips, rate=f"{rate:.1f} clips/s", failed=shown)
        elif time.monotonic() - self.printed >= _PLAIN_SECONDS or totals.clips == self.clips:
            self.printed = time.monotonic()
            eta = (self.clips - totals.clips) / rate
            self.console.print(
                f"{totals.clips}/{self.clips} clips  {rate:.1f} clips/s  eta {eta:.0f} s  {failed} failed",
                highlight=False,
            )


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
