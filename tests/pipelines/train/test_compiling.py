"""compile=true: what it says, and that it changes a run by rounding alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.runs.events import read_events
from pipelines.train.policy import PolicyTask
from pipelines.train.task import COMPILES
from tests.support.training import policy_config, train


@pytest.mark.slow
def test_a_task_that_compiles_says_so(gazes: str) -> None:
    for words, told in ((("compile=true",), True), ((), False)):
        task = PolicyTask(policy_config(gazes, Path("unused"), *words), torch.device("cpu"))
        assert (COMPILES in task.notes()) is told


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_has_the_losses_of_a_plain_one(gazes: str, tmp_path: Path) -> None:
    found = []
    for run, words in (("plain", []), ("compiled", ["compile=true"])):
        assert train(policy_config(gazes, tmp_path / run, "steps=2", *words)) == "done"
        events = read_events(str(tmp_path / run))
        found.append(events[events["kind"] == "step"])
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4)
