"""pipelines.runs.events: one stream, the same numbers in its file and in TensorBoard, over ranks, kills and resumes."""

from __future__ import annotations

import datetime
import io
import json
import math
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from autogaze.model import AutoGazeConfig
from autogaze.model.flops import flops_per_clip
from pipelines.errors import PipelineError
from pipelines.runs import sinks
from pipelines.runs.events import Events, NoEvents, read_events
from pipelines.runs.peak import Peak, measure_peak
from pipelines.storage import store
from tests.support import places
from tests.support.forks import FORKS
from tests.support.waiting import wait_until

ROOT = places.ROOT


def train(run: str, first: int, last: int, value: float = 1.0, **options: Any) -> None:
    events = Events(run, **options)
    events.log("start", step=first - 1, world=1)
    for step in range(first, last + 1):
        events.step(step, step // 10, 8, {"loss": value * step, "skipped": 1}, seconds=0.5, waited=0.05, steps=100)
    events.close()


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "object store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    fsspec.filesystem("memory").store.clear()
    return "memory://runs/1"


def test_steps_that_a_resumed_run_repeats_replace_the_earlier_ones(run: str) -> None:
    train(run, 1, 7)
    train(run, 5, 9, value=10)
    train(run, 9, 10, value=100)
    read = read_events(run)
    assert list(read["kind"]) == ["start", *["step"] * 4, "start", *["step"] * 4, "start", *["step"] * 2]
    steps = read[read["kind"] == "step"]
    assert list(steps["step"]) == list(range(1, 11))
    assert list(steps["loss"]) == [1, 2, 3, 4, 50, 60, 70, 80, 900, 1000]
    assert set(steps["skipped"]) == {1} and set(steps["samples"]) == {8} and steps["rss_mb"].min() > 10


def test_a_validation_belongs_to_the_step_it_follows(run: str) -> None:
    events = Events(run)
    for step in (1, 2, 3):
        events.step(step, 0, 1, {}, seconds=1)
        events.log("validation", step=step, error=step / 10)
    events.close()
    train(run, 3, 3)
    read = read_events(run)
    assert list(read[read["kind"] == "validation"]["step"]) == [1, 2]


def test_what_is_not_finite_survives_in_files_that_are_json(run: str) -> None:
    events = Events(run)
    odd = [1.5, math.nan, math.inf, -math.inf, 1e300]
    for step, value in enumerate(odd, 1):
        events.step(step, 0, 1, {"loss": value}, seconds=1)
    events.log("stopped", why=[math.nan], ids=[3, 4])
    events.close()
    for entry in store.list_objects(run):
        if entry.url.endswith(".jsonl"):
            for line in store.read(entry.url).splitlines():
                json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    read = read_events(run)
    np.testing.assert_array_equal(read["loss"][:5].to_numpy(float), odd)


def test_a_line_torn_by_a_kill_is_gone_at_the_next_start(tmp_path: Path) -> None:
    train(str(tmp_path), 1, 3)
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "step", "st')
    assert len(read_events(str(tmp_path))) == 4, "a line that is being written is not yet there"
    train(str(tmp_path), 4, 5)
    assert list(read_events(str(tmp_path)).dropna(subset="loss")["step"]) == [1, 2, 3, 4, 5]
    path.write_bytes(whole.replace(b'"loss"', b'"lo', 1))
    with pytest.raises(PipelineError, match="line 2 is damaged"):
        read_events(str(tmp_path))


def test_what_is_no_run_and_a_run_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(NoEvents, match="no events are here"):
        read_events(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="file"):
        Events(str(tmp_path / "file"))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    events = Events(str(tmp_path))
    events._lines = sinks.LocalFile("/dev/full")
    with pytest.raises(PipelineError, match="No space left on device; run the same command again"):
        events.step(1, 0, 1, {}, seconds=1)


def test_a_name_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wait: a name"):
        Events(str(tmp_path)).step(1, 0, 1, {"wait": 3}, seconds=1)


def test_on_an_object_store_parts_grow_and_then_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(sinks, "_PART_SECONDS", 0.0)
    monkeypatch.setattr(sinks, "_PART_BYTES", 2000)
    written: dict[str, list[int]] = {}
    real = store.publish

    def watched(data: bytes, url: str) -> None:
        written.setdefault(url, []).append(len(data))
        real(data, url)

    monkeypatch.setattr(store, "publish", watched)
    events = Events("memory://runs/2")
    for step in range(1, 101):
        events.step(step, 0, 1, {"loss": step}, seconds=1)
    events.close()
    lines = [url for url in written if url.endswith(".jsonl")]
    assert lines == sorted(lines) and len(lines) > 5
    assert all(sizes == sorted(sizes) and sizes[-1] < 2400 for sizes in written.values())
    assert list(read_events("memory://runs/2")["step"]) == list(range(1, 101))


# -- rates -----------------------------------------------------------------------------------------------------------


def test_rates_are_of_the_last_steps_and_of_nothing_before_a_resume(tmp_path: Path) -> None:
    events = Events(str(tmp_path), window=4, peak=Peak(1000.0, "made up"), world=2)
    for step in range(1, 11):
        slow = step <= 5
        row = events.step(
            step, 0, 6, {}, seconds=3.0 if slow else 1.0, waited=1.5 if slow else 0.1, flops=300.0 if slow else 500.0
        )
        if step == 1:
            assert (row["samples_per_s"], row["wait"]) == (2.0, 0.5)
    assert row["samples_per_s"] == pytest.approx(6.0) and row["wait"] == pytest.approx(0.1)
    assert row["mfu"] == pytest.approx(500 / (1000 * 2)), "of the peak of both ranks"
    row = Events(str(tmp_path)).step(11, 0, 6, {}, seconds=2.0)
    assert row["samples_per_s"] == 3.0 and "mfu" not in row
    assert list(read_events(str(tmp_path)).query("kind == 'peak'")["name"]) == ["made up"]


def test_flops_are_those_of_the_methods_arithmetic() -> None:
    """See docs/method.md, section 'Arithmetic': 36.5 GFLOP with about 350 gazed patches, 87 with 198 in each frame."""
    config = AutoGazeConfig()
    assert flops_per_clip(config, 354) == pytest.approx(36.5e9, rel=0.005)
    assert flops_per_clip(config, 198 + 150) == pytest.approx(36.2e9, rel=0.01)
    assert flops_per_clip(config, 198 * 16) == pytest.approx(87e9, rel=0.01)
    assert flops_per_clip(config, 35, frames=1) < flops_per_clip(config, 350, frames=10) / 10


def test_flops_are_those_that_torch_counts() -> None:
    """Torch counts matrix products and convolutions; attention it counts without its mask, so that is left out here."""
    from torch.utils.flop_counter import FlopCounterMode

    from autogaze.gaze import Gaze
    from autogaze.model import AutoGaze

    config = AutoGazeConfig(num_layers=2, hidden_size=64, num_heads=2, head_dim=32, intermediate_size=96)
    model = AutoGaze(config)
    frames = torch.zeros(1, 4, 3, 224, 224)
    gaze = Gaze(tokens=torch.arange(80) % 20, lengths=torch.full((1, 4), 20), vocabulary=config.vocabulary)
    with FlopCounterMode(display=False) as counter:  # with gradients: without, a CPU saves some of the convolution
        model.score(frames, gaze)
    tokens = 4 * 196 + 80
    pairs = 4 * 64 * 2 * tokens * (tokens + 1) / 2
    attention = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" in str(op))
    counted = counter.get_total_flops() - attention
    # In the last layer only the states that are read from go through the feed-forward part; we count all.
    spared = 2 * (tokens - 4 * 3) * (3 * 64 * 96 + 2 * 64 * 64)
    assert flops_per_clip(config, 80, 4) - pairs == pytest.approx(counted + spared, rel=0.02)


def test_the_peak_is_measured_and_named() -> None:
    peak = measure_peak(torch.device("cpu"), seconds=0.01)
    assert 1e9 < peak.flops < 1e14 and peak.name.startswith("float32 matmul 1024 on cpu")


# -- ranks -----------------------------------------------------------------------------------------------------------


def rank_of_two(rank: int, run: str, meet: str, dies: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=20)
    )
    events = Events(run, rank, 2, reductions={"most": "max"})
    for step in range(1, 4):
        if dies and step == 3:
            if rank == 1:
                time.sleep(1000)  # it hangs, and is killed from outside
            Path(f"{meet}-waits").touch()
        values = {"loss": step + rank, "most": rank, "skipped": rank}
        row = events.step(step, 0, 4, values, seconds=1 + rank, waited=rank)
        assert row["loss"] == step + 0.5 and row["most"] == 1 and row["skipped"] == 1 and row["samples"] == 8
        assert row["seconds"] == 2 and row["waited"] == 1 and row["samples_per_s"] == 4 and row["wait"] == 0.5
    events.close()
    dist.destroy_process_group()  # or its threads may abort the process as it ends


