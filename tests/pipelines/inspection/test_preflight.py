"""`autogaze cluster preflight`: every node is asked, what is wrong is red and says what to do, and nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight import check_groups, same_kind, skew
from cluster.probes import Node
from cluster.spec import ClusterSpec, NodeGroup
from pipelines.errors import PipelineError
from pipelines.inspection import preflight
from pipelines.storage import s3
from tests.support import runs, s3_servers

TWO_NODES = ["head.cpus=1", "decode.nodes=1", "decode.cpus=1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_servers.Rclone]:
    """An S3 server that checks credentials."""
    if s3_servers.rclone() is None:
        pytest.skip("rclone with `serve s3` is not installed")
    served = s3_servers.Rclone(tmp_path_factory.mktemp("served"))
    served.start()
    with pytest.MonkeyPatch.context() as patch:
        s3_servers.use(patch, served.url)
        yield served
    served.kill()
    s3.forget_client()


@pytest.fixture(scope="module")
def cluster(server: s3_servers.Rclone) -> Iterator[Any]:
    """A Ray of two nodes, which reach the S3 server as their environment says."""
    from ray.cluster_utils import Cluster

    sizes: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 300 << 20}
    made = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    try:
        made.add_node(**sizes)
        yield made
    finally:
        made.shutdown()


def ask(folder: Path, *settings: str, joins: bool = True) -> tuple[int, dict[str, str], str]:
    """The exit status, the rows by their check, and all that was printed."""
    words = [sys.executable, "-m", "jobs.cli", "cluster", "preflight", *settings]
    # Not where the code lies: Ray lets workers import from the folder that their driver was started in.
    environment = runs.environment(joins) | {"COLUMNS": "500"}
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    return done.returncode, {row[0]: " | ".join(row[1:]) for row in cells}, done.stdout + done.stderr


@pytest.mark.slow
def test_a_good_cluster_is_ready_and_nothing_is_left_behind(
    cluster: Any, server: s3_servers.Rclone, store_of_videos: Path, tmp_path: Path
) -> None:
    where = [f"address={cluster.address}", *TWO_NODES, f"output=s3://{s3_servers.BUCKET}/gaze"]
    status, rows, printed = ask(tmp_path, *where, f"input={store_of_videos}")
    assert status == 0 and "ready" in printed, printed
    assert all(row.startswith("ok") for row in rows.values()) and len(rows) == 10, printed
    assert "2 node(s) wrote, read, removed" in rows["output"]
    # The smallest are broken.mp4, which is no fault of the cluster, and videos that decode.
    assert "2 node(s) decoded" in rows["input"] and "broken" not in rows["input"]
    assert not [path for path in (server.folder / s3_servers.BUCKET).rglob("*") if path.is_file()]
    assert "must-not-leak" not in printed


@pytest.mark.slow
def test_what_is_missing_is_red_and_says_what_to_do(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "only.mp4").write_bytes(b"this is no video" * 100)
    settings = ["head.cpus=1", "gpu.nodes=1", "gpu.gpus=8", "gpu.gpu_kind=h100", "environment.tmp=/proc"]
    bad = [f"output=s3://{s3_servers.BUCKET}-nothing/gaze", f"input={tmp_path / 'videos'}"]
    status, rows, printed = ask(tmp_path, f"address={cluster.address}", *settings, *bad)
    assert status == 1, printed
    for check, told in {
        "gpu nodes": "0 of 1 with 2 CPUs and 8 GPUs",
        "GPUs": "no h100 | correct gpu_kind",
        "free in /proc": "0.0 of 0 GB",
        "output": "does not exist; create it",
        "input": "no video decodes among the 1 smallest",
    }.items():
        assert rows[check].startswith("BAD") and told in rows[check], printed
        assert rows[check].rsplit(" | ", 1)[1], "what to do"
    assert "not ready: gpu nodes, GPUs, free in /proc, output, input" in printed


@pytest.mark.slow
def test_the_one_node_that_differs_is_named(cluster: Any, store_of_videos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for package in ("autogaze", "pipelines", "cluster", "jobs"):
        shutil.copytree(runs.ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "pipelines" / "corpus" / "plan.py").open("a") as file:
        file.write("# another version\n")
    environment = {"PYTHONPATH": str(other), "AWS_SECRET_ACCESS_KEY": "wrong"}
    node = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 << 20, env_vars=environment)
    try:
        where = [f"address={cluster.address}", f"output=s3://{s3_servers.BUCKET}/gaze"]
        status, rows, printed = ask(tmp_path, *where, *TWO_NODES, f"input={store_of_videos}")
    finally:
        cluster.remove_node(node)
    assert status == 1, printed
    expected = {"code": "pipelines differs", "output": "refuses the secret key", "object store": "100 MB"}
    if shutil.which("nvidia-smi") is None:
        expected["GPUs"] = "Ray counts 1, the driver shows 0"
    for check, told in expected.items():
        assert rows[check].startswith("BAD") and f"/{node.node_id[:6]}: " in rows[check] and told in rows[check], (
            printed
        )
        assert rows[check].count(told) == 1, "the other nodes are good"
    assert rows["answers"].startswith("ok") and rows["input"].startswith("ok"), printed


@pytest.mark.slow
def test_on_a_laptop_it_needs_no_file_and_a_place_nobody_may_write_is_red(tmp_path: Path) -> None:
    status, rows, printed = ask(tmp_path, "output=/sys/autogaze", f"input={tmp_path}/nothing", joins=False)
    assert status == 1 and rows["head nodes"].startswith("ok"), printed
    assert rows["output"].startswith("BAD") and "/sys/autogaze" in rows["output"], printed
    assert rows["input"].startswith("BAD") and "does not exist" in rows["input"], printed


def test_a_cluster_that_is_elsewhere_is_asked_by_a_job(tmp_path: Path) -> None:
    file = tmp_path / "slurm.yaml"
    file.write_text("backend: slurm\n")
    status, _, printed = ask(tmp_path, str(file), joins=False)
    assert status == 2 and "let preflight be one: autogaze submit cluster preflight" in printed


@pytest.mark.parametrize(
    "before, told, after, off",
    [(10.0, 10.5, 11.0, 0.0), (10.0, 10.0, 10.0, 0.0), (10.0, 4.0, 11.0, -6.0), (10.0, 17.0, 11.0, 6.0)],
)
def test_a_clock_is_off_by_what_the_question_cannot_have_taken(
    before: float, told: float, after: float, off: float
) -> None:
    assert skew(before, told, after) == off


def test_a_node_serves_one_role_only() -> None:
    nodes = [Node("a", "a", 8, 8, "H100", 0), Node("b", "b", 8, 0, "", 0), Node("c", "c", 4, 0, "", 0)]
    spec = ClusterSpec(decode=NodeGroup(nodes=1, cpus=8), gpu=NodeGroup(nodes=1, cpus=8, gpus=8))
    assert [check.ok for check in check_groups(spec, nodes)] == [True, True, True]
    spec.decode.nodes = 2
    told = {check.name: check for check in check_groups(spec, nodes)}
    assert told["gpu nodes"].ok and not told["decode nodes"].ok
    assert told["decode nodes"].found.startswith("1 of 2 with 8 CPUs")


@pytest.mark.parametrize(
    "wanted, name, same",
    [
        ("h100", "NVIDIA H100 80GB HBM3", True),
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA H100 80GB HBM3", True),
        ("cloud.google.com/gke-accelerator=nvidia-l4", "NVIDIA L4", True),
        ("a100", "NVIDIA H100 80GB HBM3", False),
        ("nvidia-h100", "NVIDIA A100-SXM4-40GB", False),
        ("l4", "NVIDIA L40S", False),
        ("H100", "H100", True),
    ],
)
def test_launchers_name_gpus_in_their_own_way(wanted: str, name: str, same: bool) -> None:
    assert same_kind(wanted, name) == same


def test_a_probe_that_comes_back_changed_is_refused(tmp_path: Path) -> None:
    url = preflight.write_probe(str(tmp_path / "out"))
    preflight.read_probe(url)
    Path(url).write_bytes(b"another program's")
    with pytest.raises(preflight.PipelineError, match="reads back other bytes"):
        preflight.read_probe(url)
    preflight.remove_probe(url)
    assert os.listdir(tmp_path / "out") == []


def test_a_sample_is_found_behind_what_is_no_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "damaged.tar").write_bytes(b"no tar" * 100)
    (tmp_path / "notes.txt").write_text("label " * 20)
    with tarfile.open(tmp_path / "in" / "few.tar", "w") as archive:
        for number in range(7):
            archive.add(tmp_path / "notes.txt", f"{number}.txt")
    with pytest.raises(PipelineError, match=r"2 smallest \(.*damaged.tar is no tar of videos, .*few.tar is no tar of"):
        preflight.find_sample(str(tmp_path / "in"), "pyav")
    with tarfile.open(tmp_path / "in" / "few.tar", "a") as archive:
        archive.add(make_video(tmp_path / "good.mp4", frames=3), "good.mp4")
    assert preflight.find_sample(str(tmp_path / "in"), "pyav").uri == f"{tmp_path}/in/few.tar#good.mp4"
