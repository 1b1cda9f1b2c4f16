"""pipelines.runs.ledger: a history of any kills and world sizes audits clean, and no planted lie goes unnoticed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.loading.order import DatasetCounts, batches, epoch_order, rank_part
from pipelines.runs.audit import audit
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.ledger import LEDGER_SCHEMA, Attempt, Ledger, attempts, ids_hash
from pipelines.storage import store


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here, and there are many small files."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def attempt_of(number: int = 1, start: int = 0, **about: Any) -> Attempt:
    values: dict[str, Any] = {"world": 1, "global_batch": 4, "seed": 3, "window": 2, "counts": [[3]], "weights": [1.0]}
    return Attempt(number, start, datasets=["abc"], **(values | about))


@dataclass
class Job:
    """A stand-in for training: it does nothing but take samples, save now and then, and die."""

    url: str
    counts: list[list[int]] = field(default_factory=lambda: [[5, 0, 7, 4], [6, 1]])
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    global_batch: int = 4
    every: int = 3
    bad: frozenset[int] = frozenset()
    done: int = 0
    epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def sources(self) -> list[DatasetCounts]:
        return [DatasetCounts(np.array(c), w) for c, w in zip(self.counts, self.weights, strict=True)]

    @property
    def per_epoch(self) -> int:
        return len(self.epoch(0)[0])

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and repeats [steps, G]. A sample's number is not its place: some belong to another split."""
        if number not in self.epochs:
            order = epoch_order(self.sources, seed=3, epoch=number, window=2)
            numbers, place = {}, 0
            for s, counts in enumerate(self.counts):
                for shard, count in enumerate(counts):
                    for sample in range(count):
                        numbers[s, shard, sample] = 5 + 3 * place
                        place += 1
            ids = np.array([numbers[key] for key in zip(order.source, order.shard, order.sample, strict=True)])
            cut = batches(order, global_batch=self.global_batch)
            self.epochs[number] = ids[cut.places], cut.repeat
        return self.epochs[number]

    def attempt(self, world: int, steps: int, torn: int | None = None) -> None:
        """Run until `steps` more are done, then die: without a last flush, or with that of the first `torn` ranks."""
        number = len(attempts(self.url)) + 1
        attempt = attempt_of(
            number, self.done, world=world, counts=self.counts, weights=self.weights, global_batch=self.global_batch
        )
        ranks = [Ledger(self.url, attempt, rank) for rank in range(world)]
        for step in range(self.done, self.done + steps):
            ids, again = self.epoch(step // self.per_epoch)
            row = step % self.per_epoch
            for rank, ledger in enumerate(ranks):
                mine, repeats = rank_part(ids[row], rank, world).copy(), rank_part(again[row], rank, world).copy()
                skipped = [sample for sample in mine if sample in self.bad]
                for place in np.flatnonzero(np.isin(mine, list(self.bad))):
                    good = [sample for sample in mine if sample not in self.bad] or [int(ids[row][0])]
                    mine[place], repeats[place] = good[0], True
                ledger.add(step, step // self.per_epoch, mine, repeats, skipped)
            if (step + 1) % self.every == 0:
                self.save(ranks, step + 1)
        for ledger in ranks[: torn or 0]:
            ledger.flush()

    def save(self, ranks: list[Ledger], step: int) -> None:
        for ledger in ranks:
            ledger.flush()
        checkpoints = Checkpoints(self.url)
        checkpoints.save(step, {}, {}, wait=True)
        checkpoints.close()
        self.done = step

    def finish(self, world: int, epochs: int = 3) -> None:
        """Run to the end, which is saved."""
        self.every, every = 10**9, self.every
        left = epochs * self.per_epoch - self.done
        self.every = left + self.done if left else every
        self.attempt(world, left)


def finished(folder: Path, **about: Any) -> Job:
    """Three epochs on 2, 1, 2 ranks, killed twice."""
    job = Job(str(folder / "run"), **about)
    job.attempt(2, 5)
    job.attempt(1, 8)
    job.finish(2)
    return job


# -- clean histories -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=2).filter(
        lambda counts: all(map(sum, counts))
    ),
    kills=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 4)), max_size=5),
    every=st.integers(1, 5),
    weight=st.sampled_from([0.5, 1.0, 1.0, 2.0]),
)
def test_any_history_of_kills_and_world_sizes_is_clean(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[list[int]],
    kills: list[tuple[int, int, int]],
    every: int,
    weight: float,
) -> None:
    job = Job(str(tmp_path_factory.mktemp("r") / "run"), counts, [weight] + [1.0] * (len(counts) - 1), every=every)
    for world, steps, torn in kills:
        job.attempt(world, steps, torn)
        found = audit(job.url)
        assert found.problems == [] and found.count == 0 and found.steps >= job.done
    job.finish(1, epochs=max(2, -(-job.done // job.per_epoch)))
    found = audit(job.url)
    assert found.problems == [] and found.steps == job.done == len(found.epochs) * job.per_epoch
    assert all(epoch.steps == epoch.of and epoch.skipped == 0 for epoch in found.epochs)
    if weight == 1:
        samples = sum(map(sum, counts))
        assert {epoch.used for epoch in found.epochs} == {samples}
        assert {epoch.repeats for epoch in found.epochs} == {-samples % 4}


def test_what_could_not_be_read_is_accounted_for(tmp_path: Path) -> None:
    for bad in range(5, 5 + 3 * 23, 3):  # each sample in turn, those that fill up an epoch's last batch among them
        job = finished(tmp_path / str(bad), bad=frozenset({bad}))
        found = audit(job.url)
        assert found.problems == []
        assert all(epoch.used == 22 and epoch.skipped >= 1 for epoch in found.epochs)


def test_an_attempt_that_never_came_to_a_flush_counts_for_nothing(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "run"), every=100)
    for _ in range(3):
        job.attempt(2, 4)
    assert (audit(job.url).steps, audit(job.url).problems) == (0, [])


def test_going_back_before_the_last_start_is_a_history_too(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "run"), every=2)
    job.attempt(2, 8)
    job.done = 8
    job.attempt(1, 5)
    job.done = 4  # the later checkpoints were damaged
    job.attempt(2, 6)
    job.finish(1)
    assert audit(job.url).problems == []
    for path in segments(job):
        if not len(counted(job, path)):
            path.unlink()
    assert len(segments(job)) < 15 and audit(job.url).problems == [], "what does not count need not be there"


def test_a_million_samples_take_few_bytes_and_nothing_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = store.publish
    monkeypatch.setattr(store, "publish", lambda data, url: (written.append(url), real(data, url))[1])
    ids, none = np.random.default_rng(0).permutation(1_000_000)[:600_000], np.zeros(2000, bool)
    ledger = Ledger(str(tmp_path), attempt_of(global_batch=2000, counts=[[1_000_000]]), rank=0)
    for step, part in enumerate(ids.reshape(-1, 2000)):
        ledger.add(step, 0, part, none)
    assert len(written) > 2, "it flushes by itself before it holds much"
    ledger.flush()
    ledger.flush()
    assert len(written) == len(set(written))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) < 3.2 * len(ids)


