"""A wish to stop is heard within a step, and nothing of that step is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.runs.events import read_events
from pipelines.train import stopping
from pipelines.train.ranks import Ranks
from pipelines.train.stopping import Stopping
from tests.support import places, training
from tests.support.training import policy_config, rl_config, train


def past(value: int) -> Any:
    """Says yes from the `value`-th time on that it is asked, counted from 0."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= value


@pytest.mark.parametrize("kind, asked", [(policy_config, 6), (rl_config, 12)])
def test_a_step_that_is_broken_off_is_done_again_to_the_same_bits(
    kind: Any, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = training.write_dataset(tmp_path / "data", clips=12, gaze=training.short_gaze)
    words = ["epochs=1", "micro_batch=1", "every.checkpoint=0", "rollouts.lag=1"][: 4 if kind is rl_config else 3]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(kind(data, whole, *words)) == "done"
    monkeypatch.setattr(stopping, "_ASK_S", -1.0)  # ask before every part of a step
    assert train(kind(data, run, *words), stopping=past(asked)) == "stopped"
    assert training.newest(run).name == "step-000001", "the second step was under way"
    assert train(kind(data, run, *words)) == "done"
    assert training.end_of(run) == training.end_of(whole)
    training.require_clean(run)
    require_documented(run)


def require_documented(run: Path) -> None:
    """Every field of the run's events stands in the tables of docs/training.md or docs/rl.md."""
    tables = "".join(
        line
        for page in ("training.md", "rl.md")
        for line in (places.ROOT / "docs" / page).read_text().splitlines()
        if line.startswith("|")
    )
    missing = {name for name in read_events(str(run)).columns if not re.search(rf"\b{name}\b", tables)}
    assert missing <= {"time", "kind"}


def test_short_steps_are_not_slowed_down_by_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    alone = Stopping(Ranks(0, 1, torch.device("cpu")), lambda: bool(asked.append(1)))
    assert not alone.within_step() and not asked
    monkeypatch.setattr(stopping, "_ASK_S", -1.0)
    assert not alone.within_step() and asked


def test_a_validation_that_is_broken_off_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_ASK_S", -1.0)
    data = training.write_dataset(tmp_path / "data", clips=12)
    run = tmp_path / "run"
    words = ["epochs=2", "val_clips=4", "every.validate=1", "every.checkpoint=0"]
    assert train(policy_config(data, run, *words), stopping=past(2)) == "stopped"
    assert training.newest(run).name == "step-000001"
    text = (run / "events.jsonl").read_text()
    assert '"kind": "step"' in text and '"kind": "validation"' not in text
