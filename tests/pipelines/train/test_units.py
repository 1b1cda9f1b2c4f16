"""Numbers in different units meet nowhere: datasets, labels and reconstructors say what their errors measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autogaze import reconstruction
from pipelines.dataset import units
from pipelines.errors import PipelineError
from pipelines.gazing.policy import UNITS
from pipelines.train.config import check_train_config
from pipelines.train.policy import PolicyTask
from tests.support.training import policy_config, train


def dataset_with(gazes: str, folder: Path, said: str) -> str:
    """The same dataset, whose errors are said to be in these units."""
    folder.mkdir()
    for name in ("index", "shards", "plan.parquet"):
        (folder / name).symlink_to(Path(gazes) / name)
    about = json.loads((Path(gazes) / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | {"units": said}))
    return str(folder)


def task_on(data: str, *words: str) -> PolicyTask:
    return PolicyTask(policy_config(data, Path("unused"), *words), torch.device("cpu"))


def test_datasets_of_format_1_are_of_the_canvas() -> None:
    assert units.units_of({}) == units.CANVAS == reconstruction.load("canvas").units


def test_datasets_in_different_units_are_not_mixed(gazes: str, tmp_path: Path) -> None:
    other = dataset_with(gazes, tmp_path / "other", "another loss")
    with pytest.raises(PipelineError, match=r"different units .*another loss.*import-labels") as error:
        task_on(f"{gazes},{other}")
    assert "\n" not in str(error.value)


def test_an_error_in_other_units_is_reported_but_not_called_met(gazes: str, tmp_path: Path) -> None:
    frames = torch.zeros(1, 1, 224, 224, 3, dtype=torch.uint8)
    same, other = task_on(gazes), task_on(dataset_with(gazes, tmp_path / "other", "another loss"))
    assert "met" in same.greedy_sums(frames) and "met" not in other.greedy_sums(frames)
    assert same.notes() == task_on(gazes, "val_clips=4").notes() == []
    [note] = task_on(str(tmp_path / "other"), "val_clips=4").notes()
    assert "not how often the threshold is met" in note


def test_labels_that_a_policy_made_are_said_to_be_predictions(gazes: str, tmp_path: Path) -> None:
    predicted = dataset_with(gazes, tmp_path / "policy", UNITS)
    assert train(policy_config(predicted, tmp_path / "run", "steps=1")) == "done"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    [note] = [event["which"] for event in events if event["kind"] == "note"]
    assert note.startswith("the errors of these labels are a policy's predictions")


def test_canvas_has_no_teachers(gazes: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="reconstructor=canvas has none"):
        check_train_config(policy_config(gazes, tmp_path, "teachers.siglip2=/models/siglip2"))


@pytest.mark.slow
def test_another_precision_on_resume_is_said_and_can_be_gone_on_with(gazes: str, tmp_path: Path) -> None:
    assert train(policy_config(gazes, tmp_path, "steps=1")) == "done"
    with pytest.raises(PipelineError, match=r"scale\.dtype=float32, not bfloat16; .*extend=true"):
        train(policy_config(gazes, tmp_path, "steps=1", "scale.dtype=bfloat16"))
    assert train(policy_config(gazes, tmp_path, "steps=2", "scale.dtype=bfloat16", "extend=true")) == "done"
