"""How far a job is, read from what it left in storage: a dataset of preprocess, or the run of a training job.

The job itself is asked nothing, so this works while it runs, after it, and from any machine that reaches the storage.
What is said of time comes from the storage's clock: when indexes were committed, when events were written.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pandas as pd
import yaml

from pipelines.dataset import shards
from pipelines.dataset.run_records import ended_at, newest_record, stage_shares
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.events import read_events
from pipelines.runs.ledger import attempts
from pipelines.storage import retry, store, urls

WELL = ("starting", "running", "done")  # other states: interrupted, stopped, stalled
_WINDOW = 50  # commits, or steps, that a rate is taken over
_BREAK_S, _BREAK_TIMES = 60.0, 10.0  # a pause this long, and so many times the mean, is no part of the rate
_PATIENCE = 5.0  # a job is stalled after so many of its usual intervals, if that is longer than what was asked for
_AT_ONCE = 16


@dataclass
class DatasetStatus:
    """A dataset that preprocess makes or made. Rates are in clips a second, times in seconds."""

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
    """Share of the newest run's time that each stage's workers were busy; {} before a run has said so."""
    notice: str = ""
    what: str = "dataset"

    @property
    def well(self) -> bool:
        return self.state in WELL and not (self.state == "done" and self.outcomes is not None and not self._ok)

    @property
    def _ok(self) -> int:
        return (self.outcomes or {}).get("ok", 0)


@dataclass
class RunStatus:
    """A training run. `failures` counts attempts that ended without a word: killed, or by an error."""

    url: str
    kind: str
    state: str
    step: int
    steps: int | None
    epoch: int | None
    loss: float | None
    rate: float | None
    wait: float | None
    left_s: float | None
    idle_s: float | None
    world: int | None
    attempts: int
    failures: int
    skipped: int
    checkpoint: int | None
    validation: dict[str, float]
    idle: dict[str, float]
    """Share of the time that rollouts and learner of an RL run waited for each other."""
    bottleneck: str = ""
    notice: str = ""
    what: str = "run"

    @property
    def well(self) -> bool:
        return self.state in WELL


@dataclass
class StatusCache:
    """What one look need not read again at the next: a committed shard does not change, unless it is taken back."""

    dataset: Dataset | None = None
    counts: dict[int, tuple[float, Counter[tuple[str, str]]]] = field(default_factory=dict)


def read_status(
    url: str,
    *,
    stall_s: float = 600.0,
    outcomes: bool = True,
    seen: StatusCache | None = None,
    now: float | None = None,
) -> DatasetStatus | RunStatus:
    """The status of what is at `url`.

    Args:
        stall_s: without a commit or an event for so long (or for five of the usual intervals) a job is stalled.
        outcomes: read every index for outcomes and reasons; without, a dataset costs one listing and its plan.
        seen: kept from look to look by whoever looks again.
        now: seconds since 1970, of the storage's clock; None: this machine's.
    Raises:
        PipelineError: neither a dataset nor a run is there, or it is damaged.
    """
    url, seen, now = urls.normalise(url), seen or StatusCache(), time.time() if now is None else now
    if seen.dataset is not None or store.exists(urls.join(url, "dataset.json")):
        return _dataset_status(url, stall_s, outcomes, seen, now)
    if store.exists(urls.join(url, "config.yaml")):
        return _run_status(url, stall_s, now)
    raise PipelineError(
        f"{url}: neither a dataset (dataset.json) nor a training run (config.yaml) is here; a job writes these when it "
        "has read its input"
    )


# -- datasets --------------------------------------------------------------------------------------------------------


def _dataset_status(url: str, stall_s: float, outcomes: bool, seen: StatusCache, now: float) -> DatasetStatus:
    dataset = seen.dataset = seen.dataset or shards.open_dataset(url)
    sizes: dict[int, int] = dataset.plan["shard"].value_counts().to_dict()
    commits = {shard: at for shard, at in _commits(url).items() if shard in sizes}
    clips, planned = sum(sizes[shard] for shard in commits), len(dataset.plan)
    rate, interval = _rate(sorted((at, sizes[shard]) for shard, at in commits.items()))
    found = _count(dataset, commits, seen) if outcomes else None
    record = newest_record(url)
    stages, slowest = stage_shares(record)
    last = max(commits.values(), default=_modified(urls.join(url, "dataset.json")).get("dataset.json"))
    idle = None if last is None else max(now - last, 0.0)
    left = None if rate is None or clips == planned else (planned - clips) / rate
    status = DatasetStatus(
        url=url,
        state="done" if len(commits) == len(sizes) else _state(bool(commits), idle, stall_s, interval),
        shards=len(commits),
        shards_planned=len(sizes),
        clips=clips,
        clips_planned=planned,
        outcomes=None,
        reasons=None,
        rate=rate,
        left_s=left,
        idle_s=idle,
        slowest_stage=slowest,
        stages=stages,
    )
    if found is not None:
        status.outcomes = dict.fromkeys(shards.OUTCOMES, 0)
        for (outcome, _), count in found.items():
            status.outcomes[outcome] = status.outcomes.get(outcome, 0) + count
        status.reasons = {reason: count for (_, reason), count in found.most_common() if reason}
    if status.state != "done" and record.get("status") == "interrupted" and ended_at(record) >= (last or 0.0) - 5.0:
        status.state = "interrupted"
    if status.state in ("stalled", "interrupted"):
        status.left_s = None
        status.notice = (
            f"{'no commit' if commits else 'planned, and no commit'} for {clock(idle or 0.0)}: is it running? The same "
            "preprocess command again makes what is missing"
        )
    elif not status.well:
        status.notice = "no clip came out well: the reasons say why"
    return status


def _state(begun: bool, idle: float | None, stall_s: float, interval: float) -> str:
    if idle is not None and idle > max(stall_s, _PATIENCE * interval):
        return "stalled"
    return "running" if begun else "starting"


def _commits(url: str) -> dict[int, float]:
    """When each committed shard's index was written, seconds since 1970."""
    found = _modified(urls.join(url, "index"))
    return {int(name[:-8]): at for name, at in found.items() if name.endswith(".parquet") and name[:-8].isdigit()}


