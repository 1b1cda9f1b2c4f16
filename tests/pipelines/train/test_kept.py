"""What a run keeps beside its newest weights: their moving average, and the best checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autogaze import verified
from autogaze.model import AutoGaze
from autogaze.reconstruction.canvas import Canvas
from pipelines.errors import PipelineError
from pipelines.networks.find import find_network
from pipelines.runs.best import BestCheckpoint, read_best, write_best
from pipelines.runs.checkpoints import Checkpoints
from pipelines.train.config import PolicyTrainConfig, check_train_config
from pipelines.train.policy import PolicyTask
from pipelines.train.run import TrainingRun
from tests.support.training import clip_of, end_of, newest, policy_config, train, write_dataset

DECAY = 0.75


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("kept") / "data", clips=12)


def dataset_of_units(folder: Path, units: str) -> str:
    url = write_dataset(folder, clips=4)
    place = Path(url, "dataset.json")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"units": units}))
    return url


def small(data: str, run: Path, *more: str) -> PolicyTrainConfig:
    """A run of four steps with a checkpoint and a validation after each."""
    words = ("steps=4", "every.checkpoint=1", "every.validate=1", "val_clips=2", "every.keep=9", "global_batch=2")
    return policy_config(data, run, *words, *more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def averaged(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("averaged") / "run"
    assert train(small(data, run, f"ema.decay={DECAY}", "best=ema_val_loss")) == "done"
    return run


def test_the_average_is_that_of_the_weights_of_all_steps(averaged: Path) -> None:
    averages, policies = (
        [weights(averaged / "checkpoints" / f"step-{step:06d}" / name) for step in (1, 2, 3, 4)]
        for name in ("policy-ema", "policy")
    )
    for place in (1, 2, 3):
        for name, found in averages[place].items():
            wanted = DECAY * averages[place - 1][name] + (1 - DECAY) * policies[place][name]
            torch.testing.assert_close(found, wanted)
    assert any(not torch.equal(averages[0][name], policies[0][name]) for name in policies[0])


def test_training_is_not_changed_by_being_averaged(averaged: Path, data: str, tmp_path: Path) -> None:
    train(small(data, tmp_path / "plain"))
    plain = end_of(tmp_path / "plain")
    assert plain == {name: mark for name, mark in end_of(averaged).items() if "-ema/" not in name}
    assert not (tmp_path / "plain" / "checkpoints" / "best").exists()


def test_the_average_is_a_policy_like_any_other(averaged: Path) -> None:
    folder = newest(averaged) / "policy-ema"
    found = find_network(str(folder), "policy", "policy")
    assert (
        AutoGaze.from_pretrained(found).fingerprint != AutoGaze.from_pretrained(newest(averaged) / "policy").fingerprint
    )
    assert find_network(str(averaged), "policy", "policy").endswith("step-000004/policy")


def test_a_run_that_was_broken_off_ends_with_the_same(averaged: Path, data: str, tmp_path: Path) -> None:
    asked = itertools.count()
    config = small(data, tmp_path / "run", f"ema.decay={DECAY}", "best=ema_val_loss")
    assert train(config, stopping=lambda: next(asked) >= 2) == "stopped"
    assert newest(tmp_path / "run").name != "step-000004"
    assert train(config) == "done"
    assert end_of(tmp_path / "run") == end_of(averaged)
    assert read_best(str(tmp_path / "run")) == read_best(str(averaged))


# -- the best checkpoint -----------------------------------------------------------------------------------------------


class Told:
    """A validation whose number is what a list says for the step."""

    def __init__(self, values: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TrainingRun, "_measures", lambda run: {"error": values[run.step]})


def test_the_best_checkpoint_outlives_newer_ones(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Told({1: 3.0, 2: 1.0, 3: 2.0, 4: 1.0}, monkeypatch)
    train(small(data, tmp_path, "best=error", "every.keep=1"))
    assert {folder.name for folder in (tmp_path / "checkpoints").glob("step-*")} == {"step-000002", "step-000004"}
    assert read_best(str(tmp_path)) == BestCheckpoint(2, "error", 1.0, 4), "of equals the first"
    assert find_network(str(tmp_path / "checkpoints" / "best"), "policy", "policy").endswith("step-000002/policy")
    assert find_network(str(tmp_path), "policy", "policy").endswith("step-000004/policy")


def test_a_best_step_without_a_checkpoint_gets_one(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Told({1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0}, monkeypatch)
    train(small(data, tmp_path, "best=error", "every.keep=1", "every.checkpoint=4"))
    assert {folder.name for folder in (tmp_path / "checkpoints").glob("step-*")} == {"step-000002", "step-000004"}


@pytest.mark.parametrize("last", [2, 4])
def test_a_validation_that_a_kill_left_out_is_made_up_for(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Killed after the checkpoint of a step and before its validation, which would have been the best."""

    class Killed(Exception):
        pass

    def dies(run: TrainingRun) -> dict[str, float]:
        if run.step == last:
            run.checkpoints.wait()
            raise Killed
        return {"error": float(run.step)}

    monkeypatch.setattr(TrainingRun, "_measures", dies)
    config = small(data, tmp_path, "best=error")
    with pytest.raises(Killed):
        train(config)
    Told({1: 1.0, 2: 0.5 if last == 2 else 2.0, 3: 3.0, 4: 0.5 if last == 4 else 4.0}, monkeypatch)
    assert train(config) == "done"
    assert read_best(str(tmp_path)) == BestCheckpoint(last, "error", 0.5, 4)
    assert train(config) == "finished"


def test_validation_by_verified_gaze_says_what_it_takes_to_keep_the_threshold(data: str, tmp_path: Path) -> None:
    config = small(data, tmp_path, "verify=true", "threshold=0.4")
    task = PolicyTask(config, torch.device("cpu"))
    frames = torch.from_numpy(np.stack([clip_of(1), clip_of(2)]))
    sums = task.greedy_sums(frames)
    gaze = verified.gaze(frames, task.policy, Canvas(), threshold=0.4, max_ratio=config.max_ratio)
    assert sums["verified_ratio"] == pytest.approx(float(gaze.ratio().sum()))
    assert sums["verified_met"] == pytest.approx(float(gaze.met(0.4).float().mean(dim=1).sum()))
    assert 0 < sums["verified_searched"] <= 2
    assert "verified_ratio" not in PolicyTask(small(data, tmp_path), torch.device("cpu")).greedy_sums(frames)
    other = dataset_of_units(tmp_path / "other", "another loss")
    with pytest.raises(PipelineError, match=r"verify=true: validation needs a threshold in mean .* in another"):
        PolicyTask(small(other, tmp_path, "verify=true"), torch.device("cpu"))


def test_a_number_that_no_validation_has_is_told(data: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"best=nothing: a validation of this run has val_loss, .*; give one of"):
        train(small(data, tmp_path, "best=nothing"))
    with pytest.raises(PipelineError, match="best=error: nothing is validated; set val_clips="):
        check_train_config(small(data, tmp_path, "best=error", "val_clips=0"))


def test_what_names_the_best_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_best(str(tmp_path), best := BestCheckpoint(260, "val_loss", 0.1 + 0.2, 1040))
    assert read_best(str(tmp_path)) == best
    (tmp_path / "checkpoints" / "best").write_text("something else")
    assert read_best(str(tmp_path)) is None


def test_checkpoints_keep_what_they_are_told_to(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": b"1"}, {}, wait=True)
        checkpoints.kept = 2
    checkpoints.close()
    assert {folder.name for folder in (tmp_path / "checkpoints").glob("step-*")} == {"step-000002", "step-000003"}
