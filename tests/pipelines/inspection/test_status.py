"""Status from storage alone: datasets half made, finished and given up; runs going, stopped, killed and damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.dataset import shards
from pipelines.dataset.run_records import StageTime, time_stamp
from pipelines.dataset.shards import Outcome, build_shard, commit_shard
from pipelines.errors import PipelineError
from pipelines.inspection.dataset_status import DatasetStatus, StatusCache
from pipelines.inspection.liveness import clock
from pipelines.inspection.run_status import RunStatus
from pipelines.inspection.status import read_status
from pipelines.runs.events import Events, read_events
from pipelines.storage import store
from tests.support import training
from tests.support.records import run_record
from tests.support.training import train
from tests.support.waiting import wait_until


@pytest.fixture
def half_made(gazes: str, tmp_path: Path) -> str:
    """A dataset of 24 clips in shards, the last two not committed, one clip failed and one filtered."""
    there = shards.open_dataset(gazes)
    url = str(tmp_path / "half")
    for name in ("dataset.json", "plan.parquet"):
        store.publish(store.read(f"{gazes}/{name}"), f"{url}/{name}")
    for shard in there.committed()[:-2]:
        for made in (shards.tar_url, shards.index_url):
            store.publish(store.read(made(gazes, shard)), made(url, shard))
    rows = there.plan.clips_of(0)
    outcomes = [Outcome(reason="decode_error", detail="damaged"), Outcome(reason="no_label", filtered=True)]
    outcomes += [Outcome(reason="decode_error", detail="damaged")] * (len(rows) - 2)
    commit_shard(url, 0, *build_shard(rows, outcomes, 0.05))
    return url


def commit_times(url: str, *ago: float) -> float:
    """Make the committed indexes so many seconds old, in order; the present."""
    now = time.time()
    for shard, seconds in zip(shards.committed_shards(url), ago, strict=True):
        os.utime(shards.index_url(url, shard), (now - seconds, now - seconds))
    return now


def of_dataset(url: str, **settings: float) -> DatasetStatus:
    status = read_status(url, **settings)  # type: ignore[arg-type]
    assert isinstance(status, DatasetStatus)
    return status


def of_run(run: Path, **settings: float) -> RunStatus:
    status = read_status(str(run), **settings)  # type: ignore[arg-type]
    assert isinstance(status, RunStatus)
    return status


def test_a_dataset_under_way_has_counts_rate_and_time_left(half_made: str) -> None:
    dataset = shards.open_dataset(half_made)
    committed = dataset.committed()
    per_shard = dataset.plan.clips // dataset.shards
    now = commit_times(half_made, *[10.0 * n for n in range(len(committed), 0, -1)])
    status = of_dataset(half_made, now=now)
    assert (status.state, status.well) == ("running", True)
    assert (status.shards, status.shards_planned) == (len(committed), dataset.shards)
    assert (status.clips, status.clips_planned) == (per_shard * len(committed), dataset.plan.clips)
    assert status.outcomes == {"ok": status.clips - per_shard, "filtered": 1, "failed": per_shard - 1}
    assert status.reasons == {"decode_error": per_shard - 1, "no_label": 1}
    assert status.rate == pytest.approx(per_shard / 10, rel=1e-3)
    assert status.left_s == pytest.approx(2 * per_shard / status.rate)
    assert status.idle_s == pytest.approx(10, abs=0.01)
    assert status.slowest_stage == "" and status.stages == {}


def test_the_pause_between_two_runs_is_no_part_of_the_rate(half_made: str) -> None:
    count, per_shard = len(shards.committed_shards(half_made)), 24 // shards.open_dataset(half_made).shards
    ago = [100_000.0 + 10 * n for n in range(count - 3)] + [20.0, 10.0, 0.0]
    assert of_dataset(half_made, now=commit_times(half_made, *ago)).rate == pytest.approx(per_shard / 10, rel=1e-3)


@pytest.mark.parametrize("status, done", [("interrupted", False), ("done", True)])
def test_a_copy_has_no_rate_since_its_times_are_those_of_copying(half_made: str, status: str, done: bool) -> None:
    dataset = shards.open_dataset(half_made)
    for shard in set(range(dataset.shards)) - set(dataset.committed()) if done else ():
        rows = dataset.plan.clips_of(shard)
        commit_shard(half_made, shard, *build_shard(rows, [Outcome(reason="timeout", detail="")] * len(rows), 0.05))
    shards_there = range(len(shards.committed_shards(half_made)), 0, -1)
    now = commit_times(half_made, *[600 + 10.0 * n for n in shards_there])
    made = run_record(status=status, finished=time_stamp(now - 600), ok=24)
    store.publish(made.to_json(), f"{half_made}.runs/20260101T000000Z-1.json")
    assert of_dataset(half_made, now=now).rate is not None
    now = commit_times(half_made, *[0.001 * n for n in shards_there])
    copied = of_dataset(half_made, now=now)
    assert (copied.rate, copied.left_s) == (None, None) and (copied.state == "done") == done
    store.remove(f"{half_made}.runs/20260101T000000Z-1.json")
    assert (of_dataset(half_made, now=now).rate is None) == done, "one that is under way may have no record yet"


def test_without_a_commit_for_long_it_is_stalled_and_says_what_to_do(half_made: str) -> None:
    now = commit_times(half_made, *[720.0] * len(shards.committed_shards(half_made)))
    status = of_dataset(half_made, now=now)
    assert (status.state, status.well, status.left_s) == ("stalled", False, None)
    assert status.notice.startswith("no commit for 12 min: is it running? The same preprocess command again")
    assert of_dataset(half_made, now=now, stall_s=800.0).state == "running"


def test_shards_that_take_long_by_nature_are_not_stalled(half_made: str) -> None:
    count = len(shards.committed_shards(half_made))
    ago = [900.0 * n for n in range(count, 0, -1)]  # fifteen minutes each: no longer than usual
    assert of_dataset(half_made, now=commit_times(half_made, *ago)).state == "running"


def test_planned_and_not_begun_is_starting_and_then_stalled(half_made: str) -> None:
    for shard in shards.committed_shards(half_made):
        shards.uncommit_shards(half_made, [shard])
    assert of_dataset(half_made).state == "starting"
    later = of_dataset(half_made, now=time.time() + 3600)
    assert later.state == "stalled" and later.notice.startswith("planned, and no commit for 1 h 0 min")


def test_a_real_dataset_is_done_with_the_stages_of_its_run(undisturbed: object) -> None:
    output = undisturbed.output  # type: ignore[attr-defined]
    status = of_dataset(str(output), now=time.time() + 10**6)
    assert (status.state, status.well, status.left_s) == ("done", True, None)
    assert status.clips == status.clips_planned and status.reasons and sum(status.reasons.values()) == 1
    assert status.slowest_stage in ("decode", "gaze") and 0 < status.stages[status.slowest_stage] <= 1


def test_a_run_that_was_interrupted_is_told_from_one_that_is_silent(half_made: str) -> None:
    now = commit_times(half_made, *[30.0] * len(shards.committed_shards(half_made)))
    record = run_record(
        status="interrupted",
        finished=time_stamp(now - 29),
        seconds=60.0,
        stages={"decode": StageTime(90.0, 2), "gaze": StageTime(6.0, 1)},
        slowest_stage="decode",
    )
    store.publish(record.to_json(), f"{half_made}.runs/20260101T000000Z-1.json")
    store.publish(b"no record", f"{half_made}.runs/20260101T000001Z-2.json")
    status = of_dataset(half_made, now=now)
    assert (status.state, status.well) == ("interrupted", False)
    assert status.notice.startswith("the last run was interrupted. The same preprocess command again")
    assert (status.slowest_stage, status.stages) == ("decode", {"decode": 0.75, "gaze": 0.1})
    # Begun again: shards that came after the record say that it runs.
    os.utime(shards.index_url(half_made, 0), (now, now))
    assert of_dataset(half_made, now=now).state == "running"


def test_a_dataset_of_which_nothing_came_out_is_done_and_not_well(half_made: str) -> None:
    dataset = shards.open_dataset(half_made)
    for shard, rows in dataset.plan.rows().groupby("shard"):
        failed = [Outcome(reason="decode_error", detail="")] * len(rows)
        commit_shard(half_made, int(str(shard)), *build_shard(rows, failed, 0.05))
    status = of_dataset(half_made)
    assert (status.state, status.well) == ("done", False) and "the reasons say why" in status.notice


def test_a_second_look_reads_only_what_is_new(half_made: str) -> None:
    seen, dataset = StatusCache(), shards.open_dataset(half_made)
    first = read_status(half_made, seen=seen)
    missing = sorted(set(range(dataset.shards)) - set(dataset.committed()))
    for shard in dataset.committed():
        kept = os.stat(shards.index_url(half_made, shard)).st_mtime_ns
        Path(shards.index_url(half_made, shard)).write_bytes(b"not read again")
        os.utime(shards.index_url(half_made, shard), ns=(kept, kept))
    rows = dataset.plan.clips_of(missing[0])
    commit_shard(half_made, missing[0], *build_shard(rows, [Outcome(reason="timeout", detail="")] * len(rows), 0.05))
    second = read_status(half_made, seen=seen)
    assert isinstance(first, DatasetStatus) and isinstance(second, DatasetStatus)
    assert second.reasons == {**(first.reasons or {}), "timeout": len(rows)}


def test_the_same_from_an_object_store(bucket: str, half_made: str) -> None:
    for entry in store.list_objects(half_made):
        store.publish(store.read(entry.url), f"{bucket}/half{entry.url.removeprefix(half_made)}")
    here, there = of_dataset(half_made), of_dataset(f"{bucket}/half")
    assert (there.state, there.outcomes, there.reasons) == ("running", here.outcomes, here.reasons)
    assert there.idle_s is not None and there.idle_s < 300
    assert of_dataset(f"{bucket}/half", now=time.time() + 7200).state == "stalled"


def test_a_finished_run(smooth_run: Path) -> None:
    status = of_run(smooth_run, now=time.time() + 10**6)
    last = read_events(str(smooth_run)).query("kind == 'step'").iloc[-1]
    assert (status.state, status.well, status.kind) == ("done", True, "PolicyTrainConfig")
    assert status.step == status.steps == status.checkpoint == last["step"]
    assert (status.loss, status.rate, status.wait) == (last["loss"], last["samples_per_s"], last["wait"])
    assert (status.attempts, status.failures, status.left_s, status.world) == (1, 0, None, 1)


def test_a_stopped_run_is_not_well_and_one_that_went_on_is(gazes: str, tmp_path: Path) -> None:
    config = training.policy_config(gazes, tmp_path / "run", "epochs=2")
    asked = iter([False] * 3 + [True])
    assert train(config, stopping=lambda: next(asked)) == "stopped"
    status = of_run(tmp_path / "run")
    assert (status.state, status.well, status.step, status.checkpoint) == ("stopped", False, 3, 3)
    assert train(config) == "done"
    status = of_run(tmp_path / "run")
    assert (status.state, status.attempts, status.failures) == ("done", 2, 0)


@pytest.mark.slow
def test_a_killed_run_is_running_until_it_is_silent_for_too_long(gazes: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = training.policy_config(gazes, run, "epochs=1000", "every.checkpoint=2")
    ranks = training.Ranks(config, 1, tmp_path / "meet")
    events = run / "events.jsonl"
    assert wait_until(lambda: events.exists() and b'"step": 6,' in events.read_bytes())
    status = of_run(run)
    assert (status.state, status.well) == ("running", True) and status.step >= 6 and status.checkpoint is not None
    assert status.left_s is not None and status.left_s > 0
    ranks.kill()
    status = of_run(run, now=time.time() + 700)
    assert (status.state, status.well, status.left_s) == ("stalled", False, None)
    assert f"no event for 12 min: is it running? The same command again goes on from step {status.checkpoint}" in (
        status.notice
    )
    assert train(config, stopping=lambda: True)
    assert of_run(run).failures == 1, "the one that was killed; the one that was stopped is none"


def test_what_an_rl_run_says_of_its_two_sides_is_shown(tmp_path: Path) -> None:
    store.publish(b"kind: RlConfig\n", str(tmp_path / "config.yaml"))
    events = Events(str(tmp_path))
    events.log("start", attempt=1, step=0, steps=9, world=1, device="cpu")
    events.step(1, 0, 4, {"loss": 1.0, "idle_rollout": 0.25, "idle_learner": 0.5}, seconds=0.1, steps=9)
    events.log("bottleneck", step=1, which="the learner")
    events.close()
    status = of_run(tmp_path)
    assert status.bottleneck == "the learner"
    assert status.idle == {"rollout": 0.25, "learner": 0.5} and status.checkpoint is None and status.state == "running"


def test_a_run_that_has_said_nothing_yet_is_starting(tmp_path: Path) -> None:
    store.publish(b"kind: PolicyTrainConfig\n", str(tmp_path / "config.yaml"))
    status = of_run(tmp_path)
    assert (status.state, status.step, status.steps, status.loss) == ("starting", 0, None, None)
    assert of_run(tmp_path, now=time.time() + 3600).state == "stalled"


def test_what_is_neither_and_what_is_damaged_is_one_line(tmp_path: Path, smooth_run: Path) -> None:
    def line(told: str) -> None:
        with pytest.raises(PipelineError, match=told) as error:
            read_status(str(tmp_path))
        assert "\n" not in str(error.value)

    line("neither a dataset .* nor a training run")
    (tmp_path / "config.yaml").write_text("[")
    line("config.yaml: damaged")
    (tmp_path / "config.yaml").write_bytes((smooth_run / "config.yaml").read_bytes())
    (tmp_path / "events.jsonl").write_text("{}}\n")
    line("events.jsonl: line 1 is damaged")
    (tmp_path / "dataset.json").write_text("{")
    line("dataset.json: damaged")


def test_a_time_is_told_in_words() -> None:
    for seconds, words in ((0.2, "0 s"), (59, "59 s"), (61, "1 min"), (12_000, "3 h 20 min"), (190_800, "2 d 5 h")):
        assert clock(seconds) == words
