"""On two ranks the moving average and the best checkpoint are those of one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.runs.best import read_best
from pipelines.train.config import PolicyTrainConfig
from tests.support.training import newest, policy_config, require_clean, run_ranks, train, write_dataset

WORDS = ["steps=4", "global_batch=2", "micro_batch=1", "ema.decay=0.5", "optimizer.lr=0.01", "best=ema_val_loss"]
WORDS += ["val_clips=3", "every.validate=1", "every.checkpoint=4", "every.keep=1", "scale.max_workers=2"]


@pytest.mark.slow
def test_average_and_best_checkpoint_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", clips=12)

    def config(name: str) -> PolicyTrainConfig:
        return policy_config(data, tmp_path / name, *WORDS)

    assert train(config("one")) == "done"
    assert run_ranks(config("two"), 2, tmp_path / "meet") == ["done", "done"]
    require_clean(tmp_path / "two")
    for name in ("policy", "policy-ema"):
        one, two = (load_file(newest(tmp_path / run) / name / "model.safetensors") for run in ("one", "two"))
        for key, weight in one.items():
            torch.testing.assert_close(two[key], weight, rtol=1e-4, atol=2e-4)
    best = [read_best(str(tmp_path / run)) for run in ("one", "two")]
    assert best[0] is not None and best[1] is not None
    assert (best[0].step, best[0].validated) == (best[1].step, best[1].validated) == (best[0].step, 4)
    assert abs(best[0].value - best[1].value) < 1e-3
    kept = sorted(path.name for path in (tmp_path / "two" / "checkpoints").glob("step-*"))
    assert kept == sorted(path.name for path in (tmp_path / "one" / "checkpoints").glob("step-*"))
    state = json.loads((newest(tmp_path / "two") / "state.json").read_text())
    assert state["world"] == 2
