"""preset=small fills in what is left open."""

from __future__ import annotations

import pytest

from jobs.cli import JOBS
from jobs.config import load
from pipelines.errors import PipelineError
from pipelines.schema import settings_of

TRAINING = [name for name, job in JOBS.items() if getattr(job.load_schema(), "presets", None)]


@pytest.mark.parametrize("name", TRAINING)
def test_a_preset_is_settings_that_there_are_and_that_fit_each_other(name: str) -> None:
    job = JOBS[name]
    needed = ["encoder.checkpoint=/e"] if name == "train encoder" else []
    config = load(job.load_schema(), ["data=/d", "run=/r", "preset=small", *needed])
    job.check_config(config)
    values = {key.name: key.value for key in settings_of(config)}
    for key, value in job.load_schema().presets["small"].items():
        assert values[key] == value


def test_what_is_given_wins_over_the_preset_in_any_order() -> None:
    schema = JOBS["train policy"].load_schema()
    for words in (["steps=7", "preset=small"], ["preset=small", "steps=7"]):
        config = load(schema, words)
        assert config.steps == 7 and config.policy.hidden_size == 96
    assert load(schema, []).policy.hidden_size == 192, "the paper's without it"


def test_a_network_that_begins_from_a_checkpoint_keeps_its_sizes() -> None:
    config = load(JOBS["rl"].load_schema(), ["preset=small", "init=/runs/ntp"])
    assert config.policy.hidden_size == 192 and config.sample.group == 8


def test_a_preset_that_is_not_there_is_refused() -> None:
    with pytest.raises(PipelineError, match="preset=tiny: must be one of small"):
        load(JOBS["rl"].load_schema(), ["preset=tiny"])