def ranks(run: Path, meet: Path, dies: bool = False) -> list[ForkServerProcess]:
    processes = [FORKS.Process(target=rank_of_two, args=(rank, str(run), str(meet), dies)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def test_values_are_reduced_over_ranks_and_written_once(tmp_path: Path) -> None:
    for process in ranks(tmp_path / "run", tmp_path / "meet"):
        process.join()
        assert process.exitcode == 0
    read = read_events(str(tmp_path / "run"))
    assert list(read["step"]) == [1, 2, 3] and list(read["loss"]) == [1.5, 2.5, 3.5]


@pytest.mark.parametrize("how", ["killed", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_rank_that_is_gone_is_an_error_within_the_timeout(tmp_path: Path, how: str) -> None:
    here, gone = ranks(tmp_path / "run", tmp_path / "meet", dies=True)
    try:
        assert wait_until((tmp_path / "meet-waits").exists)
        if how == "killed":
            time.sleep(0.2)
            gone.kill()
        here.join()
        assert here.exitcode not in (0, None)
    finally:
        for process in (here, gone):
            process.kill()
            process.join()


# -- TensorBoard -----------------------------------------------------------------------------------------------------


def scalars(run: str, folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard's own reader finds in a run, by name and step; files of an object store are copied first."""
    for entry in store.list_objects(f"{run}/tensorboard"):
        (folder / entry.url.rsplit("/", 1)[1]).write_bytes(store.read(entry.url))
    reader = EventAccumulator(str(folder)).Reload()
    return {name: {event.step: event.value for event in reader.Scalars(name)} for name in reader.Tags()[SCALARS]}


def test_tensorboard_reads_one_history_from_the_files_of_all_attempts(run: str, tmp_path: Path) -> None:
    train(run, 1, 3)
    time.sleep(0.01)
    train(run, 3, 4, value=10)
    files = [entry.url for entry in store.list_objects(f"{run}/tensorboard")]
    assert len(files) == 2 and all("/events.out.tfevents." in url for url in files)
    (tmp_path / "copy").mkdir()
    read = scalars(run, tmp_path / "copy")
    assert read["train/loss"] == {1: 1, 2: 2, 3: 30, 4: 40}, "the second attempt repeated step 3"
    assert set(read["speed/samples_per_s"].values()) == {16}


def test_tensorboard_reads_numbers_that_are_not_finite_and_names_in_unicode(run: str, tmp_path: Path) -> None:
    events = Events(run)
    events.step(1, 0, 1, {"loss": math.nan, "grad_norm": math.inf, "lr": 1e300}, seconds=1)
    events.log("validation", step=1, error=0.25, größe=3.0, clips=4)
    events.close()
    (tmp_path / "copy").mkdir()
    read = scalars(run, tmp_path / "copy")
    assert math.isnan(read["train/loss"][1]) and read["optimizer/grad_norm"][1] == math.inf
    assert read["optimizer/lr"][1] == math.inf
    assert read["validation/error"] == {1: 0.25} and read["validation/größe"] == {1: 3.0}
    assert "validation/clips" not in read, "only floats are plotted"


def test_tensorboard_reads_each_part_of_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(sinks, "_PART_BYTES", 1000)
    train("memory://runs/3", 1, 30)
    assert len(list(store.list_objects("memory://runs/3/tensorboard"))) > 3
    assert scalars("memory://runs/3", tmp_path)["train/loss"] == {step: step for step in range(1, 31)}


@pytest.mark.slow
def test_tensorboard_is_not_imported_before_a_run_writes() -> None:
    code = "import sys, pipelines.train.loop; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# -- the terminal ----------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_plain_line_now_and_then(tmp_path: Path) -> None:
    sink = io.StringIO()
    train(str(tmp_path), 1, 50, console=Console(file=sink, width=40), every=3600.0)
    assert sink.getvalue().splitlines() == [
        "start  step 0  world 1",
        "step 1/100  epoch 0  loss 1  16.0 clips/s  data wait 10.0%  0:00:50 left",
    ]


def test_on_a_terminal_one_line_moves(tmp_path: Path) -> None:
    sink = io.StringIO()
    train(str(tmp_path), 1, 3, console=Console(file=sink, width=120, force_terminal=True))
    assert "step 3/100  epoch 0  loss 3  16.0 clips/s  data wait 10.0%  0:00:48 left" in sink.getvalue()
