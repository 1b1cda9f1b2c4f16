"""`autogaze train` as a user runs it: stopped, continued, finished and refused; one line for each mistake."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.model import AutoGaze
from jobs import config as configs
from jobs.cli import main
from pipelines.dataset import shards
from pipelines.runs.events import read_events
from pipelines.train.config import ReconstructorTrainConfig
from tests.support import runs, training
from tests.support.training import train
from tests.support.waiting import wait_until

RECONSTRUCTOR = ["model.hidden_size=32", "model.num_layers=1", "model.num_heads=2", "model.decoder_hidden_size=32"]
RECONSTRUCTOR += ["model.decoder_num_layers=1", "model.decoder_num_heads=2"]


def reconstructor_settings(data: str, run: Path, *changed: str) -> list[str]:
    """As training.settings, for a small reconstructor."""
    words = training.settings(data, run, *RECONSTRUCTOR, *changed)
    return [word for word in words if not word.startswith(("policy.", "max_ratio"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_dataset(tmp_path_factory.mktemp("gazes") / "data")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_well_on_all_ranks(
    data: str, ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Given as relative paths: ranks have working folders of their own, and the run must not end up in one of them."""
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaze").symlink_to(data)
    settings = ["epochs=1000", "every.checkpoint=0", "scale.min_workers=2", "scale.max_workers=2"]
    words = training.settings("gaze", Path("run"), *settings)
    job = runs.start("train", "policy", *words, f"ray.address={ray_session}")
    events = run / "events.jsonl"
    assert wait_until(lambda: events.exists() and b'"step": 2,' in events.read_bytes())
    job.send_signal(number)  # Ray takes both for itself, when it starts and when it trains
    assert job.wait() == 0
    assert training.newest(run).name >= "step-000002"
    training.require_clean(run)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_paths_are_those_of_the_folder_the_command_is_typed_in(
    data: str, ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Ranks and actors that Ray starts have working folders of their own; a run must not end up in one of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaze").symlink_to(data)
    words = training.settings("gaze", Path("runs/1"), "epochs=1", f"scale.max_workers={ranks}")
    words += ["scale.min_workers=1", *([f"ray.address={ray_session}"] if ranks > 1 else [])]
    done = runs.here("train policy", *words)
    assert done.returncode == 0, done.stderr
    assert f"done: {tmp_path / 'runs' / '1'}" in done.stdout
    assert f"the policy: {training.newest(tmp_path / 'runs' / '1')}/policy" in done.stdout
    assert "start  attempt 1" in done.stdout and "epoch 0  loss" in done.stdout, "rank 0 is shown, wherever it runs"
    assert training.newest(tmp_path / "runs" / "1").is_dir()
    training.require_clean(tmp_path / "runs" / "1")


@pytest.mark.slow
def test_a_signal_saves_and_ends_well_and_the_same_command_goes_on(data: str, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = ["epochs=12", "every.checkpoint=0", "every.keep=1"]
    words = training.settings(data, run, *settings)
    job = runs.start("train", "policy", *words)
    events = run / "events.jsonl"
    assert wait_until(lambda: events.exists() and b'"step": 2,' in events.read_bytes())
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    stopped = training.newest(run).name
    assert "step-000002" <= stopped < "step-000060", "after a checkpoint, before the end"

    done = runs.here("train policy", *words)
    assert done.returncode == 0 and f"done: {run}" in done.stdout, done.stderr
    assert train(training.policy_config(data, whole, *settings)) == "done"
    assert training.end_of(run) == training.end_of(whole)
    audit = runs.here("audit", run)
    assert audit.returncode == 0 and "in 2 attempts" in audit.stdout
    assert AutoGaze.from_pretrained(training.newest(run) / "policy").positions == "consistent"


def test_a_folder_of_something_else_is_refused_as_a_run(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("learning_rate: 1\n", "config: mine\n", "[1, 2]\n", ""):
        (tmp_path / "config.yaml").write_text(text)
        assert main(["train", "policy", *training.settings(data, tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "config.yaml: is not that of a training run; choose another run" in error and error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_finished_run_says_so(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "policy", *training.settings(data, tmp_path / "run", "epochs=0.5")]
    assert main(words) == 0 and "done: " in capsys.readouterr().out
    assert main(words) == 0 and f"nothing to do: {tmp_path / 'run'} is finished" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.train.running", lambda ray: pytest.fail("Ray is started for nothing"))
        several = [*words, "scale.max_workers=2", "scale.min_workers=2"]
        assert main(several) == 0 and "is finished" in capsys.readouterr().out
        assert main([*several, "optimizer.lr=1"]) == 2 and "optimizer.lr=" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "run")]) == 0


def test_another_config_is_refused_in_one_line(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = training.settings(data, tmp_path, "epochs=0.5")
    assert main(["train", "policy", *words]) == 0
    shared = [word for word in words if not word.startswith(("policy.", "max_ratio"))]
    for other, told in (
        (["train", "policy", *words, "optimizer.schedule=constant"], "with optimizer.schedule=linear, not constant"),
        (["train", "reconstructor", *shared, *RECONSTRUCTOR], "with kind=PolicyTrainConfig"),
    ):
        capsys.readouterr()
        assert main(other) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "word, told",
    [
        ("epochs=0", "epochs=0.0: must be a positive number"),
        ("loader.sed=1", "loader.sed: no such key; did you mean loader.seed?"),
        ("policy.hidden_size=17", "policy.hidden_size=17: is no even multiple of policy.num_heads=2"),
        ("data=/nowhere", "/nowhere: no dataset here"),
        ("init=/nowhere", "init=/nowhere: "),
        ("reconstructor=/nowhere", "reconstructor=/nowhere: "),
        pytest.param(
            "scale.device=cuda",
            "scale.device=cuda: no GPU is here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ("ray.address=127.0.0.1:1", "ray.address=127.0.0.1:1: one rank runs in this process, without Ray"),
    ],
)
def test_a_mistake_is_one_line_and_2_and_leaves_no_run(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    assert main(["train", "policy", *training.settings(data, tmp_path / "run", word)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "job, words",
    [
        (["train", "policy"], ["scale.min_workers=2", "scale.max_workers=2", "scale.threads=9"]),
        pytest.param(["rl"], ["rollouts.actors=9"], marks=pytest.mark.slow),
        pytest.param(["rl"], ["rollouts.actors=4", "scale.max_workers=2"], marks=pytest.mark.slow),
    ],
)
def test_a_job_that_ray_has_no_room_for_is_refused_before_anything_starts(
    data: str, ray_session: str, tmp_path: Path, job: list[str], words: list[str]
) -> None:
    words = training.settings(data, tmp_path / "run", *words)
    done = runs.here(" ".join(job), *words, f"ray.address={ray_session}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "the cluster has 6 CPUs and 0 GPUs" in done.stderr and done.stderr.count("\n") == 1


def test_a_flipped_bit_is_one_line_with_shard_and_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = training.write_dataset(tmp_path / "data", clips=8)
    row = shards.open_dataset(url).index().iloc[3]
    tar = Path(shards.tar_url(url, int(row["shard"])))
    data = bytearray(tar.read_bytes())
    data[int(row["offset"]) + int(row["size"]) - 3000] ^= 1
    tar.write_bytes(bytes(data))
    words = training.settings(url, tmp_path / "run", "loader.val_fraction=0", "epochs=1", "every.checkpoint=1")
    assert main(["train", "policy", *words]) == 2
    error = capsys.readouterr().err
    assert str(tar) in error and row["clip"] in error and error.count("\n") == 1
    assert main(["train", "policy", *words, "loader.bad_samples=skip"]) == 0, "as the message says, the run goes on"


@pytest.mark.slow  # tests/pipelines/train/test_refiner.py resumes the other kind
def test_the_reconstructor_learns_and_its_run_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    def canvas(number: int) -> training.Gaze:
        return training.canvas_gaze(training.clip_of(number))

    url = training.write_dataset(tmp_path / "data", clips=8, gaze=canvas)
    changed = ["optimizer.lr=5e-3", "min_ratio=0.05", "val_clips=2", "every.checkpoint=0"]
    learnt, whole, run = tmp_path / "learnt", tmp_path / "whole", tmp_path / "run"
    assert main(["train", "reconstructor", *reconstructor_settings(url, learnt, *changed, "epochs=60")]) == 0
    events = read_events(str(learnt))
    losses = events.query("kind == 'step'")["loss"].to_numpy()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2])
    last = events.query("kind == 'validation'").iloc[-1]
    assert 0 < last["pixel_error"] < 1 and 0 < last["canvas_pixel_error"] < 1 and last["error"] > 0

    def config(place: Path) -> ReconstructorTrainConfig:
        return configs.load(ReconstructorTrainConfig, reconstructor_settings(url, place, *changed, "epochs=8"))

    assert train(config(whole)) == "done"
    asked = iter([False] * 4 + [True])
    assert train(config(run), stopping=lambda: next(asked)) == "stopped"
    assert train(config(run)) == "done"
    assert training.end_of(run) == training.end_of(whole)
    training.require_clean(run)


@pytest.mark.slow
def test_the_reconstructor_is_trained_and_validated_in_bfloat16(data: str, tmp_path: Path) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        run = tmp_path / dtype
        words = reconstructor_settings(data, run, "epochs=1", "val_clips=2", f"scale.dtype={dtype}")
        assert main(["train", "reconstructor", *words]) == 0
        events = read_events(str(run))
        losses.append(events.query("kind == 'step'")["loss"].to_numpy())
        assert 0 < events.query("kind == 'validation'")["pixel_error"].iloc[-1] < 1
    assert (losses[0] != losses[1]).any()
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_reconstructor_is_trained_and_validated_on_a_gpu(data: str, tmp_path: Path) -> None:
    words = reconstructor_settings(data, tmp_path, "epochs=1", "val_clips=2", "scale.device=cuda")
    assert main(["train", "reconstructor", *words]) == 0
    [last] = read_events(str(tmp_path)).query("kind == 'validation'")["canvas_pixel_error"]
    assert 0 < last < 1
