"""What RL learns from: groups whose gazes differ, ratios that are 1 at lag 0, labels that keep the loss prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.objectives import grpo_loss
from pipelines.errors import PipelineError
from pipelines.rl.config import RLConfig, check_rl_config, temperature, temperatures
from pipelines.rl.groups import RolloutRequest
from pipelines.rl.health import Health
from pipelines.rl.rollouts import RolloutMaker
from pipelines.rl.task import RLTask
from pipelines.runs.events import read_events
from tests.support import training
from tests.support.training import rl_config, train

CPU = torch.device("cpu")
COLD = ["sample.temperature=1", "sample.min_temperature=1e-5", "sample.group=2", "max_ratio=0.01"]


def task_of(data: str, *words: str) -> RLTask:
    config = rl_config(data, Path("unused"), *words)
    task = training.task_of(config)(config, CPU)
    assert isinstance(task, RLTask)
    return task


def maker_of(task: RLTask, steps: int = 12) -> RolloutMaker:
    made = RolloutMaker(task.config, task.policy.config, task.threshold, steps, CPU)
    made.load(0, task._weights())
    return made


# -- groups that are all alike ---------------------------------------------------------------------------------------


def test_temperatures_of_a_group_rise_to_the_highest_and_begin_with_the_steps() -> None:
    config = RLConfig().sample
    config.temperature, config.min_temperature = 1.0, 0.1
    assert temperatures(config, 5, 10) == pytest.approx([0.1**0.5, 2 * 0.1**0.5, 1.0])
    assert temperatures(config, 0, 10) == [1.0]
    config.zero_variance = "keep"
    assert temperatures(config, 5, 10) == [temperature(config, 5, 10)]


def test_a_group_that_is_all_alike_is_sampled_again_warmer_by_whoever_makes_it(gazes: str) -> None:
    request = RolloutRequest(11, 0, 5, 0)
    kept, made = (maker_of(task_of(gazes, *COLD, f"sample.zero_variance={how}")) for how in ("keep", "warmer"))
    alike, group = kept.make(request), made.make(request)
    assert (alike.errors == alike.errors[0]).all() and alike.temperature < 1e-4
    assert not (group.errors == group.errors[0]).all()
    assert group.temperature in temperatures(made.config.sample, 11, 12)[1:]
    made.make(RolloutRequest(0, 0, 2, 0))
    assert made.make(request).digest() == group.digest()
    kept.close()
    made.close()


@pytest.mark.slow
def test_a_run_that_cools_down_still_learns_and_says_what_it_does(gazes: str, tmp_path: Path) -> None:
    """With zero_variance=keep most steps have nothing to learn from. Both say so, once."""
    shares, told = {}, {"keep": "teaches nothing: raise sample.min_temperature", "warmer": "sampled again, warmer (at"}
    for how in ("keep", "warmer"):
        words = [*COLD, f"sample.zero_variance={how}", "epochs=1.5"]
        assert train(rl_config(gazes, tmp_path / how, *words)) == "done"
        events = read_events(str(tmp_path / how))
        steps, notes = (events[events["kind"] == kind] for kind in ("step", "note"))
        shares[how] = steps["zero_variance"].tail(4).mean()
        assert (steps["temperature"].iloc[-1] > 1e-4) == (how == "warmer") == bool(steps["resampled"].iloc[-1])
        assert len(notes) == 1
        assert told[how] in notes["which"].iloc[0]
    assert shares["keep"] > 0.8 and shares["warmer"] < 0.3, shares


# -- precision -------------------------------------------------------------------------------------------------------


def test_in_bfloat16_ratios_at_lag_0_are_1(gazes: str) -> None:
    """Groups are sampled in float32; what they say of their log-probabilities is what the learner computes."""
    task = task_of(gazes, "scale.dtype=bfloat16", "sample.temperature=0.1", "sample.min_temperature=0.1")
    made = maker_of(task)
    group = made.make(RolloutRequest(1, 0, 7, 0))
    frames = made.reader.read([7]).frames
    with torch.autocast("cpu", torch.bfloat16):
        same = task.module(frames, [group])
    with torch.no_grad():
        other = task.module(frames, [group])  # a learner in another precision
    made.close()
    assert float(same["weight_min"]) == pytest.approx(1, abs=1e-3) == float(same["weight_max"])
    assert float(other["weight_max"]) - float(other["weight_min"]) > 1e-3


def test_truncated_ratios_are_bounded_whatever_the_advantage() -> None:
    log_probs = torch.tensor([[2.0, 2.0, -1.0]], requires_grad=True)
    advantages, valid = torch.tensor([[1.0, -1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    loss = grpo_loss(log_probs, advantages, valid, torch.zeros(1, 3), truncate=2.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-(2 - 2 + np.exp(-1)))
    assert log_probs.grad is not None and log_probs.grad[0].tolist() == pytest.approx([0, 0, -np.exp(-1)])


def test_what_goes_wrong_is_told_once_and_only_where_it_does() -> None:
    row = {"zero_variance": 0.0, "resampled": 0.0, "temperature": 1.0, "weight_min": 1.0, "weight_max": 1.0}
    health = Health(RLConfig())
    assert [health.look_at(row | {"weight_max": most}) for most in (1.05, 1.0)] == [None, None]
    assert "between 0.80 and 1.38" in str(health.look_at(row | {"weight_min": 0.8, "weight_max": 1.38}))
    assert health.look_at(row | {"weight_max": 1.38}) is None
    told = [health.look_at(row | {"zero_variance": 0.9}) for _ in range(6)]
    assert sum(text is not None for text in told) == 1 and "raise sample.temperature" in str(told)
    lagging = RLConfig()
    lagging.rollouts.lag = 1
    assert Health(lagging).look_at(row | {"weight_max": 1.38}) is None


# -- labels and units ------------------------------------------------------------------------------------------------


def test_the_loss_prediction_learns_from_labels_too(gazes: str) -> None:
    plain, weighted = task_of(gazes), task_of(gazes, "objective.label_prediction=2")
    made = maker_of(plain)
    group, batch = made.make(RolloutRequest(0, 0, 3, 0)), made.reader.read([3])
    made.close()
    [slots] = weighted.totals(batch.gaze)
    alone = plain.module(batch.frames, [group])
    both = weighted.module(batch.frames, [group], batch.gaze, slots)
    of_labels = plain.of_labels(batch.frames, batch.gaze, slots)["loss_prediction"]
    torch.testing.assert_close(both["loss"], alone["loss"] + 2 * of_labels)
    assert plain.totals(batch.gaze) == []


@pytest.fixture
def other_units(gazes: str, tmp_path: Path) -> str:
    """The same dataset, whose errors are said to be another loss."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("index", "shards", "plan.parquet"):
        (folder / name).symlink_to(Path(gazes) / name)
    about = json.loads((Path(gazes) / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | {"units": "training loss of another (l1, weights 1)"}))
    return str(folder)