def test_a_second_job_on_the_same_run_is_one_line(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "run"))
    job.attempt(1, 1)
    with pytest.raises(PipelineError, match="another job is at work"):
        Ledger(job.url, attempt_of(1), rank=0)
    ledger = Ledger(job.url, attempt_of(2, start=7), rank=0)
    with pytest.raises(ValueError, match="step 9 recorded after step 6"):
        ledger.add(9, 0, np.array([1]), np.array([False]))


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "events.jsonl").write_text("{}")])
def test_what_is_no_run_is_one_line(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    with pytest.raises(PipelineError, match="no run is here") as error:
        audit(str(tmp_path))
    assert "\n" not in str(error.value)


# -- planted lies ----------------------------------------------------------------------------------------------------


def segments(job: Job) -> list[Path]:
    return sorted(Path(job.url).glob("ledger/*/*.parquet"))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    frame = change(pq.read_table(path).to_pandas())
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, LEDGER_SCHEMA, preserve_index=False), sink)
    path.write_bytes(sink.getvalue())


def counted(job: Job, path: Path) -> Any:
    """Rows of a segment that belong to the history that counts."""
    begun = attempts(job.url)
    number = int(path.parent.name)
    frame = pq.read_table(path).to_pandas()
    limit = min((later.start for later in begun if later.number > number), default=10**9)
    return frame[frame["step"] < limit]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_altered_row_is_found_and_its_step_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    job = finished(tmp_path_factory.mktemp("r"))
    path = data.draw(st.sampled_from([p for p in segments(job) if len(counted(job, p))]))
    row = data.draw(st.sampled_from(list(counted(job, path).index)))
    lie = data.draw(st.sampled_from(["another sample", "no such sample", "repeat", "left out", "twice", "epoch"]))
    steps = set()

    def change(frame: Any) -> Any:
        steps.add(int(frame.loc[row, "step"]))
        if lie == "another sample":
            choices = [n for n in range(5, 5 + 3 * 23, 3) if n != frame.loc[row, "id"]]
            frame.loc[row, "id"] = data.draw(st.sampled_from(choices))
        elif lie == "no such sample":
            frame.loc[row, "id"] = data.draw(st.sampled_from([0, 6, 34, 10_000]))
        elif lie == "repeat":
            frame.loc[row, "repeat"] = not frame.loc[row, "repeat"]
        elif lie == "left out":
            frame = frame.drop(row)
        elif lie == "twice":
            frame = frame.loc[sorted([*frame.index, row])]
        else:
            frame.loc[row, "epoch"] += 1
        return frame

    rewrite(path, change)
    found = audit(job.url)
    assert found.count > 0, lie
    if lie in ("repeat", "left out", "twice", "epoch"):
        assert any(f"step {step}:" in problem for step in steps for problem in found.problems), found.problems


