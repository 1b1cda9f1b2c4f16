"""`autogaze submit`: what is wrong is said before anything is submitted; the same job runs wherever the file says."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from jobs import config as configs
from jobs import submit
from jobs.cli import main
from jobs.preprocess import PreprocessJob
from jobs.train import TrainPolicy
from jobs.verify import VerifyConfig
from pipelines.storage import s3
from tests.support import runs, s3_servers, slurm_host

KUBERAY = "{backend: kuberay, name: corpus, environment: {image: 'registry/autogaze:1'}}"
PREPROCESS = ["preprocess", "input=s3://b/videos", "output=s3://b/gaze"]


@pytest.fixture
def kuberay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file for KubeRay; the test works in its folder, and on a machine that has no kubectl."""
    file = tmp_path / "k8s.yaml"
    file.write_text(KUBERAY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return str(file)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("autogaze: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    "words, told",
    [
        ([*PREPROCESS, "outptu=x"], "outptu: no such key; did you mean output?"),
        ([*PREPROCESS, "clip.frames=many"], "clip.frames=many: a whole number expected"),
        ([*PREPROCESS, "frames=gif"], "frames=gif: must be one of jpeg, raw, none"),
        (["preprocess", "input=s3://b/videos"], "output= is missing"),
        (["train", "policy", "data=x", "run=y", "global_batch=0"], "global_batch=0: must be at least 1"),
        (["train", "policy", "data=x"], "run= is missing"),
        (["verify", "dataset=x", "dept=1"], "dept: no such key"),
    ],
)
def test_a_mistake_in_a_job_is_found_before_anything_is_submitted(
    kuberay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["submit", *words, f"cluster={kuberay}"]) == 2
    assert told in one_line(capsys)
    assert os.listdir(tmp_path) == ["k8s.yaml"], "no manifest either"


def test_which_cluster_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *PREPROCESS]) == 2
    assert "cluster= is missing: autogaze submit preprocess KEY=VALUE... cluster=FILE" in one_line(capsys)
    assert main(["submit", *PREPROCESS, "cluster=/nowhere.yaml"]) == 2
    assert "/nowhere.yaml: No such file" in one_line(capsys)


@pytest.mark.parametrize(
    "schema, words",
    [
        (PreprocessJob, ["input=a b/$x", "output=ü=1", "threshold=0.03", "max_ratio=null", "ray.cpus=3"]),
        (PreprocessJob, ["input=null", "output=true", "clip.frames=8", "clip.fps=0.1"]),
        (TrainPolicy, ["data=x", "run=y", "optimizer.lr=1e-05", "scale.max_workers=4", "threshold=0.5"]),
        (VerifyConfig, ["dataset=s3://b/gaze"]),
    ],
)
def test_the_words_that_are_submitted_make_the_same_config(schema: type, words: list[str]) -> None:
    config = configs.load(schema, words)
    assert configs.load(schema, list(submit.changed_settings(config))) == config
    assert not list(submit.changed_settings(schema())), "what is not said stays the default of the version that runs"


