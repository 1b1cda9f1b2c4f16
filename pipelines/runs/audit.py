"""The proof, from a run's ledger, that every sample was used as often as the order has it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from pipelines.errors import PipelineError
from pipelines.loading.order import DatasetCounts, batches, epoch_order, epoch_samples, rank_part
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.ledger import GROUPS, LEDGER_SCHEMA, Attempt, attempts, ids_hash
from pipelines.storage import store, tables, urls

_NONE = np.zeros(0, np.int64)


_SEGMENT = re.compile(r"r(\d+)-s(\d+)\.parquet")


@dataclass
class Epoch:
    """What an epoch came to: steps done of those it has, samples used, used again to fill up, and skipped."""

    number: int
    steps: int = 0
    of: int = 0
    used: int = 0
    repeats: int = 0
    skipped: int = 0


@dataclass
class Audit:
    """What the audit found. `problems` names the first of them, in words; `count` is how many there are."""

    attempts: list[Attempt]
    steps: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    count: int = 0

    def wrong(self, what: str, limit: int = 20) -> None:
        self.count += 1
        if len(self.problems) < limit:
            self.problems.append(what)


def audit(run_url: str) -> Audit:
    """Prove from the ledger that the run consumed what it should have: every step whole; in each epoch every sample
    once, and again only what completes its last batch or stands for a sample that was skipped; all in the order that
    pipelines.loading.order gives, however many ranks there were. Of an RL run also: every group is there, sampled by
    exactly the version that the lag names for its step.

    Raises PipelineError when there is no ledger, or a part of it is damaged.
    """
    url = urls.normalise(run_url)
    begun = attempts(url)
    if not begun:
        raise PipelineError(f"{url}: no run is here (it has no ledger); give the run= of a training job")
    found, segments, first = Audit(begun), _segments(urls.join(url, "ledger")), begun[0]
    for name in ("global_batch", "seed", "window", "counts", "weights", "datasets", "ids", "lag"):
        for attempt in begun[1:]:
            if getattr(attempt, name) != getattr(first, name):
                found.wrong(f"attempt {attempt.number}: has other {name} than attempt {first.number}")
    numbers = {attempt.number for attempt in begun}
    for number in sorted({*range(1, max(numbers)), *segments} - numbers):
        found.wrong(f"attempt {number}: its attempt-{number:06d}.json is missing")
    if first.start:
        found.wrong(f"steps 0 to {first.start - 1}: no attempt recorded them")
    if found.count:
        return found  # there is no one order to compare with
    check = _Check(found, first)
    for place, attempt in enumerate(begun):
        mine = segments.get(attempt.number, {})
        for rank in sorted(mine.keys() - set(range(attempt.world))):
            found.wrong(f"attempt {attempt.number}: has steps of rank {rank}, in a world of {attempt.world}")
        if place + 1 < len(begun):
            end = min(later.start for later in begun[place + 1 :])
        else:  # beyond the last checkpoint, what not every rank has flushed is not held against a run that was killed
            durable = Checkpoints(url).latest() or 0
            end = max(durable, min(check.end(mine.get(rank, {})) for rank in range(attempt.world)))
            found.steps = max(attempt.start, end)
        check.attempt(attempt, mine, end)
    check.close()
    return found


def _segments(url: str) -> dict[int, dict[int, dict[int, str]]]:
    """URLs of segments by attempt, rank and first step."""
    found: dict[int, dict[int, dict[int, str]]] = {}
    for entry in store.list_objects(url):
        folder, _, name = entry.url[len(url) + 1 :].partition("/")
        if folder.isdigit() and (match := _SEGMENT.fullmatch(name)):
            rank, first = int(match.group(1)), int(match.group(2))
            found.setdefault(int(folder), {}).setdefault(rank, {})[first] = entry.url
    return found


def _read(url: str, schema: pa.Schema) -> dict[str, np.ndarray]:
    table = tables.read(url, schema, "a segment of a ledger")
    return {name: table[name].to_numpy() for name in schema.names}


class _Check:
    """Goes through the history that counts, an epoch at a time.

    A sample has a place among all samples of the run (dataset, shard, position: as in pipelines.loading.order) and a
    number (what the ledger holds). Which number belongs to which place is learnt where the place first comes up;
    numbers must go up with places, and never change.
    """

    def __init__(self, found: Audit, run: Attempt) -> None:
        self.found, self.run = found, run
        self.schema = LEDGER_SCHEMA if run.lag is None else GROUPS
        # Short epochs come back to the same segments.
        self.read = lru_cache(maxsize=16)(partial(_read, schema=self.schema))
        self.sources = [DatasetCounts(np.array(c, np.int64), w) for c, w in zip(run.counts, run.weights, strict=True)]
        self.per_epoch = -(-epoch_samples(self.sources) // run.global_batch)
        sizes = np.array([int(source.counts.sum()) for source in self.sources])
        self.begins = np.cumsum(sizes) - sizes
        self.number_of = np.full(int(sizes.sum()), -1, np.int64)
        self.learnt_at = np.zeros(len(self.number_of), np.int64)
        self.epoch: Epoch | None = None

    def end(self, segments: dict[int, str]) -> int:
        """The step after the last that a rank recorded; 0 if it recorded none."""
        return int(self.read(segments[max(segments)])["step"].max()) + 1 if segments else 0

    def attempt(self, attempt: Attempt, segments: dict[int, dict[int, str]], end: int) -> None:
        """Take in what an attempt did, up to the step `end`."""
        step = attempt.start
        while step < end:
            number = step // self.per_epoch
            if self.epoch is None or self.epoch.number != number:
                self._open(number)
            stop = min(end, (number + 1) * self.per_epoch)
            for rank in range(attempt.world):
                self._take(attempt, rank, segments.get(rank, {}), step, stop)
            step = stop

    def _open(self, number: int) -> None:
        """Begin an epoch: what its order has at each place of its batches, and nothing taken yet."""
        self._close_epoch()
        run = self.run
        order = epoch_order(self.sources, seed=run.seed, epoch=number, window=run.window)
        places = self.begins[order.source] + order.sample
        for source, about in enumerate(self.sources):
            mine = order.source == source
            places[mine] += (np.cumsum(about.counts) - about.counts)[order.shard[mine]]
        cut = batches(order, global_batch=run.global_batch)
        self.due, self.due_again = places[cut.places], cut.repeat
        self.ids, self.again = np.full(self.due.shape, -1, np.int64), np.zeros(self.due.shape, bool)
        self.skips = np.zeros(len(self.due), np.int64)
        self.covered, self.loose, self.skipped = np.zeros(len(self.due), bool), [_NONE], [_NONE]
        self.epoch = Epoch(number, of=self.per_epoch)
        self.found.epochs.append(self.epoch)

    def _take(self, attempt: Attempt, rank: int, segments: dict[int, str], start: int, stop: int) -> None:
        """Put what one rank did in steps start to stop, all of one epoch, where it belongs."""
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
            np.concatenate([part[name] for part in parts]) if parts else _NONE for name in self.schema.names
        )
        inside = (steps >= start) & (steps < stop)
        for step in np.unique(steps[inside & (epochs != self.epoch.number)]):
            self.found.wrong(f"{where} {step}: recorded as of another epoch by rank {rank}")
        lost = inside & skipped.astype(bool)
        if self.run.lag is not None:
            versions, groups = grouped
            due = np.maximum(steps - self.run.lag, 0)
            for row in np.flatnonzero(inside & ~lost & (versions != due)):
                self.found.wrong(
                    f"{where} {steps[row]}: the group of sample {ids[row]} is of version {versions[row]}, "
                    f"lag {self.run.lag} has {due[row]} there"
                )
            for row in np.flatnonzero(inside & ~lost & (groups == 0)):
                self.found.wrong(f"{where} {steps[row]}: no group of sample {ids[row]} is recorded")
        self.skipped.append(ids[lost])
        np.add.at(self.skips, steps[lost] - first, 1)
        inside &= ~lost
        steps, ids, again = steps[inside], ids[inside], again[inside].astype(bool)
        held = np.bincount(steps - start, minlength=stop - start)
        for row in np.flatnonzero(held != len(columns)):
            what = f"{held[row]} samples instead of {len(columns)}" if held[row] else "nothing"
            self.found.wrong(f"{where} {start + row}: rank {rank} of attempt {attempt.number} recorded {what}")
        whole = (held == len(columns))[steps - start]
        self.loose.append(ids[~whole & ~again])
        rows = steps[whole].reshape(-1, len(columns)) - first
        self.ids[rows, columns] = ids[whole].reshape(rows.shape)
        self.again[rows, columns] = again[whole].reshape(rows.shape)

    def _close_epoch(self) -> None:
        """Compare the epoch, or as much of it as was done, with its order."""
        epoch = self.epoch
        if epoch is None:
            return
        first, where = epoch.number * self.per_epoch, f"epoch {epoch.number} step"
        there = self.ids >= 0
        steps = np.broadcast_to(np.arange(len(self.due))[:, None] + first, self.due.shape)
        used = there & ~self.again
        ids, at = self.ids[used], steps[used]
        by_id = np.argsort(ids, kind="stable")
        same = np.flatnonzero(np.diff(ids[by_id]) == 0)
        for one, two in zip(by_id[same], by_id[same + 1], strict=True):
            self.found.wrong(f"{where} {at[two]}: sample {ids[two]} again; step {at[one]} of this epoch had it")
        # What stands for a skipped sample is marked as a repeat, at a place where the order has another.
        learn = used & ~self.due_again & (self.number_of[self.due] < 0) & ~np.isin(self.ids, ids[by_id[same]])
        self.number_of[self.due[learn]], self.learnt_at[self.due[learn]] = self.ids[learn], steps[learn]
        wanted = self.number_of[self.due]
        other = there & (wanted >= 0) & (wanted != self.ids)
        stands = there & self.again & (other | (wanted < 0) | ~self.due_again) & (self.skips > 0)[:, None]
        for row in np.flatnonzero((stands.sum(1) != self.skips) & there.all(1)):
            self.found.wrong(f"{where} {first + row}: {self.skips[row]} skipped, {stands[row].sum()} in their place")
        for row, column in np.argwhere(other & ~stands):
            self.found.wrong(
                f"{where} {first + row}: sample {self.ids[row, column]}, where the order has {wanted[row, column]}"
            )
        for row, column in np.argwhere(there & ~stands & ~other & (self.again != self.due_again)):
            new = "used for the first time" if self.due_again[row, column] else "a repeat"
            self.found.wrong(f"{where} {first + row}: sample {self.ids[row, column]} is recorded as {new}, it is not")
        had = np.concatenate([ids, *self.loose, *self.skipped])
        expected = self.covered[:, None] & ~self.due_again
        missing = expected & (wanted >= 0) & ~np.isin(wanted, had)
        for row, column in np.argwhere(missing):
            self.found.wrong(f"{where} {first + row}: sample {wanted[row, column]} was not used in this epoch")
        epoch.steps, epoch.used = int(self.covered.sum()), len(ids) + sum(map(len, self.loose))
        epoch.repeats, epoch.skipped = int((there & self.again).sum()), int(self.skips.sum())
        self.epoch = None

    def close(self) -> None:
        """Close the last epoch. Where numbers do not go up with places, samples were exchanged when first seen."""
        self._close_epoch()
        known = np.flatnonzero(self.number_of >= 0)
        numbers = self.number_of[known]
        below = np.maximum.accumulate(np.concatenate([[-1], numbers]))[:-1]
        above = np.minimum.accumulate(np.concatenate([numbers, [np.iinfo(np.int64).max]])[::-1])[::-1][1:]
        for place in known[(numbers <= below) | (numbers >= above)]:
            step = int(self.learnt_at[place])
            what = f"sample {self.number_of[place]}, where the order has another"
            self.found.wrong(f"epoch {step // self.per_epoch} step {step}: {what}")
        if self.run.ids and len(known) == len(self.number_of) and ids_hash(numbers) != self.run.ids:
            self.found.wrong("the samples that were used are not those of the datasets: some are strangers to them")
