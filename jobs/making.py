"""How every job runs that makes the shards of a dataset: plan or resume, share the cluster, make, record, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.local import ClusterSize, RayConfig, running
from cluster.probes import alive_nodes, probing
from jobs.scan_progress import ScanProgress, show_passed
from jobs.shard_progress import Bar
from jobs.wording import byte_size, plural
from pipelines.corpus.inputs import require_there
from pipelines.dataset.run_records import RunRecord, new_record_url
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.series import ShardSeries
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.videos import clear_video_cache
from pipelines.storage import store
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from pipelines.preprocess.shard_job import ShardJob

_SHOWN_STAGES = (
    ("decode", ("fetch",)),
    ("encode", ()),
    ("gaze", ("search", "write")),
    ("features", ("gazing", "forward", "packing")),
)
_RECORD_SECONDS = 15.0  # between two records of a run that goes on, for `autogaze status` elsewhere


class ActorCounts(Protocol):
    """How a cluster is shared: workers of each stage by its name, the last one's work on `device`."""

    @property
    def actors(self) -> dict[str, int]: ...

    @property
    def device(self) -> str: ...


JobT = TypeVar("JobT", bound="ShardJob")
ConfigT = TypeVar("ConfigT", bound=CorpusConfig)
WorkersT = TypeVar("WorkersT", bound=ActorCounts)


@dataclass(frozen=True)
class MakingJob(Generic[ConfigT, JobT, WorkersT]):
    """How a job does the steps that all such jobs have. What imports torch is imported inside these functions.

    Attributes:
        name: of the job, as its series have it.
        resume: the job whose plan the output holds, or None.
        plan: plans one; called with whether to write the plan, and with what shows progress.
        plans_on_ray: whether planning needs a running Ray.
        share: shares a cluster of so many CPUs, GPUs and nodes.
        execute: makes the missing shards; called with the totals and what is to be called after each commit.
        how: what gazed and what encoded, in words: see run_record.
        show_plan, show_summary: print a dry run, and the end.
    """

    name: Literal["preprocess", "encode"]
    resume: Callable[[ConfigT], JobT | None]
    plan: Callable[[ConfigT, bool, Callable[[int, int], None]], JobT]
    plans_on_ray: bool
    share: Callable[[ConfigT, int, int, int], WorkersT]
    execute: Callable[[JobT, WorkersT, Totals, Callable[[], None]], None]
    how: Callable[[JobT, WorkersT], dict[str, str]]
    show_plan: Callable[[JobT, Console], None]
    show_summary: Callable[[JobT, Totals, RunRecord, Console], None]


def require_source(config: CorpusConfig) -> None:
    """Raise PipelineError for an input that is not there: at once, before torch is imported for the work."""
    if not store.exists(Location(config.output) / "dataset.json"):  # a planned job knows its videos
        require_there(config.input)


def run(
    steps: MakingJob[ConfigT, JobT, WorkersT], config: ConfigT, ray: RayConfig, console: Console, dry_run: bool
) -> int:
    """Run a job whose config has been checked, or with dry_run show what it would do; the exit status."""
    from pipelines.preprocess.shard_job import prepare_output

    job = steps.resume(config)
    if not dry_run:
        prepare_output(config, job)
        if job and config.retry:  # which takes shards back
            job = steps.resume(config)
    if job:
        note(console, job.notice)
        _note_hopeless(console, job)
    elif not steps.plans_on_ray:
        job = _plan(steps, config, console, dry_run)
    if job and (dry_run or not job.missing or config.part == "plan"):
        return _end_without_work(steps, job, console, dry_run)
    began = time.time()
    with running(ray) as cluster:
        ready = time.time()
        if config.part == "plan":  # on a node that may be too small to make shards
            return _end_without_work(steps, job or _plan(steps, config, console, dry_run), console, dry_run)
        workers = steps.share(config, cluster.cpus, cluster.gpus, cluster.nodes)
        job = job or _plan(steps, config, console, dry_run)
        if dry_run or not job.missing:
            return _end_without_work(steps, job, console, dry_run)
        start_up = {"ray": ready - began, "plan": time.time() - ready}
        totals, record = _make_shards(steps, job, workers, cluster, console, start_up)
    steps.show_summary(job, totals, record, console)
    # No clip of the whole corpus is ok: what runs next must not take that for success. A part may be one bad shard.
    return 1 if not config.part and totals.ok == 0 and len(job.missing) == job.shards else 0


def _plan(steps: MakingJob[ConfigT, JobT, WorkersT], config: ConfigT, console: Console, dry_run: bool) -> JobT:
    with ScanProgress(console) as progress:
        job = steps.plan(config, not dry_run, progress.update)
    note(console, job.notice)
    return job


def note(console: Console, text: str) -> None:
    """Print what the user should know; nothing for ''."""
    if text:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _note_hopeless(console: Console, job: ShardJob) -> None:
    """Say which clips retry=failed does not help."""
    from pipelines.preprocess.shard_job import hopeless_clips

    if job.config.retry and (hopeless := hopeless_clips(job)):
        reasons = ", ".join(f"{count} {reason}" for reason, count in hopeless.items())
        note(
            console,
            f"not tried again: {plural(sum(hopeless.values()), 'clip')} that had failed when they were "
            f"planned ({reasons}); mend their videos, and preprocess these into another output",
        )


