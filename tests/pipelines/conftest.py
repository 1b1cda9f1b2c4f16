"""One undisturbed run that the others are compared with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import runs`: tests are no package

import runs


@dataclass(frozen=True)
class Run:
    """A finished preprocess run: its settings, its output and the hash of every file of it."""

    settings: list[str]
    output: Path
    files: dict[str, str]
    printed: str


@pytest.fixture(scope="session")
def joins(ray_session: str) -> list[str]:
    """Settings with which a run joins the tests' own Ray: it starts sooner than one that brings its own."""
    return [f"ray.address={ray_session}", "workers.decode=1", "workers.gaze=1"]


@pytest.fixture(scope="session")
def undisturbed(store_of_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """store_of_videos preprocessed into shards of two clips by one decode and one gaze worker."""
    output = tmp_path_factory.mktemp("undisturbed") / "gaze"
    settings = [f"input={store_of_videos}", "shard.clips=2"]
    done = runs.autogaze("preprocess", *settings, f"output={output}", "ray.cpus=2")
    assert done.returncode == 0, done.stderr + done.stdout
    return Run(settings, output, runs.tree(output), done.stdout)


@pytest.fixture(scope="session")
def gazes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 24 tiny clips to train on, none of them gazed for long."""
    import training

    return training.write_dataset(tmp_path_factory.mktemp("gazes") / "data")


@pytest.fixture(scope="session")
def smooth_run(gazes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """training.SMALL, trained on `gazes` by one rank from beginning to end."""
    import training

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
