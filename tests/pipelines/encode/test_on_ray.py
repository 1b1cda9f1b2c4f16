"""On real Ray, with other workers, and after kills, encode leaves the bytes of the plain run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.encode.conftest import Encoded
from tests.support import runs
from tests.support.waiting import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_on_ray_give_the_same_bytes(encoded: Encoded, ray_session: str, tmp_path: Path, workers: int) -> None:
    settings = [f"workers.decode={workers}", f"workers.encode={workers}", f"ray.address={ray_session}"]
    done = runs.here("encode", *encoded.settings, f"output={tmp_path / 'features'}", *settings)
    assert done.returncode == 0, done.stderr
    assert runs.tree(tmp_path / "features") == encoded.files


MOMENTS = ["dataset.json", "shards/.tmp-*", "shards/*.tar", "index/.tmp-*", "index/*.parquet"]


@pytest.mark.slow
def test_a_job_killed_in_the_middle_of_a_write_ends_with_the_same_bytes(encoded: Encoded, tmp_path: Path) -> None:
    """tests/pipelines/encode/test_encode.py begins from what such a kill leaves."""
    output = tmp_path / "features"
    for moment in MOMENTS:
        before = set(output.glob(moment))
        job = runs.start_plainly("encode", *encoded.settings, f"output={output}")
        wait_until(
            lambda moment=moment, before=before, job=job: set(output.glob(moment)) - before or job.poll() is not None,
            every=0,
        )
        runs.kill(job.pid)
        job.wait()
    done = runs.plainly("encode", *encoded.settings, f"output={output}")
    assert done.returncode == 0 and runs.tree(output) == encoded.files, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["EncodeStage"])
def test_an_actor_killed_in_the_middle_of_its_work(encoded: Encoded, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "features"
    job = runs.start("encode", *encoded.settings, f"output={output}", "ray.cpus=2", "workers.encode=1")
    killed: set[int] = set()

    def kill_one() -> bool:
        for pid, line in runs.descendants(job.pid).items():
            if f"Map({stage})).submit" in line and not killed:  # at work: not while it starts
                runs.kill(pid)
                killed.add(pid)
        return bool(killed) or job.poll() is not None

    wait_until(kill_one, every=0.01)
    assert killed, f"no process of {stage} was seen"
    assert job.wait() == 0, "the job itself survives"
    assert runs.tree(output) == encoded.files
