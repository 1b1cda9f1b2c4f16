"""cluster.kuberay: the RayJob manifest, held to KubeRay's field reference, and its command run as the manifest says.

Nothing here ran on Kubernetes: the command runs in a shell, on a Ray with the manifest's environment.
"""

from __future__ import annotations

import copy
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import ClusterError, kuberay
from cluster.spec import ClusterSpec, EnvironmentConfig, HeadGroup, NodeGroup, StorageConfig, TimeoutsConfig, check_spec
from tests.support import runs

SCHEMA = yaml.safe_load((Path(__file__).parent / "data" / f"rayjob-v{kuberay.KUBERAY_VERSION}.schema.yaml").read_text())
COMMAND = ["autogaze", "preprocess", "input=s3://b/videos", "output=s3://b/gaze", "ray.address=auto"]


def spec(**values: Any) -> ClusterSpec:
    given = {"environment": EnvironmentConfig(image="registry/autogaze:1"), **values}
    made = ClusterSpec(backend="kuberay", **given)
    check_spec(made)
    return made


FULL: dict[str, Any] = {
    "name": "gaze-corpus",
    "head": HeadGroup(cpus=4, memory_gb=16),
    "decode": NodeGroup(nodes=2, max_nodes=6, cpus=16, memory_gb=64),
    "gpu": NodeGroup(nodes=1, cpus=8, memory_gb=96, gpus=8, gpu_kind="NVIDIA-H100-80GB-HBM3"),
    "environment": EnvironmentConfig(image="registry/autogaze:1", tmp="/scratch"),
    "storage": StorageConfig("https://s3.local", "eu-1", "team", "s3-credentials"),
    "timeouts": TimeoutsConfig(ready_s=900, grace_s=60),
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        FULL,
        {"decode": NodeGroup(nodes=0, max_nodes=3)},
        {"head": HeadGroup(gpus=1, gpu_kind="cloud.google.com/gke-accelerator=nvidia-l4")},
    ],
)
def test_a_manifest_has_only_keys_and_values_that_kuberay_knows(values: dict[str, Any]) -> None:
    text = kuberay.to_yaml(kuberay.render(spec(**values), COMMAND))
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(
    "path, value",
    [
        (["spec", "backOffLimit"], 3),
        (["spec", "ttlSecondsAfterFinished"], "600"),
        (["spec", "shutdownAfterJobFinishes"], False),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "terminationGracePeriod"], 1),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"], 1),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env", 0, "value"], 0),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"], {"num-cpus": 4}),
    ],
)
def test_the_schema_refuses_a_key_that_is_unknown_and_a_value_of_another_type(path: list[Any], value: Any) -> None:
    manifest = copy.deepcopy(kuberay.render(spec(**FULL), COMMAND))
    node: Any = manifest
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


def test_the_command_and_the_nodes_are_read_back_from_the_manifest() -> None:
    wanted = spec(**FULL)
    job = yaml.safe_load(kuberay.to_yaml(kuberay.render(wanted, COMMAND)))["spec"]
    assert shlex.split(job["entrypoint"]) == COMMAND
    cluster = job["rayClusterSpec"]
    groups = {"head": (1, 1, cluster["headGroupSpec"])} | {
        group["groupName"]: (group["minReplicas"], group["maxReplicas"], group) for group in cluster["workerGroupSpecs"]
    }
    assert list(groups) == ["head", "decode", "gpu"]
    for role, (least, most, group) in groups.items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        kind = pod.get("nodeSelector", {}).get("nvidia.com/gpu.product", "")
        read = NodeGroup(least, most, int(limits["cpu"]), int(limits["memory"].removesuffix("G")), gpus, kind)
        asked = vars(wanted)[role]
        assert vars(read) == vars(asked) | {"max_nodes": max(asked.max_nodes, asked.nodes)}
        assert pod["terminationGracePeriodSeconds"] == wanted.timeouts.grace_s
        assert container["image"] == wanted.environment.image
    assert cluster["enableInTreeAutoscaling"] is True, "decode may grow"
    assert job["backoffLimit"] == wanted.kuberay.backoff_limit
    assert job["preRunningDeadlineSeconds"] == wanted.timeouts.ready_s