def test_without_kubectl_the_manifest_is_written_and_its_place_is_said(
    kuberay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *PREPROCESS, f"cluster={kuberay}"]) == 2
    file = tmp_path / "corpus.rayjob.yaml"
    assert f"nothing was submitted; the manifest is {file}: `kubectl create -f" in one_line(capsys)
    assert main(["submit", *PREPROCESS, f"cluster={kuberay}", "--dry-run"]) == 0
    assert capsys.readouterr().out == file.read_text()
    entrypoint = yaml.safe_load(file.read_text())["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == ["autogaze", *PREPROCESS, "ray.address=auto"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_a_kubernetes_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "k8s.yaml").write_text(KUBERAY)
    assert main(["submit", *PREPROCESS, f"cluster={tmp_path / 'k8s.yaml'}"]) == 2
    assert "kubectl create: " in (told := one_line(capsys)) and "refused" in told
    for verb in ("status", "logs", "down"):
        assert main(["cluster", verb, str(tmp_path / "k8s.yaml")]) == 2
        assert f"kubectl {'delete' if verb == 'down' else 'get'}: " in one_line(capsys)


@pytest.mark.slow
def test_a_local_file_runs_the_job_here_on_the_ray_it_names(
    ray_session: str, store_of_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "here.yaml").write_text(f"address: {ray_session}\n")
    words = [f"input={store_of_videos}", f"output={tmp_path / 'm.parquet'}", f"cluster={tmp_path / 'here.yaml'}"]
    done = subprocess.run(
        [*runs.command("submit"), "scan", *words],
        env=runs.environment(joins=True),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "6 ok, 1 failed" in done.stdout, done.stderr + done.stdout
    assert (pd.read_parquet(tmp_path / "m.parquet")["status"] == "ok").sum() == 6


@pytest.mark.parametrize(
    "words, joins",
    [
        (["train", "policy", "data=s3://b/x", "run=s3://b/y"], False),
        (["train", "policy", "data=s3://b/x", "run=s3://b/y", "scale.max_workers=2"], True),
        (["rl", "data=s3://b/x", "run=s3://b/y"], False),
        (["rl", "data=s3://b/x", "run=s3://b/y", "rollouts.actors=2"], True),
        (["verify", "s3://b/x"], False),
        (PREPROCESS, True),
    ],
)
def test_only_a_job_that_works_on_ray_is_told_where_it_is(
    kuberay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], joins: bool
) -> None:
    (tmp_path / "lab.yaml").write_text("{backend: local, address: 'head:6379'}")
    assert main(["submit", *words, f"cluster={tmp_path / 'lab.yaml'}", "--dry-run"]) == 0
    assert ("ray.address=head:6379" in shlex.split(capsys.readouterr().out)) is joins
    (tmp_path / "gpus.yaml").write_text(f"{KUBERAY[:-1]}, gpu: {{nodes: 1, gpus: 8}}}}")
    told = main(["submit", *words, f"cluster={tmp_path / 'gpus.yaml'}", "--dry-run"])
    printed = capsys.readouterr()
    if joins:
        assert "ray.address=auto" in shlex.split(yaml.safe_load(printed.out)["spec"]["entrypoint"])
    else:
        assert told == 2 and "gpu: this job runs on one node, the head" in printed.err


def test_an_array_asks_the_store_that_the_file_names_which_parts_are_missing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"backend": "slurm", "slurm": {"array": 2}, "storage": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    (tmp_path / "slurm.yaml").write_text(yaml.safe_dump(said))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_servers.free_port()}")
    monkeypatch.setenv("PATH", str(tmp_path))
    s3.forget_client()
    words = ["preprocess", f"input={bucket}/videos", f"output={bucket}/gaze", f"cluster={tmp_path / 'slurm.yaml'}"]
    assert main(["submit", *words]) == 2
    assert "sbatch: not found" in one_line(capsys), "it got that far"


def test_a_submitted_job_reports_its_own_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here.yaml").write_text("")
    assert main(["submit", "verify", str(tmp_path / "none"), f"cluster={tmp_path / 'here.yaml'}"]) == 2
    assert "none" in one_line(capsys)


