"""`autogaze cluster`: what a submission would send, without sending it; and one line for what cannot be asked."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from jobs import config as configs
from jobs.cli import main
from jobs.cluster import PreflightConfig

FILES = {
    "local": "",
    "slurm": "{backend: slurm, name: corpus, head: {cpus: 4}, decode: {nodes: 3, cpus: 4}}",
    "kuberay": "{backend: kuberay, name: corpus, environment: {image: i}}",
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: str(tmp_path / f"{name}.yaml") for name in FILES}


@pytest.mark.parametrize("backend", FILES)
def test_render_prints_what_a_submission_would_send(
    files: dict[str, str], backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [
        "preprocess",
        *(["input=s3://a b", "output=s3://c"] if backend == "kuberay" else ["input=/a b", "output=/c"]),
    ]
    assert main(["cluster", "render", files[backend], f"job={shlex.join(job)}"]) == 0
    printed = capsys.readouterr().out
    assert main(["submit", *job, f"cluster={files[backend]}", "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    if backend == "kuberay":
        assert shlex.split(yaml.safe_load(printed)["spec"]["entrypoint"]) == ["autogaze", *job, "ray.address=auto"]
    elif backend == "slurm":
        assert "#SBATCH --nodes=4\n" in printed and shlex.join(job) in printed
        assert subprocess.run(["bash", "-n"], input=printed, text=True, check=False).returncode == 0
    else:
        assert shlex.split(printed) == ["autogaze", *job]


@pytest.mark.parametrize(
    "words, told",
    [
        (["render"], "job= is missing: autogaze cluster render FILE job="),
        (["render", "job=preprocess inptu=x"], "inptu: no such key; did you mean input?"),
        (["render", "job=preprocess 'input=x"], "No closing quotation"),
        (["render", "heda.cpus=3"], "heda.cpus: no such key; did you mean head.cpus?"),
        (["status"], "backend=local: its jobs run in the terminal that submitted them"),
        (["logs"], "backend=local"),
        (["down"], "backend=local"),
        (["status", "backend=slurm"], "which job? give its id, as submit printed it"),
        (["down", "backend=slurm", "id=x"], "a job's id is a number"),
        (["preflight", "address=127.0.0.1:1"], "address=127.0.0.1:1: no Ray cluster answers"),
        (["preflight", "decode.nodes=-1"], "decode.nodes=-1: must be at least 0"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    files: dict[str, str], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", words[0], files["local"], *words[1:]]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_verb_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "explode", "x.yaml"]) == 2
    assert "cluster explode: no such job; did you mean autogaze cluster render, autogaze" in capsys.readouterr().err


def test_the_values_of_the_file_may_be_changed_on_the_command_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "render", files["kuberay"], "name=other", "head.cpus=64", "job=verify s3://b/g"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert manifest["metadata"]["name"] == "other"
    (container,) = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["cpu"] == "64"


def test_a_submitted_preflight_carries_the_spec_in_its_words(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = files["kuberay"]
    assert main(["submit", "cluster", "preflight", file, "output=s3://b/g", f"cluster={file}", "--dry-run"]) == 0
    words = shlex.split(yaml.safe_load(capsys.readouterr().out)["spec"]["entrypoint"])
    assert words[:3] == ["autogaze", "cluster", "preflight"]
    config = configs.load(PreflightConfig, words[3:])
    assert (config.name, config.environment.image, config.output) == ("corpus", "i", "s3://b/g")
    assert config.ray.address == "auto"
