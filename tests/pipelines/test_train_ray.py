"""Training through Ray Train: a worker that dies is replaced, and the run ends as an undisturbed one; or is named."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import runs
from training import end_of, policy_config, require_clean, run_ranks

from pipelines.errors import PipelineError
from pipelines.ledger import attempts
from pipelines.train_workers import train_on_ray

TWO = ["scale.min_workers=2", "scale.max_workers=2"]


@contextmanager
def a_worker_dies(run: Path, step: int) -> Iterator[list[int]]:
    """kill -9 of one process of Ray Train's workers, soon after a step was done; the process's id."""
    killed: list[int] = []
    events = run / "events.jsonl"

    def strike() -> None:
        wanted = f'"step": {step},'.encode()
        if runs.wait_until(lambda: events.exists() and wanted in events.read_bytes(), 120):
            workers = [pid for pid, line in runs.descendants(os.getpid()).items() if "RayTrainWorker" in line]
            if len(workers) == 2:
                runs.kill(workers[-1])
                killed.append(workers[-1])

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield killed
    finally:
        thread.join()


def past(run: Path, size: int) -> bool:
    """Whether a run told of some steps more."""
    return (run / "events.jsonl").stat().st_size > size


def test_a_rank_that_dies_once_is_replaced_and_the_run_ends_as_an_undisturbed_one(
    ray_session: str, gazes: str, tmp_path: Path
) -> None:
    settings = [*TWO, "epochs=8", "scale.max_failures=1"]
    assert run_ranks(policy_config(gazes, tmp_path / "undisturbed", *settings), 2, tmp_path) == ["done", "done"]
    run = tmp_path / "run"
    with a_worker_dies(run, 5) as killed:
        assert train_on_ray(policy_config(gazes, run, *settings), lambda: False) == "done"
    assert killed and [attempt.world for attempt in attempts(str(run))] == [2, 2]
    assert attempts(str(run))[1].start >= 2, "it went on from a checkpoint"
    assert end_of(run) == end_of(tmp_path / "undisturbed")
    require_clean(run)


@pytest.mark.slow
def test_more_deaths_than_allowed_end_the_job_with_the_ranks_name(ray_session: str, gazes: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*TWO, "epochs=1000", "scale.max_failures=0", "every.checkpoint=50", "every.keep=1"]
    with a_worker_dies(run, 5) as killed, pytest.raises(PipelineError) as error:
        train_on_ray(policy_config(gazes, run, *settings), lambda: False)
    assert killed and "\n" not in str(error.value)
    assert re.match(r"training stopped: rank [01] died; run the same command again", str(error.value)), error.value
    # The same command again goes on, and being asked to stop it does, on all ranks, after a checkpoint.
    size = (run / "events.jsonl").stat().st_size + 2000
    assert train_on_ray(policy_config(gazes, run, *settings), lambda: past(run, size)) == "stopped"
    require_clean(run)