@pytest.mark.parametrize(
    "words, told",
    [
        (["scan", "input=x"], "slurm.array: only preprocess and encode can be cut into parts, not scan"),
        ([*PREPROCESS, "part=0/2"], "part=0/2: the array says which task makes which part"),
    ],
)
def test_an_array_is_for_preprocess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    (tmp_path / "s.yaml").write_text("{backend: slurm, slurm: {array: 2}}")
    for flags in ([], ["--dry-run"]):
        assert main(["submit", *words, f"cluster={tmp_path / 's.yaml'}", *flags]) == 2
        assert told in one_line(capsys)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real Slurm of two nodes on this host."""
    if why := slurm_host.why_not():
        pytest.skip(why)
    with slurm_host.running(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", str(runs.ROOT))
        yield conf


@pytest.mark.slow
def test_on_slurm_only_the_parts_that_have_shards_to_make_are_submitted_again(
    slurm: Path, store_of_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = tmp_path / "gaze", tmp_path / "slurm.yaml"
    job = ["preprocess", f"input={store_of_videos}", f"output={output}", "shard.clips=4", "clip.per_video=1"]
    made = runs.autogaze(*job, "ray.cpus=2")
    assert made.returncode == 0, made.stderr
    before = runs.tree(output)
    assert len(list(output.glob("index/*.parquet"))) == 2
    (output / "index" / "000001.parquet").unlink()

    said: dict[str, Any] = {"backend": "slurm", "name": "parts", "slurm": {"array": 2, "logs": str(tmp_path / "logs")}}
    said |= {"head": {"cpus": 2, "memory_gb": 2}}
    file.write_text(yaml.safe_dump(said))
    capsys.readouterr()
    assert main(["submit", *job, f"cluster={file}"]) == 0
    printed = capsys.readouterr().out
    number = printed.splitlines()[0].removeprefix("submitted to slurm: ")
    assert f"autogaze cluster status {file} {number}" in printed
    assert "#SBATCH --array=1\n" in (tmp_path / "logs" / f"parts-{number}.sh").read_text()
    spec = submit.load_spec(str(file))
    assert slurm_host.ended(spec, number).state == "COMPLETED", slurm_host.log(spec, number)
    assert runs.tree(output) == before

    assert main(["cluster", "status", str(file), number]) == 0
    assert f"{number}: COMPLETED" in capsys.readouterr().out
    assert main(["cluster", "logs", str(file), number]) == 0
    assert "1 shard" in capsys.readouterr().out
    assert main(["submit", *job, f"cluster={file}"]) == 0
    assert "nothing to do: all shards of" in capsys.readouterr().out


def test_on_slurm_a_job_without_ray_is_submitted_watched_and_ended(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "slurm.yaml"
    said: dict[str, Any] = {"backend": "slurm", "name": "check", "slurm": {"logs": str(tmp_path), "requeue": False}}
    file.write_text(yaml.safe_dump(said | {"head": {"cpus": 1, "memory_gb": 1}}))
    assert main(["submit", "verify", str(tmp_path / "none"), f"cluster={file}"]) == 0
    number = capsys.readouterr().out.splitlines()[0].removeprefix("submitted to slurm: ")
    spec = submit.load_spec(str(file))
    ended = slurm_host.ended(spec, number)
    assert (ended.state, ended.exit) == ("FAILED", 2), "the job's own exit status"
    assert main(["cluster", "logs", str(file), number]) == 0
    assert "autogaze: " in capsys.readouterr().out
    assert main(["cluster", "status", str(file), number]) == 0
    assert f"{number}: FAILED" in (told := capsys.readouterr().out) and "exit status 2" in told
    assert main(["cluster", "down", str(file), "no-number"]) == 2
    assert "a job's id is a number" in one_line(capsys)
    assert main(["cluster", "logs", str(file), "999999"]) == 2
    assert "no log yet" in one_line(capsys)


@pytest.mark.slow
def test_preflight_is_a_job_too_and_asks_every_node_that_slurm_gave(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, short = tmp_path / "slurm.yaml", tempfile.mkdtemp(prefix="pf-", dir="/tmp")  # short, for Ray's sockets
    node = {"cpus": 2, "memory_gb": 2}
    said: dict[str, Any] = {"backend": "slurm", "name": "ready", "slurm": {"logs": str(tmp_path), "requeue": False}}
    said |= {"head": node, "decode": node | {"nodes": 1}, "environment": {"tmp": short}}
    file.write_text(yaml.safe_dump(said))
    try:
        words = ["cluster", "preflight", str(file), f"output={tmp_path / 'out'}", f"cluster={file}"]
        assert main(["submit", *words]) == 0
        number = capsys.readouterr().out.splitlines()[0].removeprefix("submitted to slurm: ")
        spec = submit.load_spec(str(file))
        ended = slurm_host.ended(spec, number)
        printed = slurm_host.log(spec, number)
        assert ended.state == "COMPLETED", printed
        assert "2 node(s) wrote, read, removed" in " ".join(printed.split()) and "ready" in printed
        assert not os.listdir(tmp_path / "out")
    finally:
        shutil.rmtree(short, ignore_errors=True)
