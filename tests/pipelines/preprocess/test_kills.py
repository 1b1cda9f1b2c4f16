"""kill -9 of the driver and of actors at many moments: after a re-run the bytes are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipelines.dataset.shards import open_dataset
from tests.support import runs
from tests.support.runs import Run
from tests.support.waiting import wait_until


def finish(run: Run, output: Path) -> None:
    done = runs.plainly("preprocess", *run.settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    assert runs.tree(output) == run.files
    index, plan = pd.read_parquet(output / "index"), open_dataset(str(output)).plan.rows()
    assert sorted(index["clip"]) == sorted(plan["clip"])


@pytest.mark.slow
def test_the_driver_killed_again_and_again(undisturbed: Run, tmp_path: Path) -> None:
    """Each attempt is killed at a random moment after it made a little more progress than the one before."""
    output, chance, progress = tmp_path / "gaze", random.Random(7), []
    left: set[int] = set()
    for attempt in range(5):
        job = runs.start("preprocess", *undisturbed.settings, f"output={output}", "ray.cpus=2")
        goal = len(list(output.glob("index/*.parquet"))) + (attempt > 1)
        wait_until(
            lambda goal=goal, job=job: len(list(output.glob("index/*.parquet"))) >= goal or job.poll() is not None
        )
        wait_until(lambda job=job: job.poll() is not None, seconds=chance.uniform(0, (4.0, 8.0, 0.2)[min(attempt, 2)]))
        left |= set(runs.descendants(job.pid))
        runs.kill(job.pid)
        job.wait()
        progress.append(len(list(output.glob("index/*.parquet"))))
    assert progress == sorted(progress)
    finish(undisturbed, output)
    # Ray's agents give a raylet that is gone a minute to come back.
    assert runs.all_gone(left), "a killed driver leaves no process behind"


MOMENTS = ["manifest.parquet/*", "plan.parquet/*", "dataset.json", "shards/.tmp-*", "shards/*.tar", "index/.tmp-*"]


@pytest.mark.parametrize(
    ("start", "moments"),
    [(runs.start_plainly, MOMENTS[3::2]), pytest.param(runs.start, MOMENTS, marks=pytest.mark.slow)],
)
def test_everything_killed_in_the_middle_of_a_write(
    undisturbed: Run, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes] | runs.Fork], moments: list[str]
) -> None:
    """The moment a new file of each kind shows, driver and actors die at once: the file may be half written."""
    output = tmp_path / "gaze"
    for moment in moments:
        before = set(output.glob(moment))
        job = start("preprocess", *undisturbed.settings, f"output={output}", "ray.cpus=2")
        wait_until(
            lambda moment=moment, before=before, job=job: set(output.glob(moment)) - before or job.poll() is not None,
            every=0,
        )
        for pid in [job.pid, *runs.descendants(job.pid)]:
            runs.kill(pid)
        job.wait()
    finish(undisturbed, output)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["PreprocessStage", "pipelines.video.child"])
def test_an_actor_killed_in_the_middle_of_its_work(undisturbed: Run, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "gaze"
    job = runs.start("preprocess", *undisturbed.settings, f"output={output}", "ray.cpus=2")
    # one more each time a shard was committed
    runs.kill_two(job, stage, lambda dead: len(list(output.glob("index/*.parquet"))) >= dead)
    assert runs.tree(output) == undisturbed.files


@pytest.mark.parametrize("ray", ["none", *(pytest.param(ray, marks=pytest.mark.slow) for ray in ("joined", "its own"))])
def test_it_leaves_in_order_when_told(
    undisturbed: Run, request: pytest.FixtureRequest, tmp_path: Path, ray: str
) -> None:
    """Without Ray, by Ctrl-C: SIGTERM is Ray's to answer."""
    number = signal.SIGINT if ray == "none" else signal.SIGTERM
    output, start = tmp_path / "gaze", runs.start_plainly if ray == "none" else runs.start
    settings = request.getfixturevalue("joins") if ray == "joined" else ["ray.cpus=2"]
    job = start("preprocess", *undisturbed.settings, f"output={output}", *settings)
    assert wait_until(lambda: any(output.glob("index/*.parquet")) or job.poll() is not None, every=0.01)
    left, committed = set(runs.descendants(job.pid)), list(output.glob("index/*.parquet"))
    os.kill(job.pid, number)
    assert job.wait() == 128 + number
    assert (left or ray != "its own") and runs.all_gone(left, seconds=10)
    [file] = Path(f"{output}.runs").iterdir()
    record = json.loads(file.read_text())
    assert record["status"] == "interrupted"
    clips = sum(len(pd.read_parquet(index)) for index in committed)
    assert clips <= sum(record["clips"].values()) <= len(pd.read_parquet(output / "index"))
    finish(undisturbed, output)
