"""What jobs share that make the shards of a dataset: notes, progress, the record of the run, and ends without work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.local import ClusterSize
from cluster.probes import alive_nodes, probing
from jobs.wording import plural
from pipelines.dataset.run_records import RunRecord, new_record_url
from pipelines.preprocess.decode_stage import clear_video_cache
from pipelines.preprocess.series import ShardSeries
from pipelines.preprocess.totals import Totals
from pipelines.storage import store

if TYPE_CHECKING:
    from pipelines.preprocess.shard_job import ShardJob

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
_RECORD_SECONDS = 15.0  # between two records of a run that goes on, for `autogaze status` elsewhere


@dataclass(frozen=True)
class Making:
    """A run that makes the missing shards of a job.

    Attributes:
        name: of the job, as its series have it.
        actors: of each stage, and `device`, what they work on.
        how: what gazed and what encoded, in words: see run_record.
        execute: does it; called with the totals and what is to be called after each commit.
    """

    name: Literal["preprocess", "encode"]
    job: ShardJob
    actors: dict[str, int]
    device: str
    how: dict[str, str]
    execute: Callable[[Totals, Callable[[], None]], None]


def note(console: Console, text: str) -> None:
    """Print what the user should know; nothing for ''."""
    if text:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def note_hopeless(console: Console, job: ShardJob) -> None:
    """Say which clips retry=failed does not help."""
    from pipelines.preprocess.shard_job import hopeless_clips

    if job.config.retry and (hopeless := hopeless_clips(job)):
        reasons = ", ".join(f"{count} {reason}" for reason, count in hopeless.items())
        note(
            console,
            f"not tried again: {sum(hopeless.values())} clips that had failed when they were planned ({reasons}); mend "
            "their videos, and preprocess these into another output",
        )


def end_without_work(job: ShardJob, console: Console) -> int:
    """End a job that makes no shard: one that only plans, or one with nothing left to do."""
    from pipelines.preprocess.shard_job import remove_leftovers

    if job.config.part == "plan":
        console.print(
            f"planned: {len(job.rows)} clips in {job.shards} shards, {len(job.missing)} to make", highlight=False
        )
    else:
        remove_leftovers(job)
        of_part = "" if not job.config.part else f" of part {job.config.part}"
        console.print(f"nothing to do: all {job.shards} shards{of_part} are committed", highlight=False)
    return 0


def make_shards(
    making: Making, cluster: ClusterSize, console: Console, start_up: dict[str, float]
) -> tuple[Totals, RunRecord]:
    """Make the missing shards, with progress, series and records; what was done."""
    from pipelines.preprocess.shard_job import remove_leftovers

    job = making.job
    planned = int(job.plan["shard"].isin(job.missing).sum())
    done_before = job.shards - len(job.missing)
    first, second = making.actors
    console.print(
        f"{plural(planned, 'clip')} in {plural(len(job.missing), 'shard')}"
        + (f" ({done_before} of {job.shards} shards done before)" if done_before else "")
        + f"; {making.actors[first]} {first} and {plural(making.actors[second], f'{second} worker')} "
        + f"on {plural(cluster.nodes, 'node')}, {second} on {making.device}",
        highlight=False,
    )
    totals, exported = Totals(), ShardSeries(making.name, job.output, planned)
    recorder = _Recorder(making, cluster, start_up)
    try:
        with _Bar(console, planned) as bar:

            def on_shard() -> None:
                bar.update(totals)
                exported.update(totals)
                recorder.while_running(totals)

            making.execute(totals, on_shard)
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
    return totals, record


def exit_status(job: ShardJob, totals: Totals) -> int:
    """Of a job whose shards are made."""
    # No clip of the whole corpus is ok: what runs next must not take that for success. A part may be one bad shard.
    return 1 if not job.config.part and totals.ok == 0 and len(job.missing) == job.shards else 0


class _Recorder:
    """Writes the record of a run beside its dataset: now and then while it runs, and at its end."""

    def __init__(self, making: Making, cluster: ClusterSize, start_up: dict[str, float]) -> None:
        self._making, self._cluster, self._start_up = making, cluster, start_up
        self._began = time.time()
        self._url = new_record_url(making.job.output, self._began)
        self._published = time.monotonic()

    def while_running(self, totals: Totals) -> None:
        """Publish a record unless one was published just now."""
        if time.monotonic() - self._published >= _RECORD_SECONDS:
            self.publish(totals, "running")

    def publish(self, totals: Totals, status: str) -> RunRecord:
        from pipelines.preprocess.record import run_record

        making, cluster = self._making, asdict(self._cluster)
        seconds = time.time() - self._began
        words = (making.actors, making.device, making.how, cluster, self._began, seconds, status, self._start_up)
        record = run_record(totals, *words)
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
