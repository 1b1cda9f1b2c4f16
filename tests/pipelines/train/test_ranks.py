"""The training loop on several ranks: the same run as on one, whoever is killed, and no rank left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from pipelines.dataset import shards
from pipelines.loading.order import DatasetCounts, batches, epoch_order
from pipelines.loading.samples import open_samples
from pipelines.runs.events import read_events
from pipelines.runs.ledger import attempts
from tests.support import training
from tests.support.training import Ranks, newest, policy_config, require_clean, run_ranks
from tests.support.waiting import wait_until


def consumed(run: Path) -> dict[int, list[int]]:
    """Samples of each step in the ranks' order, of the history that counts."""
    history: dict[int, list[int]] = {}
    for attempt in attempts(str(run)):
        history = {step: ids for step, ids in history.items() if step < attempt.start}
        for path in sorted((run / "ledger" / f"{attempt.number:06d}").glob("*.parquet")):  # by rank, then by step
            for step, rows in pd.read_parquet(path).query("~skipped").groupby("step"):
                history.setdefault(int(step), []).extend(rows["id"].tolist())
    return history


def order_of(data: str, val_fraction: float, steps: int, seed: int = 0, window: int = 2, batch: int = 4) -> np.ndarray:
    """Samples of each step as pipelines.loading.order has them: [steps, batch]."""
    samples = open_samples(data)
    usable = samples.split("train", val_fraction)
    counts = np.bincount(samples.table["shard"].to_numpy()[usable], minlength=samples.shards)
    firsts, found = np.cumsum(counts) - counts, []
    for epoch in range(steps):
        order = epoch_order([DatasetCounts(counts)], seed=seed, epoch=epoch, window=window)
        found.append(usable[firsts[order.shard] + order.sample][batches(order, global_batch=batch).places])
    return np.concatenate(found)[:steps]


def weights(run: Path) -> np.ndarray:
    return np.concatenate([value.ravel() for value in load_file(newest(run) / "policy" / "model.safetensors").values()])


def require_near(run: Path, other: Path) -> None:
    """Whether the runs' weights agree but for rounding."""
    one, two = weights(run), weights(other)
    assert np.linalg.norm(one - two) < 1e-5 * np.linalg.norm(two)


def test_two_ranks_train_and_validate_as_one_does(gazes: str, smooth_run: Path, tmp_path: Path) -> None:
    often = ["val_clips=3", "every.validate=5"]
    for world in (1, 2):
        outcomes = run_ranks(
            policy_config(gazes, tmp_path / str(world), *often, "micro_batch=1"), world, tmp_path / "ranks"
        )
        assert outcomes == ["done"] * world
        require_near(tmp_path / str(world), smooth_run)
        require_clean(tmp_path / str(world))
    one, two = (read_events(str(tmp_path / world)) for world in ("1", "2"))
    for kind, names in (
        ("step", ["loss", "ntp", "loss_prediction", "grad_norm", "lr", "samples", "epoch"]),
        ("validation", ["val_loss", "val_ntp", "val_loss_prediction", "ratio", "error", "met", "predicted_error"]),
    ):
        found, other = one.query(f"kind == '{kind}'"), two.query(f"kind == '{kind}'")
        assert found["step"].tolist() == other["step"].tolist() and len(found) >= 3
        np.testing.assert_allclose(other[names].astype(float), found[names].astype(float), rtol=1e-4)
    assert consumed(tmp_path / "1") == consumed(tmp_path / "2")
    assert run_ranks(policy_config(gazes, tmp_path / "1", *often), 2, tmp_path / "ranks") == ["finished"] * 2


