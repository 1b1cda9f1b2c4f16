"""The audit of a run: its ledger proves that every sample was used as often, and where, as the run's order says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from pipelines.errors import PipelineError
from pipelines.loading.order import DatasetCounts, batches, epoch_order, epoch_samples, rank_part
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.ledger import LEDGER_SCHEMA, RL_LEDGER_SCHEMA, Attempt, attempts, ids_hash
from pipelines.storage import store, tables
from pipelines.storage.location import Location

_SEGMENT = re.compile(r"r(\d+)-s(\d+)\.parquet")
_NO_ROWS = np.zeros(0, np.int64)


@dataclass
class Epoch:
    """What was done of an epoch: steps (of all `of`), samples used, samples repeated to fill up, samples skipped."""

    number: int
    steps: int = 0
    of: int = 0
    used: int = 0
    repeats: int = 0
    skipped: int = 0


@dataclass
class Audit:
    """The result. count: how many problems there are; problems: the first of them, one line each."""

    attempts: list[Attempt]
    steps: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, problem: str, limit: int = 20) -> None:
        """Count a problem, and keep its text if it is one of the first `limit`."""
        self.count += 1
        if len(self.problems) < limit:
            self.problems.append(problem)


def audit(run_url: str) -> Audit:
    """Check a run's ledger against the order that pipelines.loading.order gives, whatever its attempts and ranks were.

    Every step must be complete. Each epoch must use every sample once, in order; a sample may come again only to fill
    up the epoch's last batch or to replace one that was skipped. In an RL run every sample also has a group, sampled by
    exactly the version that the lag says for its step.

    Raises PipelineError when the run has no ledger, or part of it is damaged.
    """
    url = Location(run_url)
    begun = attempts(url)
    if not begun:
        raise PipelineError(f"{url}: no run is here (it has no ledger); give the run= of a training job")
    result, segments, first = Audit(begun), _segments(url / "ledger"), begun[0]
    for name in ("global_batch", "seed", "window", "counts", "weights", "datasets", "ids", "lag"):
        for attempt in begun[1:]:
            if getattr(attempt, name) != getattr(first, name):
                result.add(f"attempt {attempt.number}: its {name} differs from that of attempt {first.number}")
    numbers = {attempt.number for attempt in begun}
    for number in sorted({*range(1, max(numbers)), *segments} - numbers):
        result.add(f"attempt {number}: its attempt-{number:06d}.json is missing")
    if first.start:
        result.add(f"steps 0 to {first.start - 1}: no attempt recorded them")
    if result.count:
        return result  # there is no single order to compare with
    check = _Check(result, first)
    for place, attempt in enumerate(begun):
        by_rank = segments.get(attempt.number, {})
        for rank in sorted(by_rank.keys() - set(range(attempt.world))):
            result.add(f"attempt {attempt.number}: has steps of rank {rank}, in a world of {attempt.world}")
        if place + 1 < len(begun):
            end = min(later.start for later in begun[place + 1 :])
        else:
            # A killed run may lack what some ranks had not flushed, but nothing before its last checkpoint.
            durable = Checkpoints(url).latest() or 0
            end = max(durable, min(check.end(by_rank.get(rank, {})) for rank in range(attempt.world)))
            result.steps = max(attempt.start, end)
        check.attempt(attempt, by_rank, end)
    check.close()
    return result


def _segments(url: str) -> dict[int, dict[int, dict[int, str]]]:
    """URLs of segments by attempt, rank and first step."""
    segments: dict[int, dict[int, dict[int, str]]] = {}
    for entry in store.list_objects(url):
        folder, _, name = entry.url[len(url) + 1 :].partition("/")
        if folder.isdigit() and (match := _SEGMENT.fullmatch(name)):
            rank, first = int(match.group(1)), int(match.group(2))
            segments.setdefault(int(folder), {}).setdefault(rank, {})[first] = entry.url
    return segments


def _read(url: str, schema: pa.Schema) -> dict[str, np.ndarray]:
    table = tables.read(url, schema, "a segment of a ledger")
    return {name: table[name].to_numpy() for name in schema.names}


class _Check:
    """Goes through the steps that count, one epoch at a time.

    A sample has a place among all samples of the run (by dataset, shard and position, as in pipelines.loading.order)
    and a number, which the ledger records. The ledger does not say which number is at which place; that is learnt when
    a place first comes up. From then on it must not change, and numbers must rise with places.
    """

    def __init__(self, result: Audit, run: Attempt) -> None:
        self.result, self.run = result, run
        self.schema = LEDGER_SCHEMA if run.lag is None else RL_LEDGER_SCHEMA
        # Epochs can be shorter than segments, which are then read for several of them.
        self.read = lru_cache(maxsize=16)(partial(_read, schema=self.schema))
        self.sources = [DatasetCounts(np.array(c, np.int64), w) for c, w in zip(run.counts, run.weights, strict=True)]
        self.per_epoch = -(-epoch_samples(self.sources) // run.global_batch)
        sizes = np.array([int(source.counts.sum()) for source in self.sources])
        self.begins = np.cumsum(sizes) - sizes
        self.number_of = np.full(int(sizes.sum()), -1, np.int64)
        self.learnt_at = np.zeros(len(self.number_of), np.int64)
        self.epoch: Epoch | None = None

    def end(self, segments: dict[int, str]) -> int:
        """The step after the last one that a rank recorded; 0 if it recorded none."""
        return int(self.read(segments[max(segments)])["step"].max()) + 1 if segments else 0

    def attempt(self, attempt: Attempt, segments: dict[int, dict[int, str]], end: int) -> None:
        """Take in the steps of an attempt, up to but not including `end`."""
        step = attempt.start
        while step < end:
            number = step // self.per_epoch
            if self.epoch is None or self.epoch.number != number:
                self._open_epoch(number)
            stop = min(end, (number + 1) * self.per_epoch)
            for rank in range(attempt.world):
                self._take(attempt, rank, segments.get(rank, {}), step, stop)
            step = stop

    def close(self) -> None:
        """Close the last epoch, and check that numbers rise with places: else samples were exchanged when learnt."""
        self._close_epoch()
        known = np.flatnonzero(self.number_of >= 0)
        numbers = self.number_of[known]
        below = np.maximum.accumulate(np.concatenate([[-1], numbers]))[:-1]
        above = np.minimum.accumulate(np.concatenate([numbers, [np.iinfo(np.int64).max]])[::-1])[::-1][1:]
        for place in known[(numbers <= below) | (numbers >= above)]:
            step = int(self.learnt_at[place])
            problem = f"sample {self.number_of[place]}, where the order has another"
            self.result.add(f"epoch {step // self.per_epoch} step {step}: {problem}")
        if self.run.ids and len(known) == len(self.number_of) and ids_hash([numbers]) != self.run.ids:
            self.result.add("the run used samples that its datasets do not have")

    def _open_epoch(self, number: int) -> None:
        """Begin an epoch: lay out its order as due [steps, G], with nothing taken yet."""
        self._close_epoch()
        run = self.run
        order = epoch_order(self.sources, seed=run.seed, epoch=number, window=run.window)
        places = self.begins[order.source] + order.sample
        for source, dataset in enumerate(self.sources):
            of_source = order.source == source
            places[of_source] += (np.cumsum(dataset.counts) - dataset.counts)[order.shard[of_source]]
        cut = batches(order, global_batch=run.global_batch)
        self.due, self.due_again = places[cut.places], cut.repeat
        self.ids, self.again = np.full(self.due.shape, -1, np.int64), np.zeros(self.due.shape, bool)
        self.skips = np.zeros(len(self.due), np.int64)
        self.covered = np.zeros(len(self.due), bool)
        # Numbers of samples in steps that are not complete, and of those that were skipped.
        self.loose, self.skipped = [_NO_ROWS], [_NO_ROWS]
        self.epoch = Epoch(number, of=self.per_epoch)
        self.result.epochs.append(self.epoch)

    def _take(self, attempt: Attempt, rank: int, segments: dict[int, str], start: int, stop: int) -> None:
        """Put what one rank did in steps start to stop, all of one epoch, in its columns of the epoch."""
        assert self.epoch is not None
        first, where = self.epoch.number * self.per_epoch, f"epoch {self.epoch.number} step"
        self.covered[start - first : stop - first] = True
        columns = rank_part(np.arange(attempt.global_batch), rank, attempt.world)
        begins = sorted(segments)
        parts = [
            self.read(segments[begin])
            for begin, following in zip(begins, [*begins, stop + 1][1:], strict=True)
            if begin < stop and following > start
        ]
        steps, epochs, ids, again, skipped, *grouped = (
            np.concatenate([part[name] for part in parts]) if parts else _NO_ROWS for name in self.schema.names
        )
        inside = (steps >= start) & (steps < stop)
        for step in np.unique(steps[inside & (epochs != self.epoch.number)]):
            self.result.add(f"{where} {step}: rank {rank} recorded it as of another epoch")
        lost = inside & skipped.astype(bool)
        if self.run.lag is not None:
            versions, groups = grouped
            self._check_groups(where, steps, ids, versions, groups, inside & ~lost)
        self.skipped.append(ids[lost])
        np.add.at(self.skips, steps[lost] - first, 1)
        inside &= ~lost
        steps, ids, again = steps[inside], ids[inside], again[inside].astype(bool)
        recorded = np.bincount(steps - start, minlength=stop - start)
        for row in np.flatnonzero(recorded != len(columns)):
            what = f"{recorded[row]} samples instead of {len(columns)}" if recorded[row] else "nothing"
            self.result.add(f"{where} {start + row}: rank {rank} of attempt {attempt.number} recorded {what}")
        complete = (recorded == len(columns))[steps - start]
        self.loose.append(ids[~complete & ~again])
        rows = steps[complete].reshape(-1, len(columns)) - first
        self.ids[rows, columns] = ids[complete].reshape(rows.shape)
        self.again[rows, columns] = again[complete].reshape(rows.shape)

    def _check_groups(
        self, where: str, steps: np.ndarray, ids: np.ndarray, versions: np.ndarray, groups: np.ndarray, used: np.ndarray
    ) -> None:
        """Of an RL run: every used sample has a group, of the version that the lag says for its step."""
        assert self.run.lag is not None
        due = np.maximum(steps - self.run.lag, 0)
        for row in np.flatnonzero(used & (versions != due)):
            self.result.add(
                f"{where} {steps[row]}: the group of sample {ids[row]} is of version {versions[row]}; "
                f"with lag {self.run.lag} it must be of version {due[row]}"
            )
        for row in np.flatnonzero(used & (groups == 0)):
            self.result.add(f"{where} {steps[row]}: no group of sample {ids[row]} is recorded")

    def _close_epoch(self) -> None:
        """Compare the epoch, or as much of it as was done, with its order."""
        epoch = self.epoch
        if epoch is None:
            return
        first, where = epoch.number * self.per_epoch, f"epoch {epoch.number} step"
        recorded = self.ids >= 0
        steps = np.broadcast_to(np.arange(len(self.due))[:, None] + first, self.due.shape)
        used = recorded & ~self.again
        ids, at = self.ids[used], steps[used]
        by_id = np.argsort(ids, kind="stable")
        same = np.flatnonzero(np.diff(ids[by_id]) == 0)
        for one, two in zip(by_id[same], by_id[same + 1], strict=True):
            self.result.add(f"{where} {at[two]}: sample {ids[two]} again; step {at[one]} of this epoch had it")
        # A sample that replaces a skipped one is marked as a repeat at a place where the order has another sample.
        learn = used & ~self.due_again & (self.number_of[self.due] < 0) & ~np.isin(self.ids, ids[by_id[same]])
        self.number_of[self.due[learn]], self.learnt_at[self.due[learn]] = self.ids[learn], steps[learn]
        wanted = self.number_of[self.due]
        other = recorded & (wanted >= 0) & (wanted != self.ids)
        replaces = recorded & self.again & (other | (wanted < 0) | ~self.due_again) & (self.skips > 0)[:, None]
        for row in np.flatnonzero((replaces.sum(1) != self.skips) & recorded.all(1)):
            self.result.add(f"{where} {first + row}: {self.skips[row]} skipped, but {replaces[row].sum()} replaced")
        for row, column in np.argwhere(other & ~replaces):
            self.result.add(
                f"{where} {first + row}: sample {self.ids[row, column]}, where the order has {wanted[row, column]}"
            )
        for row, column in np.argwhere(recorded & ~replaces & ~other & (self.again != self.due_again)):
            wrongly = "as used for the first time" if self.due_again[row, column] else "as a repeat"
            self.result.add(f"{where} {first + row}: sample {self.ids[row, column]} is wrongly recorded {wrongly}")
        had = np.concatenate([ids, *self.loose, *self.skipped])
        expected = self.covered[:, None] & ~self.due_again
        missing = expected & (wanted >= 0) & ~np.isin(wanted, had)
        for row, column in np.argwhere(missing):
            self.result.add(f"{where} {first + row}: sample {wanted[row, column]} was not used in this epoch")
        epoch.steps, epoch.used = int(self.covered.sum()), len(ids) + sum(map(len, self.loose))
        epoch.repeats, epoch.skipped = int((recorded & self.again).sum()), int(self.skips.sum())
        self.epoch = None