def test_two_samples_exchanged_are_found_in_any_epoch(tmp_path: Path) -> None:
    for number in range(3):
        job = finished(tmp_path / str(number))
        per_epoch = job.per_epoch
        rows = [
            (path, row, int(frame.loc[row, "id"]))
            for path in segments(job)
            for frame in [counted(job, path)]
            for row in frame.index
            if frame.loc[row, "step"] // per_epoch == number and not frame.loc[row, "repeat"]
        ]
        (one, first, a), (two, second, b) = rows[0], rows[-1]
        rewrite(one, lambda frame, row=first, value=b: frame.assign(id=frame["id"].where(frame.index != row, value)))
        rewrite(two, lambda frame, row=second, value=a: frame.assign(id=frame["id"].where(frame.index != row, value)))
        assert audit(job.url).count > 0


def test_two_samples_exchanged_are_found_where_there_is_only_one_epoch(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "run"))
    job.finish(1, epochs=1)
    (path,) = segments(job)
    frame = pq.read_table(path).to_pandas()
    one, two = frame.loc[1, "id"], frame.loc[13, "id"]
    rewrite(path, lambda frame: frame.assign(id=frame["id"].replace({one: two, two: one})))
    assert any(f"step 0: sample {two}," in problem for problem in audit(job.url).problems)
    assert any(f"step 3: sample {one}," in problem for problem in audit(job.url).problems)


def test_a_segment_lost_before_a_later_start_or_a_checkpoint_is_found(tmp_path: Path) -> None:
    job = finished(tmp_path)
    for path in segments(job):
        kept = path.read_bytes()
        path.unlink()
        found = audit(job.url)
        assert found.count > 0, path
        assert "recorded nothing" in found.problems[0]
        path.write_bytes(kept)
    assert audit(job.url).count == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "attempt-000001.json").unlink(), "attempt-000001.json is missing"),
        (lambda folder: (folder / "attempt-000003.json").unlink(), "attempt-000003.json is missing"),
        (lambda folder: alter(folder / "attempt-000002.json", seed=4), "its seed differs from that of attempt 1"),
        (lambda folder: alter(folder / "attempt-000003.json", global_batch=8), "its global_batch differs"),
        (lambda folder: alter(folder / "attempt-000003.json", datasets=["xyz"]), "its datasets differs"),
        (lambda folder: alter(folder / "attempt-000001.json", start=2), "steps 0 to 1"),
        (lambda folder: alter(folder / "attempt-000001.json", world=4), "instead of 1"),
        (lambda folder: alter(folder / "attempt-000001.json", world=1), "rank 1, in a world of 1"),
    ],
)
def test_a_falsified_attempt_is_found(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    job = finished(tmp_path)
    change(Path(job.url) / "ledger")
    found = audit(job.url)
    assert any(message in problem for problem in found.problems), found.problems


def test_a_stranger_is_found_even_where_every_number_goes_up(tmp_path: Path) -> None:
    ids = np.arange(4) * 3
    for used, clean in ((ids, True), (np.where(ids == 3, 4, ids), False)):
        url = str(tmp_path / str(clean))
        ledger = Ledger(url, attempt_of(counts=[[4]], ids=ids_hash(ids)), rank=0)
        order = epoch_order([DatasetCounts(np.array([4]))], seed=3, epoch=0, window=2)
        ledger.add(0, 0, used[order.sample], np.zeros(4, bool))
        ledger.flush()
        assert (audit(url).count == 0) == clean


def test_a_run_in_another_order_is_found(tmp_path: Path) -> None:
    job = finished(tmp_path)
    for path in Path(job.url).glob("ledger/attempt-*.json"):
        alter(path, seed=4)
    assert audit(job.url).count > 20 == len(audit(job.url).problems)


@pytest.mark.parametrize("name", ["attempt-000001.json", "000001/r0000-s000000000.parquet"])
def test_a_damaged_part_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    job = finished(tmp_path)
    os.truncate(Path(job.url) / "ledger" / name, 20)
    with pytest.raises(PipelineError, match=name) as error:
        audit(job.url)
    assert "\n" not in str(error.value)


def alter(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