def _modified(url: str) -> dict[str, float]:
    """Time of the last change of every object under a URL (or of the one it names), by its file name."""
    if urls.is_local(url):
        return {entry.url.rsplit("/", 1)[-1]: int(entry.version) / 1e9 for entry in store.list_objects(url)}
    # A client of its own: one that fsspec kept may know an endpoint and credentials of before.
    files = fsspec.filesystem(urls.scheme(url), use_listings_cache=False, skip_instance_cache=True)
    try:
        found = retry.retrying(lambda: dict(files.find(files._strip_protocol(url), detail=True)), url)
    except FileNotFoundError:
        return {}
    times = {}
    for name, about in found.items():
        # The names that fsspec's stores have for it; where there is none, nothing can be said of time.
        at = next((about[key] for key in ("LastModified", "mtime", "updated", "last_modified") if about.get(key)), None)
        if at is not None:
            times[name.rsplit("/", 1)[-1]] = at if isinstance(at, int | float) else pd.Timestamp(at).timestamp()
    return times


def _rate(commits: list[tuple[float, int]]) -> tuple[float | None, float]:
    """Clips a second over the last commits, and seconds between two commits, of (time, clips) in order of time.

    A long pause among them is where one run ended and the next began: what lies before it is left out.
    """
    recent = commits[-_WINDOW - 1 :]
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