def test_a_run_killed_on_two_ranks_then_one_then_two_keeps_the_order(
    gazes: str, smooth_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = policy_config(gazes, run)
    for world, until in ((2, 4), (1, 8), (2, 10)):
        ranks = Ranks(config, world, tmp_path / "ranks")
        goal = run / "checkpoints" / f"step-{until:06d}" / "state.json"
        assert wait_until(lambda goal=goal: goal.exists()), ranks.join()
        ranks.kill()
    assert run_ranks(config, 2, tmp_path / "ranks") == ["done", "done"]
    assert [attempt.world for attempt in attempts(str(run))] == [2, 1, 2, 2]
    require_clean(run)
    history = consumed(run)
    wanted = order_of(gazes, 0.25, len(history))
    assert [history[step] for step in range(len(wanted))] == wanted.tolist()
    require_near(run, smooth_run)
    losses = read_events(str(run)).query("kind == 'step'")["loss"]
    assert len(losses) == len(wanted) and np.isfinite(losses).all()


def test_a_loss_that_is_no_number_stops_every_rank_with_the_clips_name(tmp_path: Path) -> None:
    def with_nan(number: int) -> training.Gaze:
        gaze = training.short_gaze(number)
        if number == 5 and gaze.losses is not None:
            gaze.losses[0] = math.nan
        return gaze

    data = training.write_dataset(tmp_path / "data", gaze=with_nan)
    clip = shards.open_dataset(data).index()["clip"].iloc[5]
    config = policy_config(data, tmp_path / "run", "loader.val_fraction=0", "every.checkpoint=1")
    for text in run_ranks(config, 2, tmp_path / "ranks"):
        assert text.startswith("PipelineError: step ") and f"the loss of {clip} is not a finite number" in text
    bad = next(step for step, ids in enumerate(order_of(data, 0, 6)) if 5 in ids)
    assert newest(tmp_path / "run").name == f"step-{bad:06d}" and np.isfinite(weights(tmp_path / "run")).all()


@pytest.mark.slow
def test_a_bad_sample_is_skipped_on_its_rank_and_the_others_go_on(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data")
    row = shards.open_dataset(data).index().iloc[7]
    tar = Path(shards.tar_url(data, int(row["shard"])))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: int(row["offset"]) + 700] + b"\xff" + whole[int(row["offset"]) + 701 :])
    settings = ["loader.bad_samples=skip", "loader.val_fraction=0", "epochs=1"]
    for world in (1, 2):
        outcomes = run_ranks(policy_config(data, tmp_path / str(world), *settings), world, tmp_path / "ranks")
        assert outcomes == ["done"] * world
        require_clean(tmp_path / str(world))
        found = read_events(str(tmp_path / str(world))).query("kind == 'step'")
        assert found["skipped"].sum() == 1 and (found["samples"] == 4).all()
        (named,) = read_events(str(tmp_path / str(world))).query("kind == 'skipped'")["samples"].dropna()
        assert len(named) == 1 and str(tar) in named[0] and str(row["clip"]) in named[0], "whichever rank met it"
    assert consumed(tmp_path / "1") == consumed(tmp_path / "2")
    require_near(tmp_path / "1", tmp_path / "2")
    # With bad_samples=fail the rank that meets it says so, and the other does not stay behind.
    outcomes = run_ranks(policy_config(data, tmp_path / "fail", *settings[1:]), 2, tmp_path / "ranks")
    named = [text for text in outcomes if str(row["clip"]) in text and str(tar) in text]
    assert len(named) == 1 and named[0].startswith("PipelineError: ")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_an_error(gazes: str, tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    ranks = Ranks(policy_config(gazes, run, "epochs=1000", "every.checkpoint=0"), 2, tmp_path / "ranks")
    assert wait_until(lambda: (run / "events.jsonl").exists() and b'"step": 3' in (run / "events.jsonl").read_bytes())
    ranks.processes[victim].kill()
    other = ranks.processes[1 - victim]
    other.join()
    assert not other.is_alive() and other.exitcode == 1
    text = ranks.join()[1 - victim]
    assert "RuntimeError" in text and "peer" in text, text


def test_one_rank_that_stops_stops_all_at_the_same_step(gazes: str, tmp_path: Path) -> None:
    state = tmp_path / "run" / "checkpoints"
    ranks = Ranks(policy_config(gazes, tmp_path / "run", "epochs=1000"), 2, tmp_path / "ranks", stops=1, after=3)
    assert ranks.join() == ["stopped", "stopped"]
    assert json.loads((state / "step-000003" / "state.json").read_text())["consumed"] == 12
    assert (state / "latest").read_text().strip() == "step-000003"
    require_clean(tmp_path / "run")