def test_ray_asks_for_a_token_reports_nothing_and_is_seen_in_the_kubernetes_cluster_only() -> None:
    cluster = kuberay.render(spec(**FULL), COMMAND)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}, "the operator makes the token, and a secret of it"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableInTreeAutoscaling" not in kuberay.render(spec(), COMMAND)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert _environment(group)["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_manifest_names_secrets_and_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "must-not-leak")
    text = kuberay.to_yaml(kuberay.render(spec(**FULL), COMMAND))
    assert "must-not-leak" not in text and "SECRET_ACCESS" not in text and "RAY_AUTH_TOKEN" not in text
    cluster = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
        assert _environment(group)["AWS_ENDPOINT_URL"] == "https://s3.local"


def test_one_shell_gives_every_word_back_whatever_is_in_it() -> None:
    words = [
        "input=a b/ü",
        "x=$HOME",
        "y=`id`",
        "z='q' \"r\"",
        "w=a;b&c|d>e",
        "v=*?[x]",
        "u=\\n",
        "t=",
        "s=#no",
        "~",
        "!",
    ]
    entrypoint = kuberay.render(spec(), [sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])["spec"][
        "entrypoint"
    ]
    done = subprocess.run(["/bin/sh", "-c", entrypoint], capture_output=True, text=True, check=True)
    assert done.stdout == f"{words}\n"


def test_a_command_that_needs_no_ray_gets_the_head_alone() -> None:
    job = kuberay.render(spec(), ["autogaze", "verify", "s3://b/gaze"], joins_ray=False)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []
    with pytest.raises(ClusterError, match="decode: this job runs on one node, the head; take out the others"):
        kuberay.render(spec(decode=NodeGroup(nodes=1)), ["autogaze", "verify", "x"], joins_ray=False)


@pytest.mark.slow
def test_the_command_runs_on_a_ray_with_the_manifests_environment_and_makes_the_bytes_of_a_local_run(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(2):
        make_video(tmp_path / "videos" / f"{number}.mp4", seed=number)
    settings = [f"input={tmp_path / 'videos'}", "shard.clips=2", "workers.decode=1", "workers.gaze=1"]
    local = runs.autogaze("preprocess", *settings, f"output={tmp_path / 'local'}", "ray.cpus=2")
    assert local.returncode == 0, local.stderr

    command = [sys.executable, "-m", "jobs.cli", "preprocess", *settings, f"output={tmp_path / 'there'}"]
    manifest = kuberay.render(spec(), [*command, "ray.address=auto"])
    environment = _environment(manifest["spec"]["rayClusterSpec"]["headGroupSpec"])
    # What the operator adds to every pod for authOptions.mode=token.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    entrypoint = manifest["spec"]["entrypoint"]
    with _head(environment) as address:
        told = runs.environment() | environment | {"RAY_ADDRESS": address}  # the address is Ray's own addition to a job
        # A process without the token gets nothing, not even a list of what is stored.
        peek = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'', None)"
        stranger = told | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for who, refused in ((told, False), (stranger, True)):
            asked = subprocess.run([sys.executable, "-c", peek], env=who, capture_output=True, text=True, check=False)
            assert (asked.returncode != 0) == refused, asked.stderr
            assert ("Unauthenticated" in asked.stderr or "uthentication" in asked.stderr) == refused, asked.stderr
        done = subprocess.run(
            ["/bin/sh", "-c", entrypoint], env=told, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert runs.tree(tmp_path / "there") == runs.tree(tmp_path / "local")
        # A retry is the same command again.
        again = subprocess.run(
            ["/bin/sh", "-c", entrypoint], env=told, capture_output=True, text=True, check=False, timeout=120
        )
        assert again.returncode == 0 and "nothing to do" in again.stdout


def _environment(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


@contextmanager
def _head(environment: dict[str, str]) -> Iterator[str]:
    """`ray start --head` in a process of its own, as the head pod has it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    folder = tempfile.mkdtemp(prefix="kr-", dir="/tmp")  # short, as Ray's sockets want it
    start = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    start += ["--object-store-memory=400000000", "--include-dashboard=false", f"--temp-dir={folder}"]
    ray = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        env=runs.environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert ray.stdout is not None
        said = []
        for line in ray.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(said))
        yield address
    finally:
        for pid in (ray.pid, *runs.descendants(ray.pid)):
            runs.kill(pid)
        ray.wait()
        if ray.stdout is not None:
            ray.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
