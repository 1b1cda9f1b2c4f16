"""cluster.modules: folders of the working folder that are called like our packages are not taken for them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import modules
from cluster.modules import HOME, CodePaths, words
from cluster.slurm_script import render, render_array
from cluster.spec import ClusterSpec, NodeGroup
from jobs import config as configs
from jobs import submit
from jobs.verify import VerifyConfig
from tests.support import places


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder to submit from that holds packages of our names, which say so when they are imported."""
    for name in ("cluster", "jobs", "pipelines", "autogaze", "ray"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('this is another package')")
    return tmp_path


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_command_of_a_job_is_ours_in_any_folder(crowded: Path) -> None:
    spec = ClusterSpec(backend="slurm")
    command = submit.command(spec, "verify", configs.load(VerifyConfig, [f"dataset={crowded}/nothing"]))
    done = run(command, crowded)
    assert (done.returncode, done.stderr) == (
        2,
        f"autogaze: {crowded}/nothing: no dataset here (no dataset.json); make one with: autogaze preprocess\n",
    )


def test_another_python_finds_its_own_packages(crowded: Path) -> None:
    command = words("cluster.slurm_node", sys.executable)
    assert HOME not in command[2], "which is not the place of that one's"
    done = run([*command, "--help"], crowded, PYTHONPATH=str(places.ROOT))
    assert done.returncode == 0 and "job,worker,wait" in done.stdout, done.stderr


def test_a_python_that_is_ours_needs_no_path_to_it(crowded: Path) -> None:
    bare = run([sys.executable, "-S", *words("cluster.errors")[1:]], crowded)
    assert (bare.returncode, bare.stderr) == (0, ""), "not even site-packages"


def test_no_line_of_a_script_looks_into_the_submit_folder(crowded: Path) -> None:
    spec = ClusterSpec(backend="slurm", decode=NodeGroup(nodes=2))
    script = render(spec, ["autogaze"])
    array = render_array(replace(spec, slurm=replace(spec.slurm, array=4)), ["autogaze"], "0-3")
    for line in (*script.splitlines(), *array.splitlines()):
        assert " -m " not in line
    last = script[script.index("exec ") :].replace("\\\n", " ")
    started = shlex.split(last)[1:4]
    assert started == words("cluster.slurm_node", sys.executable)
    worker = shlex.split(next(word for word in shlex.split(last) if word.startswith("--join="))[7:])
    assert worker[worker.index(sys.executable) :][:4] == [*started, "worker"]


def test_workers_of_ray_import_from_the_folder_of_our_packages_only(tmp_path: Path) -> None:
    paths = CodePaths()
    paths.extend([str(tmp_path), HOME, "/"])
    assert paths == [HOME] and str(places.ROOT) == modules.HOME


@pytest.mark.slow
def test_a_ray_of_our_own_works_in_a_folder_with_packages_of_our_names(crowded: Path) -> None:
    code = """
from cluster.local import RayConfig, running
with running(RayConfig(cpus=2, object_store_mb=100)):
    import ray
    from pipelines.video.base import REASONS
    from cluster.probes import alive_nodes, probing
    with probing(alive_nodes()) as probes:
        print(probes.call(REASONS.get, "too_short"), __import__("pipelines").__file__)
        from pipelines.storage.location import Location
        print(probes.call(Location, "/x"))
"""
    done = run([sys.executable, "-c", "import sys; sys.path.remove('')\n" + code], crowded, PYTHONPATH=str(places.ROOT))
    assert done.returncode == 0 and "'/x'" in done.stdout, done.stderr