def _end_without_work(steps: MakingJob[ConfigT, JobT, WorkersT], job: JobT, console: Console, dry_run: bool) -> int:
    """End a job that makes no shard: a dry run, one that only plans, or one with nothing left to do."""
    from pipelines.preprocess.shard_job import finish_dataset

    if dry_run:
        steps.show_plan(job, console)
    elif job.config.part == "plan":
        there = f"{plural(job.clips, 'clip')} in {plural(job.shards, 'shard')}"
        console.print(f"planned: {there}, {len(job.missing):,} to make", highlight=False)
    else:
        finish_dataset(job)
        of_part = "" if not job.config.part else f" of part {job.config.part}"
        count = "its only shard is" if job.shards == 1 and not of_part else f"all {job.shards} shards{of_part} are"
        console.print(f"nothing to do: {count} committed", highlight=False)
    return 0


def _make_shards(
    steps: MakingJob[ConfigT, JobT, WorkersT],
    job: JobT,
    workers: WorkersT,
    cluster: ClusterSize,
    console: Console,
    start_up: dict[str, float],
) -> tuple[Totals, RunRecord]:
    """Make the missing shards, with progress, series and records; what was done."""
    from pipelines.dataset.shards import committed_shards
    from pipelines.preprocess.merging import IndexMerger
    from pipelines.preprocess.shard_job import finish_dataset

    planned, _ = job.clips_to_make()
    done_before = job.shards - len(job.missing)
    first, last = workers.actors
    console.print(
        f"{plural(planned, 'clip')} in {plural(len(job.missing), 'shard')}"
        + (f" ({done_before} of {job.shards} shards done before)" if done_before else "")
        + f"; {workers.actors[first]} {first} and {plural(workers.actors[last], f'{last} worker')} "
        + f"on {plural(cluster.nodes, 'node')}, {last} on {workers.device}",
        highlight=False,
    )
    totals, exported = Totals(), ShardSeries(steps.name, job.output, planned)
    recorder = _Recorder(job.output, workers, steps.how(job, workers), cluster, start_up)
    try:
        with Bar(console, planned, totals, recorder.while_running) as bar, IndexMerger(job) as merger:

            def on_shard() -> None:
                merger.committed(totals.newest)
                bar.update()
                exported.update(totals)

            steps.execute(job, workers, totals, on_shard)
        finish_dataset(job)
        if job.keeps_videos:
            with probing(alive_nodes()) as probes:
                probes.call(clear_video_cache)
        record = recorder.publish(totals, "done")
    except (KeyboardInterrupt, SystemExit):
        for shard in set(job.missing) & set(committed_shards(job.output)) - totals.shards:
            totals.add_index(shard, job.indexes.table(shard))
        recorder.publish(totals, "interrupted")
        raise
    finally:  # another error leaves no record: it may be a full disk, and its own message must be the last
        exported.close()
    return totals, record


def summary_of(totals: Totals) -> Table:
    """What a job prints at its end, begun with its clips; `show_summary` adds the rest."""
    table = Table(show_header=False, title="summary", title_justify="left")
    filtered = f", {totals.filtered:,} left out" if totals.filtered else ""
    table.add_row("clips", f"{totals.ok:,} ok, {totals.failed.total():,} failed{filtered} of {totals.clips:,}")
    for reason, count in totals.failed.most_common():
        table.add_row("", f"[red]{count:,} {reason}[/red]")
    return table


def show_summary(table: Table, job: ShardJob, totals: Totals, record: RunRecord, console: Console) -> None:
    """Print it, with sizes and times, and what to do next."""
    table.add_row("size", f"{byte_size(totals.bytes)} of shards and indexes")
    table.add_row("frames", f"{totals.frames:,} in {record.seconds:.1f} s: {record.frames_per_s:.1f} frames/s")
    for stage, parts in _SHOWN_STAGES:
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
    for reason, count in totals.fallbacks.most_common():
        table.add_row("decoded by PyAV", f"[yellow]{plural(count, 'video')}: {reason}[/yellow]")
    if totals.restarts:
        table.add_row("decoders", f"[yellow]{totals.restarts} died or hung and were replaced[/yellow]")
    console.print(table)
    show_passed(console, job.passed)
    console.print(f"dataset: {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"look at it: autogaze report {job.output}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"check it:   autogaze verify {job.output}", highlight=False, markup=False, soft_wrap=True)


class _Recorder:
    """Writes the record of a run beside its dataset: now and then while it runs, and at its end."""

    def __init__(
        self,
        output: Location,
        workers: ActorCounts,
        how: dict[str, str],
        cluster: ClusterSize,
        start_up: dict[str, float],
    ) -> None:
        self._workers, self._how, self._cluster, self._start_up = workers, how, asdict(cluster), start_up
        self._began = time.time()
        self._url = new_record_url(output, self._began)
        self._published, self._done = time.monotonic(), 0

    def while_running(self, totals: Totals) -> None:
        """Publish a record if clips were done since the last, unless that was just now."""
        done = totals.clips + totals.making
        if done != self._done and time.monotonic() - self._published >= _RECORD_SECONDS:
            self._done = done
            self.publish(totals, "running")

    def publish(self, totals: Totals, status: str) -> RunRecord:
        from pipelines.preprocess.record import run_record

        record = run_record(
            totals,
            self._workers.actors,
            self._workers.device,
            self._how,
            self._cluster,
            self._began,
            time.time() - self._began,
            status,
            self._start_up,
        )
        store.publish(record.to_json(), self._url)
        self._published = time.monotonic()
        return record
