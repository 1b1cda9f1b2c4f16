"""Jobs on Slurm and Kubernetes, by what their commands answer: arrays and their plans, what is refused, remedies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.cli import main

FILE = "{backend: slurm, name: corpus, slurm: {array: 4, logs: LOGS}}"
ARRAY, PLAN = "700", "699"
REASON = "autogaze: input=s3://b/nothing: does not exist"


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an array that was submitted, and commands that answer as a Slurm that has forgotten everything."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "lab.yaml").write_text(FILE.replace("LOGS", str(logs)))
    (logs / f"corpus-{ARRAY}.sh").write_text(f"#!/bin/bash\n# Waits for the plan, made by job {PLAN}\n")
    (logs / f"corpus-plan-{PLAN}.log").write_text(f"scanning\n{REASON}\n\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for command in ("scontrol", "sacct", "scancel"):
        answer(tmp_path, command, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    return tmp_path


def answer(folder: Path, command: str, script: str) -> None:
    (folder / command).write_text(f"#!/bin/sh\n{script}\n")
    (folder / command).chmod(0o755)


def ask(folder: Path, verb: str, job: str = ARRAY) -> int:
    return main(["cluster", verb, str(folder / "lab.yaml"), job])


def test_logs_of_an_array_begin_with_those_of_its_plan(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(array, "logs") == 0
    assert capsys.readouterr().out == f"scanning\n{REASON}\n\n"
    for task in (1, 10, 2):
        (array / "logs" / f"corpus-{ARRAY}_{task}.log").write_text(f"task {task}\n")
    assert ask(array, "logs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["scanning", REASON] and [line for line in lines if line[:4] == "task"] == [
        "task 1",
        "task 2",
        "task 10",
    ]


def test_the_status_of_a_forgotten_array_is_one_line(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(array, "status") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"autogaze: job {ARRAY}: Slurm does not know it, or no longer; its log may be ")
    assert f"corpus-plan-{PLAN}.log" in error and error.count("\n") == 1


def test_a_plan_that_failed_is_told_with_its_reason(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = (
        f'case "$*" in *{PLAN}) echo "JobId={PLAN} JobState=FAILED Reason=NonZeroExitCode ExitCode=2:0";;'
        f' *) echo "JobId={ARRAY} ArrayJobId={ARRAY} ArrayTaskId=0-3 JobState=CANCELLED Reason=DependencyNever"'
        ";; esac"
    )
    answer(array, "scontrol", shown)
    assert ask(array, "status") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{ARRAY}: CANCELLED, (DependencyNever)") and "4 CANCELLED" in first
    assert second == f"its plan, job {PLAN}: FAILED; last words: {REASON}"


def test_a_plan_that_is_done_is_not_mentioned(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = f'case "$*" in *{PLAN}) echo "JobId={PLAN} JobState=COMPLETED ExitCode=0:0";;'
    answer(
        array, "scontrol", shown + f' *) echo "JobId={ARRAY} ArrayJobId={ARRAY} ArrayTaskId=1 JobState=RUNNING";; esac'
    )
    assert ask(array, "status") == 0
    assert capsys.readouterr().out == f"{ARRAY}: RUNNING, tasks: 1 RUNNING\n"


def test_ending_an_array_ends_its_plan(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(array, "scancel", f'echo "$*" >> {array}/ended')
    assert ask(array, "down") == 0
    assert (array / "ended").read_text() == f"--verbose {ARRAY}\n--verbose {PLAN}\n"


@pytest.mark.parametrize(
    "cluster, words, told",
    [
        (
            "{backend: slurm, head: {cpus: 1}, slurm: {array: 4}}",
            [],
            "on a node of head (1 CPUs, 0 GPUs): workers.decode=1 and workers.gaze=1 need 2 CPUs",
        ),
        ("{backend: slurm, head: {cpus: 1}, decode: {nodes: 1, cpus: 4}, slurm: {array: 4}}", [], ""),
        (
            "{backend: slurm, head: {cpus: 2}, slurm: {array: 4}}",
            ["device=cuda"],
            "on a node of head (2 CPUs, 0 GPUs): device=cuda: this cluster has no GPU; use device=cpu",
        ),
        (
            "{backend: slurm, head: {cpus: 1}, gpu: {nodes: 1, cpus: 4, gpus: 1}, slurm: {array: 4}}",
            ["device=cuda"],
            "",
        ),
        (
            "{backend: slurm, head: {cpus: 2}, decode: {nodes: 3, cpus: 4}}",
            ["workers.decode=40"],
            "on the nodes of head, decode (14 CPUs, 0 GPUs): workers.decode=40 and workers.gaze=1 need 31 CPUs",
        ),
        ("{backend: kuberay, environment: {image: i}, head: {cpus: 1}}", [], "on the nodes of head (1 CPUs, 0 GPUs): "),
        ("{backend: kuberay, environment: {image: i}}", ["output=/data/gaze"], "output=/data/gaze: is a path of this"),
        ("{backend: kuberay, environment: {image: i}}", ["input=videos"], "input=videos: is a path of this machine"),
        ("{backend: kuberay, environment: {image: i}}", ["policy.checkpoint=/in/the/image", "gaze=policy"], ""),
    ],
)
def test_a_job_that_cannot_run_where_the_file_says_is_refused_before_it_is_sent(
    cluster: str, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.yaml").write_text(cluster)
    job = ["preprocess", "input=s3://b/videos", "output=s3://b/gaze", *words, f"cluster={tmp_path / 'lab.yaml'}"]
    status = main(["submit", *job, "--dry-run"])
    printed = capsys.readouterr()
    assert (status, printed.err[:10]) == ((2, "autogaze: ") if told else (0, "")), printed.err
    assert told in printed.err and printed.err.count("\n") == bool(told)


@pytest.mark.parametrize(
    "said, remedy",
    [
        (
            "The connection to the server localhost:8080 was refused - did you specify the right host",
            "set KUBECONFIG to",
        ),
        ('error: context "lab" does not exist', "set KUBECONFIG to"),
        ("error: error loading config file: yaml: invalid kubeconfig", "set KUBECONFIG to"),
        ("Unable to connect to the server: proxyconnect tcp: dial tcp: lookup proxy", "correct HTTPS_PROXY"),
        ("error: You must be logged in to the server (Unauthorized)", "log in to the cluster again"),
        (
            'Error from server (Forbidden): rayjobs.ray.io is forbidden: User "u"',
            "may not do this in kuberay.namespace",
        ),
        ('Error from server (NotFound): namespaces "lab" not found', "create kuberay.namespace"),
        ('error: the server doesn\'t have a resource type "rayjob"', "has no KubeRay: install its operator"),
        ("Unable to connect to the server: x509: certificate has expired", "log in to the cluster again"),
    ],
)
def test_what_kubectl_says_comes_with_what_to_do(
    said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "said").write_text(said)
    answer(tmp_path, "kubectl", f"cat {tmp_path}/said >&2; exit 1")
    (tmp_path / "k8s.yaml").write_text("{backend: kuberay, environment: {image: i}}")
    assert main(["cluster", "status", str(tmp_path / "k8s.yaml")]) == 2
    error = capsys.readouterr().err
    assert said in error and remedy in error and error.count("\n") == 1