def _count(dataset: Dataset, commits: dict[int, float], seen: StatusCache) -> Counter[tuple[str, str]]:
    """Clips by (outcome, reason) over the committed shards."""

    def one(shard: int) -> Counter[tuple[str, str]]:
        try:
            table = shards.read_index(dataset.url, shard)
        except FileNotFoundError:  # taken back since it was listed, by retry=failed
            return Counter()
        rows = zip(table["outcome"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return Counter((str(outcome), str(reason or "")) for outcome, reason in rows)

    fresh = [shard for shard, at in commits.items() if shard not in seen.counts or seen.counts[shard][0] != at]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for shard, found in zip(fresh, pool.map(one, fresh), strict=True):
            seen.counts[shard] = (commits[shard], found)
    return sum((seen.counts[shard][1] for shard in commits), Counter())


# -- runs ------------------------------------------------------------------------------------------------------------


def _run_status(url: str, stall_s: float, now: float) -> RunStatus:
    try:
        kind = str(yaml.safe_load(store.read(urls.join(url, "config.yaml")))["kind"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise PipelineError(f"{url}/config.yaml: damaged, or not that of a training run") from error
    try:
        events = read_events(url)
    except PipelineError as error:
        if "no events are here" not in str(error):
            raise
        events = pd.DataFrame({"kind": [], "time": [], "step": []})
    rows = [{str(k): v for k, v in row.items() if not _missing(v)} for row in events.to_dict("records")]
    starts = [row for row in rows if row["kind"] == "start"]
    start = starts[-1] if starts else {}
    steps = [row for row in rows if row["kind"] == "step"]
    recent = [row for row in steps[-_WINDOW - 1 :] if row["time"] >= start.get("time", 0.0)]
    last, end = steps[-1] if steps else {}, rows[-1] if rows else {"kind": ""}
    step, planned = int(last.get("step", start.get("step", 0))), start.get("steps")
    interval = (recent[-1]["time"] - recent[0]["time"]) / (len(recent) - 1) if len(recent) > 1 else 0.0
    idle = max(now - rows[-1]["time"], 0.0) if rows else _since(urls.join(url, "config.yaml"), now)
    state = end["kind"] if end["kind"] in ("done", "stopped") else _state(bool(recent), idle, stall_s, interval)
    left = (int(planned) - step) * interval if planned and interval and state == "running" else None
    begun = max(len(attempts(url)), len(starts))
    ended = sum(row["kind"] in ("done", "stopped") for row in rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        checkpoint = Checkpoints(url).latest()
    validations = [row for row in rows if row["kind"] == "validation"]
    status = RunStatus(
        url=url,
        kind=kind,
        state=state,
        step=step,
        steps=None if planned is None else int(planned),
        epoch=None if "epoch" not in last else int(last["epoch"]),
        loss=last.get("loss"),
        rate=last.get("samples_per_s"),
        wait=last.get("wait"),
        left_s=left,
        idle_s=idle,
        world=None if "world" not in start else int(start["world"]),
        attempts=begun,
        failures=max(begun - ended - (state in ("starting", "running", "stalled")), 0),
        skipped=int(sum(row.get("skipped", 0.0) for row in steps)),
        checkpoint=checkpoint,
        validation=_numbers(validations[-1] if validations else {}),
        idle={name: last[f"idle_{name}"] for name in ("rollout", "learner") if f"idle_{name}" in last},
        bottleneck=next((str(row["which"]) for row in reversed(rows) if row["kind"] == "bottleneck"), ""),
        notice="; ".join(str(warning.message) for warning in told),
    )
    if state == "stalled":
        status.notice = f"no event for {clock(idle or 0.0)}: is it running? The same command again goes on" + (
            f" from step {checkpoint}" if checkpoint else ""
        )
    return status


def _missing(value: Any) -> bool:
    """Whether a cell is what pandas fills a column up with. A loss that is not a number is not told from it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    own = ("time", "kind", "step")
    return {name: float(value) for name, value in row.items() if name not in own and isinstance(value, int | float)}


def _since(url: str, now: float) -> float | None:
    at = _modified(url).get(url.rsplit("/", 1)[-1])
    return None if at is None else max(now - at, 0.0)


def clock(seconds: float) -> str:
    """A time in words: 12 s, 4 min, 3 h 20 min, 2 d 5 h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
