"""The batch script as text, and what is refused before Slurm is asked; needs no Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.node import private_folder
from cluster.slurm import submit, submit_array
from cluster.slurm_script import render, render_array
from cluster.spec import (
    ClusterSpec,
    EnvironmentConfig,
    HeadGroup,
    NodeGroup,
    SlurmConfig,
    StorageConfig,
    TimeoutsConfig,
)

SPEC = ClusterSpec(
    backend="slurm",
    head=HeadGroup(cpus=4, memory_gb=16),
    gpu=NodeGroup(nodes=2, cpus=16, memory_gb=64, gpus=8, gpu_kind="a100"),
    environment=EnvironmentConfig(python="/env/bin/python", setup="module load ffmpeg"),
    storage=StorageConfig(endpoint_url="https://s3.lab", region="eu-1", profile="lab"),
    timeouts=TimeoutsConfig(grace_s=90),
    slurm=SlurmConfig(partition="long", account="vision", time="2-00:00:00", logs="/logs", array=8, array_parallel=3),
)
COMMAND = ["autogaze", "preprocess", "input=s3://a b/$(touch x)", "output=it's"]


def said_by(script: str, words: str, folder: Path) -> list[str]:
    """What the script's last command is called with, when bash reads it: `words` of its argv from the command on."""
    told = script.replace("exec /env/bin/python", f'exec {sys.executable} -c "import sys; print(sys.argv)"')
    told = told.replace("module load", "true")
    done = subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True, cwd=folder)
    assert not list(folder.iterdir()), "nothing in a word is run"
    argv: list[str] = eval(done.stdout)
    return argv[argv.index(words) + 1 :]


def test_groups_of_different_shapes_are_parts_of_one_job() -> None:
    script = render(SPEC, COMMAND)
    head, workers = script.split("#SBATCH hetjob\n")
    asked = [line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--mem=16G",
        "--partition=long",
        "--account=vision",
        "--time=2-00:00:00",
        "--job-name=autogaze",
        '--output="/logs/%x-%j.log"',
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@120",
    ]
    assert "#SBATCH --nodes=2\n" in workers and "#SBATCH --gpus-per-node=a100:8\n" in workers
    assert "#SBATCH --partition=long\n" in workers, "each part says where it goes"
    assert "srun --het-group=1 --nodes=2" in workers and "--ray --nodes=3" in workers and "--ready-s=300" in workers


def test_groups_of_one_shape_are_one_plain_job() -> None:
    alike = replace(SPEC, gpu=NodeGroup(), decode=NodeGroup(nodes=3, cpus=4, memory_gb=16))
    script = render(alike, COMMAND)
    assert "hetjob" not in script and "#SBATCH --nodes=4\n" in script and "srun --relative=1 --nodes=3" in script


def test_words_reach_the_command_as_they_are(tmp_path: Path) -> None:
    assert said_by(render(SPEC, COMMAND), "--", tmp_path) == COMMAND
    single = replace(SPEC, gpu=NodeGroup())
    assert "--ray" not in render(single, COMMAND, joins_ray=False)
    os.environ["SLURM_ARRAY_TASK_ID"] = "5"
    try:
        told = said_by(render_array(single, COMMAND, "0-7"), "--", tmp_path)
    finally:
        del os.environ["SLURM_ARRAY_TASK_ID"]
    assert told == [*COMMAND, "ray.cpus=4", "part=5/8"]


def test_storage_is_named_and_set_up_runs_first() -> None:
    lines = render(SPEC, COMMAND).splitlines()
    place = [lines.index(line) for line in ("module load ffmpeg", "export AWS_PROFILE=lab")]
    assert place == sorted(place) and "export AWS_ENDPOINT_URL=https://s3.lab" in lines
    assert "bash -c" in next(line for line in lines if "srun" in line), "and on the other nodes too"


def test_an_array_is_limited_and_takes_the_nodes_with_gpus() -> None:
    script = render_array(SPEC, COMMAND, "3,6-7")
    assert "#SBATCH --array=3,6-7%3\n" in script and "#SBATCH --gpus-per-node=a100:8\n" in script
    assert "--ray" not in script and "hetjob" not in script and "%x-%A_%a.log" in script


@pytest.mark.parametrize("tasks", ["8", "0-8", "", "1-", "0;rm", "0-7%2", "-1"])
def test_tasks_that_are_none_are_refused(tasks: str) -> None:
    with pytest.raises(ClusterError, match="tasks="):
        render_array(SPEC, COMMAND, tasks)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"gpu": NodeGroup(nodes=1, max_nodes=4, gpus=1)}, "gpu.max_nodes=4: Slurm jobs do not grow; set gpu.nodes"),
        ({"slurm": SlurmConfig(partition="a b")}, "slurm.partition=a b: must have no spaces"),
        ({"slurm": SlurmConfig(time="1\n#SBATCH --wrap=x")}, "must have no spaces"),
        ({"slurm": SlurmConfig(logs="/a/%j")}, "slurm.logs=/a/%j: must have no quotes and no %"),
        ({"head": HeadGroup(cpus=0)}, "head.cpus=0: must be at least 1"),
    ],
)
def test_a_spec_that_slurm_cannot_have_is_refused(changed: dict, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        render(replace(SPEC, **changed), COMMAND)


def test_a_job_of_one_node_refuses_more() -> None:
    with pytest.raises(ClusterError, match="gpu: this job runs on one node, the head; take out the others"):
        render(SPEC, COMMAND, joins_ray=False)
    with pytest.raises(ClusterError, match=r"slurm\.array=0: set it"):
        render_array(replace(SPEC, slurm=SlurmConfig()), COMMAND, "0")


def test_without_slurm_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = replace(SPEC, slurm=SlurmConfig(logs=str(tmp_path / "logs"), array=2))
    for call in (lambda: submit(spec, COMMAND), lambda: submit_array(spec, COMMAND)):
        with pytest.raises(
            ClusterError, match=r"^sbatch: not found; run this where Slurm's commands are, on a login node$"
        ):
            call()
    assert not list((tmp_path / "logs").iterdir())


def test_a_folder_is_private_and_what_a_killed_job_left_is_removed(node_tmp: Path) -> None:
    left, young = node_tmp / "ag-1-n1-left", node_tmp / "ag-2-n1-young"
    for folder in (left, young):
        (folder / "ray").mkdir(parents=True)
    with private_folder(str(node_tmp)) as held:
        assert held.stat().st_mode & 0o777 == 0o700
        for folder in (left, held):
            os.utime(folder, (time.time() - 1000,) * 2)
        with private_folder(str(node_tmp)) as other:
            assert held.exists() and other != held, "one that a living job holds stays"
            assert young.exists() and not left.exists()
    assert list(node_tmp.iterdir()) == [young]


def test_a_place_too_long_for_sockets_or_not_there_is_told(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    with pytest.raises(Exception, match=r"environment\.tmp=.*No such file"), private_folder(str(deep)):
        pass
    deep.mkdir()
    with pytest.raises(Exception, match="too long for the names of Ray's sockets"), private_folder(str(deep)):
        pass
    assert not list(deep.iterdir())