def test_a_threshold_in_other_units_is_not_held_against_rewards(other_units: str) -> None:
    with pytest.raises(PipelineError, match=r"threshold=: the dataset's is in other units .*give threshold="):
        task_of(other_units)
    with pytest.raises(PipelineError, match=r"objective.label_prediction=1: .*other units"):
        task_of(other_units, "threshold=0.003", "objective.label_prediction=1")
    own = ["objective.label_prediction=null"]
    task = task_of(other_units, "threshold=0.003", *own)
    assert task.comparable and not task.on_labels and "learns from rewarded frames alone" in task.notes()[0]
    lengths = task_of(other_units, "sample.strategy=ratio", *own)
    assert not lengths.comparable and "met" not in lengths.greedy_sums(
        torch.zeros(1, 1, 224, 224, 3, dtype=torch.uint8)
    )


def test_labels_in_the_rewards_units_are_learned_from_by_default(gazes: str) -> None:
    assert task_of(gazes, "objective.label_prediction=null").on_labels == 1


def test_longer_gaze_is_said_to_be_rewarded(gazes: str) -> None:
    assert "rewards longer gaze" in task_of(gazes, "sample.strategy=threshold").notes()[0]


@pytest.mark.parametrize("words", [["objective.truncate=2"], ["objective.truncate=0.5", "objective.ratio=behaviour"]])
def test_a_truncation_that_cannot_work_is_refused(words: list[str]) -> None:
    with pytest.raises(PipelineError, match=r"objective\.truncate=.*set objective\.ratio=behaviour"):
        check_rl_config(rl_config("/data", Path("/run"), *words))


def test_a_run_from_before_these_settings_goes_on_with_what_it_did(gazes: str, tmp_path: Path) -> None:
    import yaml

    words = ["sample.zero_variance=keep", "epochs=0.4"]
    assert train(rl_config(gazes, tmp_path, *words)) == "done"
    place = tmp_path / "config.yaml"
    document = yaml.safe_load(place.read_text())
    del document["config"]["sample"]["zero_variance"], document["config"]["objective"]["label_prediction"]
    place.write_text(yaml.safe_dump(document))
    assert train(rl_config(gazes, tmp_path, *words)) == "finished"
    with pytest.raises(PipelineError, match=r"sample\.zero_variance=keep, not warmer"):
        train(rl_config(gazes, tmp_path, "epochs=0.4"))
