"""What a training job may be told: every mistake is one line that names the key; the rate is a function of the step."""

from __future__ import annotations

import numpy as np
import pytest

from jobs import config as configs
from pipelines.errors import PipelineError
from pipelines.rl.config import RLConfig, check_rl_config
from pipelines.train.config import (
    OptimizerConfig,
    PolicyTrainConfig,
    ReconstructorTrainConfig,
    TrainConfig,
    check_train_config,
    learning_rate,
)
from pipelines.train.on_ray import patience_s, require_room


def rates(steps: int, **told: object) -> np.ndarray:
    config = OptimizerConfig(**told)  # type: ignore[arg-type]
    return np.array([learning_rate(config, step, steps) for step in range(steps)])


@pytest.mark.parametrize("kind", [PolicyTrainConfig, ReconstructorTrainConfig])
def test_the_defaults_are_the_papers_and_may_be_used(kind: type) -> None:
    config = configs.load(kind, ["data=/d", "run=/r"])
    check_train_config(config)
    assert (config.epochs, config.global_batch) == (150, 256)
    assert (config.optimizer.lr, config.optimizer.min_lr, config.optimizer.clip_norm) == (5e-4, 1e-5, 0)


@pytest.mark.parametrize(
    "word, told",
    [
        ("data=", "data= is missing"),
        ("run=", "run= is missing"),
        ("global_batch=0", "global_batch=0: must be at least 1"),
        ("micro_batch=0", "micro_batch=0: must be at least 1"),
        ("val_clips=-1", "val_clips=-1: must be at least 0"),
        ("loader.window=0", "loader.window=0: must be at least 1"),
        ("loader.workers=-1", "loader.workers=-1: must be at least 0"),
        ("loader.cache_mb=-1", "loader.cache_mb=-1: must be at least 0"),
        ("loader.seed=-1", "loader.seed=-1: must be at least 0"),
        ("scale.min_workers=0", "scale.min_workers=0: must be at least 1"),
        ("scale.min_workers=2", "scale.max_workers=1: must be at least 2"),
        ("scale.threads=0", "scale.threads=0: must be at least 1"),
        ("scale.max_failures=-1", "scale.max_failures=-1: must be at least 0"),
        ("scale.resize_s=0", "scale.resize_s=0.0: must be a positive number"),
        ("every.checkpoint=-1", "every.checkpoint=-1: must be at least 0"),
        ("every.keep=0", "every.keep=0: must be at least 1"),
        ("epochs=0", "epochs=0.0: must be a positive number"),
        ("epochs=inf", "epochs=inf: must be a positive number"),
        ("optimizer.lr=nan", "optimizer.lr=nan: must be a positive number"),
        ("optimizer.min_lr=-1", "optimizer.min_lr=-1.0: must be 0 or more"),
        ("optimizer.clip_norm=nan", "optimizer.clip_norm=nan: must be 0 or more"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0: must be 0 or more"),
        ("optimizer.schedule=cosine", "optimizer.schedule=cosine: must be one of constant, linear, linear_w_warmup"),
        ("loader.bad_samples=ignore", "loader.bad_samples=ignore: must be one of fail, skip"),
        ("scale.device=tpu", "scale.device=tpu: must be one of cpu, cuda"),
        ("scale.dtype=float16", "scale.dtype=float16: must be one of float32, bfloat16"),
        ("loader.val_fraction=1", "loader.val_fraction=1.0: must be 0 or more, and less than 1"),
        ("loader.val_fraction=nan", "loader.val_fraction=nan: must be 0 or more, and less than 1"),
        ("data=,", "data=,: names no dataset"),
        ("policy.num_heads=0", "policy.num_heads=0: must be at least 1"),
        ("policy.num_layers=0", "policy.num_layers=0: must be at least 1"),
        ("policy.block_size=0", "policy.block_size=0: must be at least 1"),
        ("policy.num_heads=5", "policy.hidden_size=192: is no even multiple of policy.num_heads=5"),
        ("max_ratio=2", "max_ratio=2.0: must be more than 0, and at most 1"),
        ("threshold=-1", "threshold=-1.0: must be 0 or more"),
        ("loss_prediction=nan", "loss_prediction=nan: must be 0 or more"),
        ("scale.max_workers=3", "global_batch=256: 3 ranks cannot share it evenly"),
    ],
)
def test_a_value_that_cannot_work_is_one_line_that_names_it(word: str, told: str) -> None:
    require_refused(configs.load(PolicyTrainConfig, ["data=/d", "run=/r", word]), told)


@pytest.mark.parametrize(
    "word, told",
    [
        ("model.num_heads=0", "model.num_heads=0: must be at least 1"),
        ("model.num_heads=5", "model.hidden_size=1024: is no multiple of 4 and of model.num_heads=5"),
        ("model.hidden_size=18", "model.hidden_size=18: is no multiple of 4 and of model.num_heads=16"),
        ("model.decoder_num_layers=0", "model.decoder_num_layers=0: must be at least 1"),
        ("model.decoder_num_heads=5", "model.decoder_hidden_size=512: is no multiple of 4 and of model.decoder_num"),
        ("frames=0", "frames=0: must be at least 1"),
        ("frames=-1", "frames=-1: must be at least 1"),
        ("min_ratio=0", "min_ratio=0.0, max_ratio=0.5: wanted 0 < min <= max <= 1"),
        ("stored_gaze=2", "stored_gaze=2.0: must be 0 or more, and at most 1"),
    ],
)
def test_a_reconstructor_that_cannot_be_is_one_line_that_names_it(word: str, told: str) -> None:
    require_refused(configs.load(ReconstructorTrainConfig, ["data=/d", "run=/r", word]), told)


def require_refused(config: TrainConfig, told: str) -> None:
    with pytest.raises(PipelineError) as error:
        check_train_config(config)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_the_sizes_of_a_checkpoint_are_its_own() -> None:
    check_train_config(configs.load(PolicyTrainConfig, ["data=/d", "run=/r", "init=/c", "policy.num_heads=5"]))


@pytest.mark.parametrize(
    "words, cpus, gpus, told",
    [
        (["scale.max_workers=2", "scale.threads=4"], 4, 0, ""),  # one rank begins, and another when there is room
        (["scale.min_workers=2", "scale.max_workers=2", "scale.threads=4"], 4, 0, "2 ranks of scale.threads=4 need 8 "),
        (["scale.min_workers=2", "scale.max_workers=4", "scale.device=cuda"], 64, 1, "need 0 CPUs and 2 GPUs"),
        (["rollouts.actors=4"], 2, 0, "1 rank of scale.threads=1 with rollouts.actors=4 and rollouts.gpus=0 need 4 "),
        (["rollouts.actors=4"], 4, 0, ""),  # the rank itself is outside of Ray
        (
            ["rollouts.actors=1", "scale.max_workers=4"],
            4,
            0,
            "need 8 CPUs and 0 GPUs; the cluster has 4 ",
        ),
        (["rollouts.actors=1", "scale.max_workers=2", "scale.device=cuda"], 2, 2, ""),
        (["rollouts.actors=2", "rollouts.gpus=0.6"], 8, 1, "need 0 CPUs and 2 GPUs"),  # they do not share one
        (["rollouts.actors=4", "rollouts.gpus=0.25", "scale.device=cuda"], 8, 1, ""),
        (["rollouts.actors=20", "rollouts.gpus=0.1", "scale.device=cuda"], 8, 2, ""),
        (["rollouts.actors=2", "rollouts.gpus=2"], 8, 3, "need 0 CPUs and 4 GPUs"),
    ],
)
def test_ranks_and_actors_that_would_wait_for_ever_are_refused(
    words: list[str], cpus: int, gpus: int, told: str
) -> None:
    config = configs.load(RLConfig, ["data=/d", "run=/r", "global_batch=12", *words])
    check_rl_config(config)
    if not told:
        require_room(config, cpus, gpus)
        return
    with pytest.raises(PipelineError, match=told) as error:
        require_room(config, cpus, gpus)
    assert "\n" not in str(error.value)


def test_ranks_outwait_a_learner_whose_rollout_actors_hang() -> None:
    assert patience_s(configs.load(PolicyTrainConfig, [])) >= 1800
    for seconds in (600, 5000):  # three actors may be lost over a group before it is an error
        assert patience_s(configs.load(RLConfig, [f"rollouts.timeout_s={seconds}"])) > 3 * seconds


def test_linear_falls_from_lr_in_the_first_step_to_min_lr_in_the_last() -> None:
    found = rates(11, schedule="linear", lr=1.0, min_lr=0.0)
    np.testing.assert_allclose(found, np.linspace(1, 0, 11), atol=1e-12)
    assert rates(1, schedule="linear", lr=1.0, min_lr=0.1).tolist() == [1.0]


def test_warmup_rises_over_a_tenth_of_the_steps_and_then_falls_as_linear_does() -> None:
    found = rates(100, schedule="linear_w_warmup", lr=1.0, min_lr=0.1)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10)
    assert found[10] == 1.0 and found[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(found[10:]), -0.9 / 89)


@pytest.mark.parametrize("schedule", ["constant", "linear", "linear_w_warmup"])
def test_every_rate_of_any_length_lies_between_nothing_and_lr(schedule: str) -> None:
    for steps in range(1, 40):
        found = rates(steps, schedule=schedule, lr=5e-4, min_lr=1e-5)
        assert (found > 0).all() and (found <= 5e-4 * (1 + 1e-12)).all(), steps
        if schedule == "constant":
            assert (found == 5e-4).all()
