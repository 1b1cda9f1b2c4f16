"""One undisturbed run that the others are compared with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import runs, training
from tests.support.runs import Run


@pytest.fixture(scope="session")
def joins(ray_session: str) -> list[str]:
    """Settings with which a run, here or in a process of its own, joins the tests' Ray: a start takes its time."""
    return [f"ray.address={ray_session}", "workers.decode=1", "workers.gaze=1"]


@pytest.fixture(scope="session")
def undisturbed(store_of_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """store_of_videos preprocessed into shards of two clips, without Ray."""
    output = tmp_path_factory.mktemp("undisturbed") / "gaze"
    settings = [f"input={store_of_videos}", "shard.clips=2"]
    done = runs.plainly("preprocess", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr + done.stdout
    return Run(settings, output, runs.tree(output), done.stdout)


@pytest.fixture(scope="session")
def gazes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 24 tiny clips to train on, none of them gazed for long."""
    return training.write_dataset(tmp_path_factory.mktemp("gazes") / "data")


@pytest.fixture(scope="session")
def smooth_run(gazes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """training.SMALL, trained on `gazes` by one rank from beginning to end."""
    run = tmp_path_factory.mktemp("smooth") / "run"
    assert training.train(training.policy_config(gazes, run)) == "done"
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB: room for a plan and a shard or two."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
