"""A finished run goes on with more epochs or another rate, and keeps Adam's state."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.errors import PipelineError
from tests.support import training
from tests.support.training import policy_config, train

CONSTANT = ["optimizer.schedule=constant", "every.checkpoint=0", "every.keep=1"]


def test_an_extended_run_equals_one_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data", clips=12)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(policy_config(data, whole, *CONSTANT, "epochs=2")) == "done"
    assert train(policy_config(data, run, *CONSTANT, "epochs=1")) == "done"
    steps = int(training.newest(run).name.removeprefix("step-"))

    with pytest.raises(
        PipelineError, match=r"begun with epochs=1\.0, not 2\.0; choose another run, or add extend=true"
    ):
        train(policy_config(data, run, *CONSTANT, "epochs=2"))
    assert train(policy_config(data, run, *CONSTANT, "epochs=2", "extend=true")) == "done"
    assert training.end_of(run) == training.end_of(whole), "weights and moments, bit for bit"
    training.require_clean(run)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["config"]["epochs"] == 2.0 and "extend" not in recorded["config"]
    assert recorded["extended"] == [{"step": steps, "before": {"epochs": 1.0}}]

    for words in (["epochs=2"], ["epochs=2", "extend=true"]):  # the run is what it was extended to
        assert train(policy_config(data, run, *CONSTANT, *words)) == "finished"
    with pytest.raises(PipelineError, match="steps already, and 1 are asked for"):
        train(policy_config(data, run, *CONSTANT, "epochs=2", "steps=1", "extend=true"))
    with pytest.raises(PipelineError, match=r"begun with global_batch=4, not 2; choose another run$"):
        train(policy_config(data, run, *CONSTANT, "epochs=3", "global_batch=2", "extend=true"))


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data", clips=12)
    run = tmp_path / "run"
    assert train(policy_config(data, run, "steps=1")) == "done"
    file = run / "config.yaml"
    recorded = yaml.safe_load(file.read_text())
    del recorded["config"]["loss_prediction"]
    file.write_text(yaml.safe_dump(recorded))
    assert train(policy_config(data, run, "steps=1")) == "finished"
    with pytest.raises(PipelineError, match=r"begun with loss_prediction=1\.0, not 0\.5"):
        train(policy_config(data, run, "steps=1", "loss_prediction=0.5"))
