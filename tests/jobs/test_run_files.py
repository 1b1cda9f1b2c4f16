"""A run's config.yaml, given to --config."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.cli import JOBS
from jobs.config import load
from pipelines.errors import PipelineError

RUN = {
    "kind": "PolicyTrainConfig",
    "config": {
        "data": "/data/gaze",
        "run": "/elsewhere",
        "epochs": 3.0,
        "threshold": None,
        "optimizer": {"lr": 1e-05},
    },
    "about": {"model": {}},
    "data_fingerprint": "0",
}


def test_a_run_goes_on_from_where_its_file_lies(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(RUN))
    config = load(JOBS["train policy"].load_schema(), ["extend=true"], str(file))
    assert (config.run, config.data, config.epochs) == (str(tmp_path), "/data/gaze", 3.0)
    assert config.optimizer.lr == 1e-5 and config.extend
    assert load(JOBS["train policy"].load_schema(), ["run=/other"], str(file)).run == "/other"


def test_a_run_of_another_job_is_refused_by_the_job_that_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(RUN))
    with pytest.raises(PipelineError, match=f"go on with it by autogaze train policy --config {file}"):
        load(JOBS["rl"].load_schema(), [], str(file))


def test_a_file_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nofile\.yaml: No such file or directory; give a YAML file of keys"):
        load(JOBS["rl"].load_schema(), [], str(tmp_path / "nofile.yaml"))
