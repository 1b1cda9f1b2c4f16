"""The training loop on one rank: the same bits however often it is stopped, and nothing kept that is not a number."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.loading import loader
from pipelines.loading.samples import open_samples
from pipelines.runs.events import read_events
from tests.support import runs, training
from tests.support.training import end_of, newest, policy_config, require_clean, train

GOLDEN = runs.ROOT / "tests" / "golden"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(newest(run) / "policy" / "model.safetensors")


def steps(run: Path, kind: str = "step"):
    events = read_events(str(run))
    return events[events["kind"] == kind]


# -- the same run again ----------------------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_bits_and_another_seed_gives_others(
    gazes: str, smooth_run: Path, tmp_path: Path
) -> None:
    assert train(policy_config(gazes, tmp_path / "again")) == "done"
    assert end_of(tmp_path / "again") == end_of(smooth_run)
    assert train(policy_config(gazes, tmp_path / "other", "loader.seed=1")) == "done"
    one, other = weights(smooth_run), weights(tmp_path / "other")
    assert one.keys() == other.keys() and not any(
        torch.equal(one[name], other[name]) for name in one if "norm" not in name
    )


def test_a_run_that_is_stopped_after_any_step_goes_on_to_the_same_bits(
    gazes: str, smooth_run: Path, tmp_path: Path
) -> None:
    config = policy_config(gazes, tmp_path, "every.checkpoint=0")
    total = len(steps(smooth_run))
    for count in (0, 1, 4):  # before the first step, and after one and four more
        asked = iter([False] * count + [True])
        assert train(config, stopping=lambda asked=asked: next(asked)) == "stopped"
    assert newest(tmp_path).name == "step-000005"
    assert train(config) == "done"
    assert end_of(tmp_path) == end_of(smooth_run)
    assert steps(tmp_path)["step"].tolist() == list(range(1, total + 1))
    require_clean(tmp_path)

    before = runs.tree(tmp_path)
    assert train(config) == "finished"
    assert runs.tree(tmp_path) == before, "a finished run is left alone"


def test_a_damaged_newest_checkpoint_is_no_beginning(gazes: str, smooth_run: Path, tmp_path: Path) -> None:
    config = policy_config(gazes, tmp_path)
    asked = iter([False] * 5 + [True])
    assert train(config, stopping=lambda: next(asked)) == "stopped"
    (newest(tmp_path) / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.warns(RuntimeWarning, match=r"step-000005.*optimizer\.safetensors"):
        assert train(config) == "done"
    assert end_of(tmp_path) == end_of(smooth_run)
    require_clean(tmp_path)


# -- another run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, field",
    [
        ("optimizer.lr=0.1", "optimizer.lr=0.0005, not 0.1"),
        ("global_batch=2", "global_batch=4, not 2"),
        ("epochs=4", "epochs=3.0, not 4.0"),
        ("loader.seed=3", "loader.seed=0, not 3"),
        ("loader.val_fraction=0.5", "loader.val_fraction=0.25, not 0.5"),
        ("policy.num_layers=2", "policy.num_layers=1, not 2"),
        ("loss_prediction=0.5", "loss_prediction=1.0, not 0.5"),
    ],
)
def test_a_run_does_not_go_on_as_another(gazes: str, smooth_run: Path, changed: str, field: str) -> None:
    before = runs.tree(smooth_run)
    with pytest.raises(PipelineError, match=f"was begun with {field}; choose another run"):
        train(policy_config(gazes, smooth_run, changed))
    assert runs.tree(smooth_run) == before


def test_all_settings_that_differ_are_named(gazes: str, smooth_run: Path) -> None:
    with pytest.raises(PipelineError, match=r"with epochs=3\.0, not 4\.0; optimizer\.lr=0\.0005, not 0\.1; choose"):
        train(policy_config(gazes, smooth_run, "optimizer.lr=0.1", "epochs=4"))


def test_a_run_is_not_written_into_a_dataset(gazes: str) -> None:
    before = runs.tree(Path(gazes))
    with pytest.raises(PipelineError, match=f"run={gazes}: a dataset is there; choose another folder"):
        train(policy_config(gazes, Path(gazes)))
    assert runs.tree(Path(gazes)) == before


def test_a_dataset_too_small_to_hold_a_video_out_is_told(gazes: str, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    words = ["epochs=0.2", "loader.val_fraction=0.0001", "val_clips=4"]
    assert train(policy_config(gazes, tmp_path, *words), console=console) == "done"
    assert "no video is held out, so nothing is validated: raise loader.val_fraction=0.0001" in console.file.getvalue()


def test_where_and_how_often_may_change_within_a_run(gazes: str, smooth_run: Path, tmp_path: Path) -> None:
    shutil.copytree(gazes, tmp_path / "moved")
    free = [f"data={tmp_path / 'moved'}"]
    free += ["micro_batch=1", "loader.workers=1", "every.checkpoint=7", "every.keep=9", "scale.max_workers=2"]
    assert train(policy_config(gazes, smooth_run, *free)) == "finished"


def test_a_run_does_not_go_on_with_other_data_at_the_same_place(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = policy_config(str(data), tmp_path / "run", "epochs=1", "loader.val_fraction=0")
    training.write_dataset(data, clips=8)
    asked = iter([False, True])
    assert train(config, stopping=lambda: next(asked)) == "stopped"
    training.write_dataset(data, clips=8, gaze=lambda number: training.short_gaze(number + 100))
    with pytest.raises(PipelineError, match="was begun with data_fingerprint="):
        train(config)


def test_a_checkpoint_of_a_run_is_a_policy_with_consistent_positions(gazes: str, smooth_run: Path) -> None:
    policy = AutoGaze.from_pretrained(newest(smooth_run) / "policy")
    assert policy.positions == "consistent" and policy.config.hidden_size == 16
    assert policy.config.loss_threshold == training.THRESHOLD and policy.config.max_ratio == 0.03
    assert policy.gaze(training.clip_of(0)[None]).counts() > 0


def test_init_begins_with_the_weights_of_a_checkpoint(gazes: str, tmp_path: Path) -> None:
    small = GOLDEN / "autogaze_small_k4"
    assert train(policy_config(gazes, tmp_path / "0", f"init={small}"), stopping=lambda: True) == "stopped"
    given, kept = load_file(small / "model.safetensors"), weights(tmp_path / "0")
    assert given.keys() == kept.keys() and all(torch.equal(given[name], kept[name]) for name in given)
    assert AutoGaze.from_pretrained(newest(tmp_path / "0") / "policy").positions == "consistent"
    with pytest.raises(PipelineError, match=r"^init=.*nowhere: "):
        train(policy_config(gazes, tmp_path / "1", "init=/nowhere"))


# -- bad data --------------------------------------------------------------------------------------------------------


def damage(url: str, number: int) -> tuple[str, str]:
    """Flip one bit of the `number`-th clip; the shard's path and the clip's name."""
    row = shards.open_dataset(url).index().iloc[number]
    tar = Path(shards.tar_url(url, int(row["shard"])))
    data = bytearray(tar.read_bytes())
    data[int(row["offset"]) + int(row["size"]) // 2] ^= 1
    tar.write_bytes(bytes(data))
    return str(tar), str(row["clip"])


def test_a_flipped_bit_stops_with_shard_and_clip_and_loses_nothing(smooth_run: Path, tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data")
    config = policy_config(data, tmp_path / "run")
    asked = iter([False] * 3 + [True])
    assert train(config, stopping=lambda: next(asked)) == "stopped"
    shard, clip = damage(data, 0)
    kept = end_of(tmp_path / "run")
    with pytest.raises(PipelineError) as error:
        train(config)
    assert shard in str(error.value) and clip in str(error.value) and "\n" not in str(error.value)
    assert newest(tmp_path / "run").name >= kept["step"]
    damage(data, 0)  # back to what it was
    assert train(config) == "done"
    assert end_of(tmp_path / "run") == end_of(smooth_run)
    require_clean(tmp_path / "run")


def test_what_goes_wrong_in_a_validation_costs_no_step(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data")
    held_out = int(open_samples(data).split("val", 0.25)[0])
    shard, clip = damage(data, held_out)
    run = tmp_path / "run"
    with pytest.raises(PipelineError) as error:
        train(policy_config(data, run, "val_clips=64", "every.validate=4"))
    assert shard in str(error.value) and clip in str(error.value)
    assert newest(run).name == "step-000004"


# -- validation --------------------------------------------------------------------------------------------------------


def test_indexes_are_read_once_however_often_a_run_validates(
    gazes: str, smooth_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(loader, "open_samples", lambda *given: opened.append(given[0]) or open_samples(*given))
    assert train(policy_config(gazes, tmp_path, "val_clips=2", "every.validate=1")) == "done"
    assert opened == [gazes]
    found = steps(tmp_path, "validation")
    assert found["step"].tolist() == steps(tmp_path)["step"].tolist() and (found["val_loss"] > 0).all()
    assert end_of(tmp_path) == end_of(smooth_run), "a validation changes nothing"


def test_a_run_in_which_no_clip_is_held_out_trains_without_validation(gazes: str, tmp_path: Path) -> None:
    few = ["loader.val_fraction=1e-9", "val_clips=2", "every.validate=2", "epochs=1"]
    assert train(policy_config(gazes, tmp_path, *few)) == "done"
    assert "val_loss" not in steps(tmp_path, "validation")


# -- bad samples -------------------------------------------------------------------------------------------------------


def test_skipped_samples_are_counted_and_named_and_every_batch_is_whole(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data")
    damage(data, 0)
    run = tmp_path / "run"
    assert train(policy_config(data, run, "loader.bad_samples=skip", "loader.val_fraction=0")) == "done"
    found = steps(run)
    assert found["skipped"].sum() == 3 and (found["samples"] == 4).all(), "once an epoch"
    ledger = pd.read_parquet(sorted((run / "ledger").rglob("*.parquet")))
    assert ledger.query("skipped")["id"].tolist() == [0] * 3 and 0 not in set(ledger.query("~skipped")["id"])
    require_clean(run)


def with_nan(number: int) -> Gaze:
    gaze = training.short_gaze(number)
    if number == 5:
        gaze.losses[0] = math.nan
    return gaze


def test_a_loss_that_is_not_finite_names_the_clip_and_undoes_the_step(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data", gaze=with_nan)
    clip = shards.open_dataset(data).index()["clip"].iloc[5]
    run = tmp_path / "run"
    config = policy_config(data, run, "loader.val_fraction=0", "every.checkpoint=1", "every.keep=9")
    with pytest.raises(PipelineError, match=rf"^step \d+: the loss of {clip} is not a finite number") as error:
        train(config)
    bad = int(str(error.value).split()[1].strip(":"))
    assert len(steps(run)) == bad, "the steps before it are there"
    assert newest(run).name == f"step-{bad:06d}", "and their checkpoint"
    assert all(torch.isfinite(value).all() for value in weights(run).values())


# -- the step --------------------------------------------------------------------------------------------------------


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Distance of two sets of weights, relative to their size."""
    difference = math.sqrt(sum(float((one[name] - other[name]).double().square().sum()) for name in one))
    return difference / math.sqrt(sum(float(value.double().square().sum()) for value in one.values()))


