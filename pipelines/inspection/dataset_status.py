"""How far a dataset is: what is committed, with which outcomes, how fast, and whether the job still works."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipelines.dataset import shards
from pipelines.dataset.features import FeatureDataset, open_any
from pipelines.dataset.indexes import IndexListing
from pipelines.dataset.run_records import RunRecord, newest_record
from pipelines.dataset.shards import ShardedDataset
from pipelines.dataset.versions import newest_whole, versions_of
from pipelines.inspection.liveness import HEALTHY_STATES, WINDOW, change_times, clock, state_of
from pipelines.storage.location import Location

_BREAK_S, _BREAK_TIMES = 60.0, 10.0  # a pause this long, and so many times the mean, is no part of a rate
_RECORD_SLACK_S = 5.0  # by which a run's record may be older than its last commit
_AT_ONCE = 16  # indexes read


@dataclass
class DatasetStatus:
    """A dataset that preprocess or encode makes or has made. `rate` is in clips a second; times are in seconds."""

    url: str
    state: str
    shards: int
    shards_planned: int
    clips: int
    clips_planned: int
    outcomes: dict[str, int] | None
    reasons: dict[str, int] | None
    rate: float | None
    left_s: float | None
    idle_s: float | None
    slowest_stage: str
    stages: dict[str, float]
    """Share of the newest run's time that each stage's workers were busy; {} before it has left a record."""
    notice: str = ""
    what: str = "dataset"
    version: int | None = None
    """Of a dataset that has grown, the newest version; None of one that never did."""
    whole_version: int | None = None
    """Of a dataset that has grown, the newest version all of whose shards are committed, which training reads."""

    @property
    def well(self) -> bool:
        """Whether it goes on, or is done with at least one ok clip."""
        none_ok = self.outcomes is not None and not self.outcomes.get("ok", 0)
        return self.state in HEALTHY_STATES and not (self.state == "done" and none_ok)


@dataclass
class StatusCache:
    """What a second look at the same dataset need not read again.

    counts: of each shard, the time of its commit and its clips by (outcome, reason). A committed shard changes only if
        it is taken back and made again, at another time.
    """

    dataset: ShardedDataset | None = None
    counts: dict[int, tuple[float, Counter[tuple[str, str]]]] = field(default_factory=dict)


def dataset_status(url: Location, stall_s: float, outcomes: bool, seen: StatusCache, now: float) -> DatasetStatus:
    """The status of the dataset at `url`; the arguments are those of read_status. Raises PipelineError."""
    dataset = seen.dataset = seen.dataset or open_any(url)
    sizes, planned = dataset.plan.outline.clips, dataset.plan.clips
    listing = dataset.indexes.listing(fresh=True)
    commits = {shard: at for shard, at in _commits(listing).items() if shard < len(sizes)}
    clips = int(sizes[list(commits)].sum()) if commits else 0
    rate, interval = _rate(_events(listing, sizes))
    counts = _count_outcomes(dataset, commits, seen) if outcomes else None
    record = newest_record(url)
    last = max(commits.values(), default=change_times(url / "dataset.json").get("dataset.json"))
    idle = None if last is None else max(now - last, 0.0)
    quiet = idle
    if idle is not None and record is not None and record.status == "running":
        quiet = min(idle, max(now - record.finished_at, 0.0))  # it is written while clips are done, within a shard too
    done = len(commits) == len(sizes)
    if _copied(commits, record, done):
        rate = None
    left = None if rate is None or clips == planned else (planned - clips) / rate
    status = DatasetStatus(
        url=url,
        state="done" if done else state_of(bool(commits), quiet, stall_s, interval),
        shards=len(commits),
        shards_planned=len(sizes),
        clips=clips,
        clips_planned=planned,
        outcomes=None,
        reasons=None,
        rate=rate,
        left_s=left,
        idle_s=idle,
        slowest_stage=record.slowest_stage if record else "",
        stages={name: record.busy_share(name) for name in record.stages} if record else {},
    )
    versions = versions_of(dataset.about, url) if "versions" in dataset.about else []
    if versions:
        whole = newest_whole(versions, sorted(commits))
        status.version, status.whole_version = versions[-1].number, whole.number if whole else None
    if counts is not None:
        status.outcomes = dict.fromkeys(shards.OUTCOMES, 0)
        for (outcome, _), count in counts.items():
            status.outcomes[outcome] = status.outcomes.get(outcome, 0) + count
        status.reasons = {reason: count for (_, reason), count in counts.most_common() if reason}
    if status.state != "done" and record is not None and record.status == "interrupted":
        begun_again = last is not None and last > record.finished_at + _RECORD_SLACK_S
        status.state = status.state if begun_again else "interrupted"
    if status.state in ("stalled", "interrupted"):
        status.left_s = None
        what = f"{'no commit' if commits else 'planned, and no commit'} for {clock(idle or 0.0)}: is it running?"
        if status.state == "interrupted":
            what = "the last run was interrupted."
        job = "encode" if isinstance(dataset, FeatureDataset) else "preprocess"
        status.notice = f"{what} The same {job} command again makes what is missing"
    elif not status.well:
        status.notice = "no clip is ok: the reasons say why"
    return status


def _copied(commits: dict[int, float], record: RunRecord | None, done: bool) -> bool:
    """Whether the times of the commits are those of a copy, and say nothing of how fast they were made.

    A run that ends writes its record after its last commit. One that is under way may not have written any.
    """
    if record is None:
        return done
    made = min if record.status == "running" or not done else max
    recorded = record.ok + record.failed > 0
    return recorded and made(commits.values(), default=0.0) > record.finished_at + _RECORD_SLACK_S


def _commits(listing: IndexListing) -> dict[int, float]:
    """When the file that commits each shard was written, seconds since 1970: of merged ones, when they were merged."""
    widest_first = sorted(listing.files, key=lambda file: -len(file.span.shards))
    timed = [(file.span, file.entry.modified) for file in widest_first if file.entry.modified is not None]
    return {shard: at for span, at in timed for shard in span.shards}


def _events(listing: IndexListing, sizes: np.ndarray) -> list[tuple[float, int]]:
    """Time and clips of commits, in order of time: of single shards; of merged files where no two are single.

    A merge says when a thousand shards were all there, and not how fast the last few were made.
    """
    single = [file for file in listing.files if file.span.first == file.span.last]
    counted = single if len(single) > 1 else listing.files
    return sorted(
        (file.entry.modified, int(sizes[file.span.first : file.span.last + 1].sum()))
        for file in counted
        if file.entry.modified is not None
    )


def _rate(commits: list[tuple[float, int]]) -> tuple[float | None, float]:
    """Clips a second over the last commits, and seconds between two of them.

    commits: (time, clips) in order of time. A long pause is where one run ended and the next began: commits before it
        are left out.
    """
    recent = commits[-WINDOW - 1 :]
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(recent)]
    for place in range(len(gaps) - 1, -1, -1):
        others = [*gaps[:place], *gaps[place + 1 :]]
        mean = statistics.fmean(others) if others else 0.0
        if gaps[place] > max(_BREAK_S, _BREAK_TIMES * mean):
            recent, gaps = recent[place + 1 :], gaps[place + 1 :]
            break
    span = sum(gaps)
    if span <= 0:
        return None, 0.0
    return sum(clips for _, clips in recent[1:]) / span, span / len(gaps)


def _count_outcomes(dataset: ShardedDataset, commits: dict[int, float], seen: StatusCache) -> Counter[tuple[str, str]]:
    """Clips by (outcome, reason) over the committed shards."""

    def count(shard: int) -> Counter[tuple[str, str]]:
        try:
            table = dataset.read_index(shard)
        except FileNotFoundError:  # taken back since it was listed, by retry=failed
            return Counter()
        rows = zip(table["outcome"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return Counter((str(outcome), str(reason or "")) for outcome, reason in rows)

    fresh = [shard for shard, at in commits.items() if shard not in seen.counts or seen.counts[shard][0] != at]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for shard, counts in zip(fresh, pool.map(count, fresh), strict=True):
            seen.counts[shard] = (commits[shard], counts)
    return sum((seen.counts[shard][1] for shard in commits), Counter())
