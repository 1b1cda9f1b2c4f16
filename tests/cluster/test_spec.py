"""cluster.spec: one file for every launcher; what cannot work is one line before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.errors import ClusterError
from cluster.spec import ClusterSpec, StorageConfig, check_spec, storage_variables
from jobs import config as configs
from jobs.submit import load_spec
from pipelines.errors import PipelineError
from pipelines.schema import settings_of
from tests.support import runs


def load(tmp_path: Path, text: str) -> ClusterSpec:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return load_spec(str(file))


def test_an_empty_file_is_this_machine(tmp_path: Path) -> None:
    spec = load(tmp_path, "")
    assert spec == ClusterSpec() and spec.backend == "local" and list(spec.groups()) == ["head"]


def test_a_spec_printed_as_yaml_reads_back_as_the_same_spec(tmp_path: Path) -> None:
    text = "{backend: kuberay, name: a-1, decode: {nodes: 2, max_nodes: 9}, environment: {image: 'r/a:1', tmp: /s}}"
    spec = load(tmp_path, text)
    assert spec.decode.max_nodes == 9
    assert load(tmp_path, configs.to_yaml(spec)) == spec


@pytest.mark.parametrize(
    "text, told",
    [
        ("backend: kubernetes", "backend=kubernetes: must be one of local, slurm, kuberay"),
        ("bakend: slurm", "cluster.yaml: bakend: no such key; did you mean backend?"),
        ("gpu: {node: 2}", "cluster.yaml: gpu.node: no such key; did you mean gpu.nodes?"),
        ("head: {cpus: many}", "head.cpus=many: a whole number expected, such as 2"),
        ("slurm: {requeue: maybe}", "slurm.requeue=maybe: true or false expected"),
        ("head: [1]", "cluster.yaml: head: no such key"),
        ("name: Bad_Name", "name=Bad_Name: must be small letters, digits and dashes"),
        ("head: {nodes: 2}", "head.nodes=2: there is always one head"),
        ("decode: {nodes: -1}", "decode.nodes=-1: must be at least 0"),
        ("decode: {nodes: 1, cpus: 0}", "decode.cpus=0: must be at least 1"),
        ("gpu: {nodes: 1}", "gpu.gpus=0: the nodes of the role gpu must have at least 1"),
        ("decode: {nodes: 1, gpu_kind: h100}", "decode.gpu_kind=h100: with decode.gpus=0 there is none"),
        ("decode: {nodes: 3, max_nodes: 2}", "decode.max_nodes=2: is less than decode.nodes=3"),
        ("{backend: slurm, address: 'x:1'}", "address=x:1: only backend local joins a Ray that runs already"),
        ("backend: kuberay", "environment.image= is missing: KubeRay runs containers"),
        ("{backend: slurm, storage: {secret: s}}", "storage.secret: is for backend kuberay, this spec is for slurm"),
        ("{backend: kuberay, environment: {image: i, setup: x}}", "environment.setup: pods have no shell of yours"),
        ("timeouts: {grace_s: 0}", "timeouts.grace_s=0: must be at least 1"),
        ("slurm: {array: -1}", "must be 0 or more"),
        ("{address: auto, storage: {profile: lab}}", "set AWS_PROFILE where each node runs `ray start`"),
        ("head: {", "cluster.yaml: not YAML"),
        ("name: 2024-13-45", "name=2024-13-45: must be small letters, digits and dashes"),
    ],
)
def test_each_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises((ClusterError, PipelineError)) as error:
        load(tmp_path, text)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(PipelineError, match=r"/nowhere/cluster\.yaml: No such file"):
        load_spec("/nowhere/cluster.yaml")


def test_only_what_was_said_of_storage_reaches_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "must-not-leak")
    assert storage_variables(ClusterSpec()) == {}
    told = storage_variables(ClusterSpec(storage=StorageConfig("https://s3.local", "eu-1", "team")))
    assert told == {
        "AWS_ENDPOINT_URL": "https://s3.local",
        "AWS_REGION": "eu-1",
        "AWS_DEFAULT_REGION": "eu-1",
        "AWS_PROFILE": "team",
    }


def test_the_guide_has_every_key_with_its_default_and_its_help() -> None:
    table = (runs.ROOT / "docs" / "launch.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \| (.*) \|$", table, re.MULTILINE)
    keys = [
        (key.name, f"`{yaml.safe_dump(key.value).splitlines()[0]}`", key.help) for key in settings_of(ClusterSpec())
    ]
    assert rows == keys


def test_the_guides_examples_are_specs_that_work(tmp_path: Path) -> None:
    found = 0
    for guide in ("launch.md", "launch-kuberay.md", "launch-slurm.md"):
        file = runs.ROOT / "docs" / guide
        if not file.exists():
            continue
        for example in re.findall(r"^```yaml\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL):
            check_spec(load(tmp_path, example))
            found += 1
    assert found >= 3