def test_the_parts_a_batch_is_computed_in_do_not_change_the_run(gazes: str, smooth_run: Path, tmp_path: Path) -> None:
    for size in (1, 3):
        run = tmp_path / str(size)
        assert train(policy_config(gazes, run, f"micro_batch={size}")) == "done"
        assert apart(weights(run), weights(smooth_run)) < 1e-5
        np.testing.assert_allclose(steps(run)["loss"], steps(smooth_run)["loss"], rtol=1e-5)


def test_clipping_changes_the_step_and_not_the_recorded_norm(gazes: str, smooth_run: Path, tmp_path: Path) -> None:
    # Adam forgets the scale of all gradients, but not that some were clipped more than others.
    assert train(policy_config(gazes, tmp_path, "optimizer.clip_norm=0.9")) == "done"
    assert steps(smooth_run)["grad_norm"].max() > 0.9
    assert steps(tmp_path)["grad_norm"].iloc[0] == pytest.approx(steps(smooth_run)["grad_norm"].iloc[0])
    assert apart(weights(tmp_path), weights(smooth_run)) > 1e-4


@pytest.mark.slow
def test_bfloat16_computes_in_half_precision_and_keeps_whole_weights(gazes: str, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        run, words = tmp_path / dtype, [f"scale.dtype={dtype}", "policy.num_layers=2", "val_clips=2", "epochs=1"]
        assert train(policy_config(gazes, run, *words)) == "done"
        assert {value.dtype for value in weights(run).values()} == {torch.float32}
    exact, found = (steps(tmp_path / dtype)["loss"] for dtype in ("float32", "bfloat16"))
    assert (exact.to_numpy() != found.to_numpy()).all()
    np.testing.assert_allclose(found, exact, rtol=0.02)
    assert (steps(tmp_path / "bfloat16", "validation")["ratio"] > 0).all()


# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_policy_learns_its_labels_far_beyond_the_best_constant(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data", clips=4, gaze=lambda n: training.canvas_gaze(training.clip_of(n)))
    sizes = ["policy.hidden_size=32", "policy.num_layers=2", "policy.intermediate_size=64", "policy.block_size=4"]
    run = tmp_path / "run"
    settings = ["loader.val_fraction=0", "epochs=80", "optimizer.lr=5e-3", "every.checkpoint=0", "global_batch=4"]
    assert train(policy_config(data, run, *sizes, *settings, "micro_batch=4")) == "done"
    ids = np.concatenate([gaze.tokens.numpy() for gaze in map(label, range(4))])
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    entropy = float(-(shares * np.log(shares)).sum())  # of the best constant prediction, in nats a token
    losses = steps(run)["ntp"]
    assert losses.iloc[0] > entropy and losses.iloc[-1] < 0.6 * entropy, (entropy, losses.iloc[-1])
    assert steps(run)["loss_prediction"].iloc[-1] < steps(run)["loss_prediction"].iloc[0] / 2


def label(number: int) -> Gaze:
    return training.canvas_gaze(training.clip_of(number))
