"""autogaze audit: exit status 0 only for a clean run, 1 and the samples' names for another, 2 and one line for none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.audit import AuditConfig, run
from pipelines.errors import PipelineError
from pipelines.loading.order import DatasetCounts, batches, epoch_order
from pipelines.runs.ledger import Attempt, Ledger


def train(url: str, instead: dict[int, int] | None = None) -> None:
    """Two epochs of ten samples in batches of four, with some samples used instead of others in the second."""
    counts = [6, 4]
    attempt = Attempt(
        number=1, start=0, world=1, global_batch=4, seed=0, window=2, counts=[counts], weights=[1.0], datasets=["abc"]
    )
    ledger = Ledger(url, attempt, rank=0)
    for step in range(6):
        order = epoch_order([DatasetCounts(np.array(counts))], seed=0, epoch=step // 3, window=2)
        cut = batches(order, global_batch=4)
        ids = (order.shard * 6 + order.sample)[cut.places[step % 3]]
        if step >= 3:
            ids = np.array([(instead or {}).get(int(number), number) for number in ids])
        ledger.add(step, step // 3, ids, cut.repeat[step % 3])
    ledger.flush()


def printed(url: str) -> tuple[int, str]:
    sink = io.StringIO()
    return run(AuditConfig(url), Console(file=sink, width=120)), sink.getvalue()


def test_a_clean_run_is_a_table_and_0(tmp_path: Path) -> None:
    train(str(tmp_path))
    status, text = printed(str(tmp_path))
    assert status == 0 and "6 steps in 1 attempt (ranks: 1), 2 epochs: every sample as often" in text
    assert "data:" not in text, "there is no config.yaml"
    settings = "kind: PolicyTrainConfig\nconfig:\n  data: /data/gaze\n  data_versions: '2'\n"
    (tmp_path / "config.yaml").write_text(settings)
    assert "data: /data/gaze, version 2: 10 samples in 2 shards\n" in printed(str(tmp_path))[1]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [["0", "3", "10", "2", "0"], ["1", "3", "10", "2", "0"]]


def test_a_sample_used_instead_of_another_is_named_and_1(tmp_path: Path) -> None:
    train(str(tmp_path), {7: 2})
    status, text = printed(str(tmp_path))
    assert status == 1
    assert "sample 2 again" in text and "sample 7 was not used in this epoch" in text
    assert "sample 2, where the order has 7" in text


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    for url, message in (("", "run= is missing: autogaze audit"), (str(tmp_path), "no run is here")):
        with pytest.raises(PipelineError, match=message) as error:
            printed(url)
        assert "\n" not in str(error.value)
