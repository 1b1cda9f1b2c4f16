"""Training through Ray Train: a worker that dies is replaced, and the run ends as an undisturbed one; or is named."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.runs.ledger import attempts
from pipelines.train.on_ray import train_on_ray
from pipelines.train.policy import PolicyTask
from tests.support import runs, training
from tests.support.training import end_of, policy_config, require_clean, run_ranks
from tests.support.waiting import wait_until

TWO = ["scale.min_workers=2", "scale.max_workers=2"]


@contextmanager
def dies(run: Path, step: int, title: str = "RayTrainWorker", of: int = 2) -> Iterator[list[int]]:
    """kill -9 of one of so many processes of a title, soon after a step was done; the process's id."""
    killed: list[int] = []
    events = run / "events.jsonl"

    def strike() -> None:
        wanted = f'"step": {step},'.encode()
        if wait_until(lambda: events.exists() and wanted in events.read_bytes()):
            found = [pid for pid, line in runs.descendants(os.getpid()).items() if line.startswith(f"ray::{title}")]
            if len(found) == of:
                runs.kill(found[-1])
                killed.append(found[-1])

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield killed
    finally:
        thread.join()


def past(run: Path, size: int) -> bool:
    """Whether a run has recorded some more steps."""
    return (run / "events.jsonl").stat().st_size > size


@pytest.mark.slow
def test_a_rank_that_dies_is_replaced_and_the_run_ends_with_the_same_bits(
    ray_session: str, gazes: str, tmp_path: Path
) -> None:
    settings = [*TWO, "epochs=8", "scale.max_failures=1"]
    assert run_ranks(policy_config(gazes, tmp_path / "undisturbed", *settings), 2, tmp_path) == ["done", "done"]
    run = tmp_path / "run"
    with dies(run, 5) as killed:
        assert train_on_ray(policy_config(gazes, run, *settings), PolicyTask, lambda: False) == "done"
    assert killed and [attempt.world for attempt in attempts(str(run))] == [2, 2]
    assert attempts(str(run))[1].start >= 2, "it went on from a checkpoint"
    assert end_of(run) == end_of(tmp_path / "undisturbed")
    require_clean(run)


@pytest.mark.slow
def test_more_deaths_than_allowed_end_the_job_with_the_ranks_name(ray_session: str, gazes: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*TWO, "epochs=1000", "scale.max_failures=0", "every.checkpoint=50", "every.keep=1"]
    with dies(run, 5) as killed, pytest.raises(PipelineError) as error:
        train_on_ray(policy_config(gazes, run, *settings), PolicyTask, lambda: False)
    assert killed and "\n" not in str(error.value)
    assert re.match(r"training stopped: rank [01] died; run the same command again", str(error.value)), error.value
    # The same command again goes on, and being asked to stop it does, on all ranks, after a checkpoint.
    size = (run / "events.jsonl").stat().st_size + 2000
    assert train_on_ray(policy_config(gazes, run, *settings), PolicyTask, lambda: past(run, size)) == "stopped"
    require_clean(run)


@pytest.mark.slow
def test_the_actor_that_passes_a_stop_on_may_die(ray_session: str, gazes: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = policy_config(gazes, run, *TWO, "epochs=1000", "scale.max_failures=0", "every.checkpoint=50")
    with dies(run, 5, "_Stop", 1) as killed:
        assert train_on_ray(config, PolicyTask, lambda: bool(killed) and past(run, 6000)) == "stopped"
    assert killed
    assert len(attempts(str(run))) == 1, "no rank died of it"
    require_clean(run)


@pytest.mark.slow
def test_after_the_death_of_ray_trains_controller_the_same_command_resumes(
    ray_session: str, gazes: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = policy_config(gazes, run, *TWO, "epochs=1000", "every.checkpoint=50")
    with dies(run, 5, "TrainController", 1) as killed, pytest.raises(PipelineError) as error:
        train_on_ray(config, PolicyTask, lambda: False)
    assert killed
    assert str(error.value) == (
        "training stopped: the process of Ray Train's controller died; "
        "run the same command again to go on from the last checkpoint"
    )
    size = (run / "events.jsonl").stat().st_size + 2000
    assert train_on_ray(config, PolicyTask, lambda: past(run, size)) == "stopped"
    require_clean(run)


@pytest.mark.slow
def test_a_cluster_that_has_lost_its_head_is_refused_in_one_line(gazes: str, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        # Its GCS lives on, and takes jobs that would then wait for ever.
        runs.kill(cluster.head_node.all_processes["raylet"][0].process.pid)
        words = ["train", "policy", *training.settings(gazes, tmp_path / "run", *TWO), f"ray.address={cluster.address}"]
        address, job = cluster.address, runs.autogaze(*words)
    finally:
        cluster.shutdown()
    assert job.returncode == 2 and not (tmp_path / "run").exists()
    assert f"ray.address={address}: the cluster's head node has died" in job.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_grows_with_the_cluster_and_shrinks_with_it(ray_session: str, gazes: str, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    run = tmp_path / "run"
    settings = ["epochs=1000", "every.checkpoint=20", "every.keep=1", "scale.max_workers=2", "scale.resize_s=2"]
    settings += ["scale.max_failures=5"]

    def steps() -> int:
        return int(training.newest(run).name.removeprefix("step-")) if (run / "checkpoints" / "latest").exists() else 0

    def world() -> int:
        return attempts(str(run))[-1].world if (run / "ledger").exists() else 0

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    job = runs.start("train", "policy", *training.settings(gazes, run, *settings), f"ray.address={cluster.address}")
    try:
        assert wait_until(lambda: steps() > 20 or job.poll() is not None, every=0.2)
        assert world() == 1
        node = cluster.add_node(num_cpus=1)
        assert wait_until(lambda: world() == 2 or job.poll() is not None, every=0.2)
        grown = steps()
        assert wait_until(lambda: steps() > grown + 20 or job.poll() is not None, every=0.2)
        cluster.remove_node(node, allow_graceful=False)
        assert wait_until(lambda: world() == 1 or job.poll() is not None, every=0.2)
        shrunk = steps()
        assert wait_until(lambda: steps() > shrunk + 20 or job.poll() is not None, every=0.2)
        assert job.poll() is None
        job.terminate()
        assert job.wait() == 0
    finally:
        job.kill()
        cluster.shutdown()
    assert [attempt.world for attempt in attempts(str(run))] == [1, 2, 1]
    training.require_clean(run)
