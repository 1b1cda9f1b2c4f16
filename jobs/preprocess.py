"""`autogaze preprocess input=STORE output=DATASET`: a corpus of videos -> gaze shards, with progress and a summary."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.local import ClusterSize, RayConfig, running
from cluster.preflight import alive_nodes, probing
from pipelines.preprocess import graph
from pipelines.preprocess import job as preprocess_job
from pipelines.preprocess import record as run_records
from pipelines.preprocess import workers as worker_shares
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decode_stage import clear_video_cache
from pipelines.preprocess.job import Job
from pipelines.preprocess.record import Totals
from pipelines.preprocess.series import PreprocessSeries
from pipelines.preprocess.workers import Workers
from pipelines.storage import store, urls

_PLAIN_SECONDS, _RECORD_SECONDS = 10.0, 15.0


@dataclass
class PreprocessJob(PreprocessConfig):
    """Preprocess a video store into gaze shards."""

    ray: RayConfig = field(default_factory=RayConfig)


def run(config: PreprocessJob, console: Console, dry_run: bool = False) -> int:
    """Run the job, or with dry_run say what it would do; the exit status."""
    job = preprocess_job.resume(config)
    if not dry_run:
        preprocess_job.make_ready(config, job)
        job = preprocess_job.resume(config) if job and config.retry else job
    if job and job.notice:
        console.print(job.notice, style="yellow", highlight=False)
    if job and (dry_run or not job.missing or config.part == "plan"):
        return _done(job, console, dry_run)
    began = time.time()
    with running(config.ray) as cluster:
        ready = time.time()
        workers = worker_shares.share_workers(config, cluster.cpus, cluster.gpus, cluster.nodes)
        job = job or preprocess_job.plan_job(config, write=not dry_run)
        if dry_run or not job.missing or config.part == "plan":
            return _done(job, console, dry_run)
        return _execute(job, workers, cluster, console, {"ray": ready - began, "plan": time.time() - ready})


def _done(job: Job, console: Console, dry_run: bool) -> int:
    if dry_run:
        _show_plan(job, console)
    elif job.config.part == "plan":
        console.print(
            f"planned: {len(job.rows)} clips in {job.shards} shards, {len(job.missing)} to make", highlight=False
        )
    else:
        preprocess_job.tidy(job)
        whose = "" if not job.config.part else f" of part {job.config.part}"
        console.print(f"nothing to do: all {job.shards} shards{whose} are committed", highlight=False)
    return 0


def _execute(job: Job, workers: Workers, cluster: ClusterSize, console: Console, start_up: dict[str, float]) -> int:
    planned = int(job.plan["shard"].isin(job.missing).sum())
    console.print(
        f"{planned} clips in {len(job.missing)} shards"
        + (
            f" ({job.shards - len(job.missing)} of {job.shards} shards done before)"
            if len(job.missing) < job.shards
            else ""
        )
        + f"; {workers.decode} decode and {workers.gaze} gaze workers on {cluster.nodes} node(s), gaze on "
        + workers.device,
        highlight=False,
    )
    began, status, totals = time.time(), "failed", Totals()
    latest: list[Totals] = [totals]
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began)) + f"-{uuid.uuid4().hex[:6]}.json"
    exported, told = PreprocessSeries(job.output, planned), [time.monotonic()]

    def record(status: str) -> dict[str, Any]:
        seconds = time.time() - began
        return run_records.run_record(job, latest[0], workers, asdict(cluster), began, seconds, status, start_up)

    def publish(record: dict[str, Any]) -> None:
        store.publish(json.dumps(record, indent=1).encode() + b"\n", urls.join(f"{job.output}.runs", name))

    try:
        with _Bar(console, planned) as bar:

            def on_shard(now: Totals) -> None:
                latest[0] = now
                bar.update(now)
                exported.update(now)
                if time.monotonic() - told[0] >= _RECORD_SECONDS:  # for autogaze status, elsewhere
                    told[0] = time.monotonic()
                    publish(record("running"))

            totals = graph.execute(job, workers, on_shard)
        preprocess_job.tidy(job)
        if job.keeps_videos:
            with probing(alive_nodes()) as probes:
                probes.ask(clear_video_cache)
        status = "done"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        exported.close()
        last = record(status)
        if status != "failed":  # a failure may be a full disk; its own message matters more than a record of it
            publish(last)
    _show_summary(job, totals, last, console)
    # Nothing at all came out of the whole corpus: whatever runs next should not take this for a success. A part may be
    # one bad shard.
    return 1 if not job.config.part and totals.ok == 0 and len(job.missing) == job.shards else 0


class _Bar:
    """Live progress on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, console: Console, clips: int) -> None:
        self.console, self.clips = console, clips
        self.began = self.last = time.monotonic()
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

    def update(self, now: Totals) -> None:
        failed = sum(now.failed.values())
        busy = max(now.ended - now.began, 1e-9)
        rate = now.clips / busy
        if self.progress:
            shown = f"[red]{failed} failed[/red]" if failed else "0 failed"
            self.progress.update(self.task, completed=now.clips, rate=f"{rate:.1f} clips/s", failed=shown)
        elif time.monotonic() - self.last >= _PLAIN_SECONDS or now.clips == self.clips:
            self.last = time.monotonic()
            eta = (self.clips - now.clips) / rate
            self.console.print(
                f"{now.clips}/{self.clips} clips  {rate:.1f} clips/s  eta {eta:.0f} s  {failed} failed", highlight=False
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


def _show_summary(job: Job, totals: Totals, record: dict[str, Any], console: Console) -> None:
    failed = sum(totals.failed.values())
    table = Table(show_header=False, title="summary", title_justify="left")
    table.add_row("clips", f"{totals.ok:,} ok, {failed:,} failed of {totals.clips:,}")
    for reason, count in sorted(totals.failed.items(), key=lambda item: -item[1]):
        table.add_row("", f"[red]{count:,} {reason}[/red]")
    if totals.ok:
        possible = totals.frames * 265
        table.add_row(
            "gaze",
            f"{totals.tokens:,} of {possible:,} patches: {possible / max(totals.tokens, 1):.1f}x fewer "
            f"({totals.tokens / possible:.2%})",
        )
        met = "" if job.gazer.threshold is None else f"; {totals.met / totals.ok:.1%} of frames met threshold "
        table.add_row(
            "predicted loss" if job.gazer.name == "policy" else "error",
            f"{totals.loss / totals.ok:.4f} mean" + (met and f"{met}{job.gazer.threshold:g}"),
        )
    table.add_row("gazed by", f"{record['gaze']}, on {record['device']}")
    table.add_row("frames", f"{totals.frames:,} in {record['seconds']:.1f} s: {record['frames_per_s']:.1f} frames/s")
    stages = record["stages"]
    for stage, parts in (("decode", ("fetch",)), ("encode", ()), ("gaze", ("search", "write"))):
        if stage in stages:
            inside = ", ".join(f"{part} {stages[part]['seconds']:.1f} s" for part in parts if part in stages)
            table.add_row(
                f"{stage} stage",
                f"{stages[stage]['seconds']:.1f} s busy on {stages[stage]['workers']} worker(s)"
                + (f" (of it {inside})" if inside else ""),
            )
    table.add_row(
        "slowest stage",
        f"{record['slowest_stage']}; since the first clip the whole ran at {record['speed_of_light']:.0%} of its rate",
    )
    if totals.restarts:
        table.add_row("decoders", f"[yellow]{totals.restarts} died or hung and were replaced[/yellow]")
    console.print(table)
    console.print(f"dataset: {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at it: autogaze report {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"check it:   autogaze verify {job.output}", highlight=False, markup=False, soft_wrap=True)
