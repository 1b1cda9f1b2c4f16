"""autogaze evaluate: errors are those of the reconstructor, at equal numbers of patches, over clips of all shards."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from autogaze import baselines, greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.lengths import mean_lengths
from jobs import cli
from jobs.evaluate import EvaluateConfig, run
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames
from pipelines.inspection.evaluate import Curve, Point
from pipelines.inspection.gazes import cut_gaze
from pipelines.inspection.sampling import sample_clips

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(gazed_dataset: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight clips of three frames in three shards, the second of them failed."""
    return gazed_dataset(tmp_path_factory.mktemp("evaluate") / "gaze")


@pytest.fixture(scope="module")
def found(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one evaluation wrote: {"json", "csv", "svg", "png", "text"}."""
    output = tmp_path_factory.mktemp("results")
    console = Console(file=io.StringIO(), width=250)
    config = EvaluateConfig(data=dataset, output=str(output), ratios="0.1,0.004,0.02", batch=3)
    assert run(config, console) == 0
    return {
        "json": json.loads((output / "evaluate.json").read_text()),
        "csv": list(csv.DictReader((output / "evaluate.csv").open())),
        "svg": (output / "evaluate.svg").read_text(),
        "png": Image.open(output / "evaluate.png"),
        "text": console.file.getvalue(),  # type: ignore[attr-defined]
        "output": output,
    }


def test_each_point_is_the_mean_error_of_its_gaze_over_frames_and_clips(found: dict[str, Any], dataset: str) -> None:
    opened, canvas = shards.open_dataset(dataset), reconstruction.load("canvas")
    rows = opened.index().query("outcome == 'ok'").to_dict("records")
    assert found["json"]["clips"] == [row["clip"] for row in rows] and len(rows) == 7
    frames = np.stack([decode_frames(opened.read_clip(row)) for row in rows])
    for place, ratio in enumerate((0.004, 0.02, 0.1)):
        lengths = mean_lengths(ratio, 3).expand(7, 3)
        for method, gaze in (
            ("greedy", greedy.label(frames, canvas, lengths=lengths)),
            ("random", baselines.random_patches(frames, lengths, found["json"]["clips"])),
            ("coarse_to_fine", baselines.coarse_to_fine(frames, lengths)),
            ("frame_difference", baselines.frame_difference(frames, lengths)),
        ):
            errors = canvas.reconstruct(frames, gaze).error.double().mean(dim=1).numpy()
            point = found["json"]["methods"][method]["points"][place]
            assert point["asked"] == ratio and point["ratio"] == pytest.approx(round(ratio * 795) / 795)
            assert point["error"] == pytest.approx(errors.mean())
            assert point["standard_error"] == pytest.approx(errors.std(ddof=1) / np.sqrt(7))


def test_the_stored_gaze_is_cut_to_each_ratio_and_ends_where_it_is_whole(found: dict[str, Any], dataset: str) -> None:
    index = shards.open_dataset(dataset).index().query("outcome == 'ok'")
    points = found["json"]["methods"]["stored"]["points"]
    assert points[-1]["asked"] is None
    assert points[-1]["ratio"] == pytest.approx(index["ratio"].mean())
    assert points[-1]["error"] == pytest.approx(index["loss"].mean())  # frames=raw: the very pixels it was made on
    assert points[0]["ratio"] == pytest.approx(3 / 795) and points[0]["error"] > points[-1]["error"]
    assert [point["asked"] for point in points] == [0.004, None]  # none has 2 % of all patches
    # Greedy with the stored gaze's lengths is that gaze: it was made by greedy on the same reconstructor.
    methods = found["json"]["methods"]
    assert methods["greedy"]["with_stored_lengths"] == methods["stored"]["with_stored_lengths"] == points[-1]
    assert methods["random"]["with_stored_lengths"]["ratio"] == points[-1]["ratio"]


def test_a_cut_gaze_keeps_the_first_tokens_of_each_frame() -> None:
    gaze = Gaze.from_lists([[[5, 3, 9], [], [7, 1]], [[2], [8, 4], [6]]])
    part = cut_gaze(gaze, torch.tensor([[2, 0, 0], [1, 1, 1]]))
    assert [part.frames(b) for b in range(2)] == [[[5, 3], [], []], [[2], [8], [6]]]


def test_table_csv_and_plots_show_the_same_numbers(found: dict[str, Any]) -> None:
    for method, about in found["json"]["methods"].items():
        rows = [row for row in found["csv"] if row["method"] == method]
        shown = [p for p in about["points"] if p["asked"] is not None] + [about["with_stored_lengths"]]
        assert [float(row["error"]) for row in rows] == [point["error"] for point in shown]
        for point in shown:
            assert f"{point['error']:.4f} ±{point['standard_error']:.4f}" in found["text"]
    assert "ratio for 0.03" in found["text"] and reconstruction.load("canvas").units in found["text"]
    drawing = ElementTree.fromstring(found["svg"])
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"stored (canvas)", "greedy", "random", "0.4 %", "10 %", "threshold"} <= set(texts)
    assert found["png"].size == (1680, 880)
    colours = {colour for _, colour in found["png"].convert("RGB").getcolors(1 << 20)}
    assert {(0x8C, 0x6B, 0xFF), (0x40, 0xB0, 0xA6)} <= colours  # first and last method


def test_the_same_evaluation_writes_the_same_bytes_for_any_batch(
    found: dict[str, Any], dataset: str, tmp_path: Path
) -> None:
    config = EvaluateConfig(data=dataset, output=str(tmp_path), ratios="0.004,0.02,0.1", batch=5)
    run(config, Console(file=io.StringIO()))
    for name in ("evaluate.json", "evaluate.csv", "evaluate.svg", "evaluate.png"):
        assert (tmp_path / name).read_bytes() == (found["output"] / name).read_bytes(), name


def test_the_ratio_needed_lies_where_the_drawn_line_crosses_the_error() -> None:
    def point(ratio: float, error: float) -> Point:
        return Point(ratio, ratio, error, None)

    curve = Curve("greedy", [point(0.01, 0.8), point(0.04, 0.4), point(0.16, 0.2)], point(0.02, 0.5))
    assert curve.needed(0.6) == pytest.approx(0.02)  # half way on a logarithmic axis
    assert curve.needed(0.4) == pytest.approx(0.04)
    assert curve.needed(0.9) == 0.01
    assert curve.needed(0.1) is None


def test_the_sample_is_seeded_and_spread_over_the_shards(dataset: str) -> None:
    opened = shards.open_dataset(dataset)
    three = sample_clips(opened, 3, 0)
    assert sorted(row["shard"] for row in three) == [0, 1, 2]
    assert three == sample_clips(opened, 3, 0)
    picks = {tuple(row["clip"] for row in sample_clips(opened, 3, seed)) for seed in range(12)}
    assert len(picks) > 4
    everything = sample_clips(opened, 100, 0)
    assert len(everything) == 7 and len({row["clip"] for row in everything}) == 7
    assert len(sample_clips(opened, 1, 0)) == 1


def test_one_clip_has_no_standard_error_and_other_units_no_ratio(
    gazed_dataset: Callable[..., str], tmp_path: Path
) -> None:
    place = gazed_dataset(tmp_path / "gaze", videos=1, failing=(1,), storage="jpeg")
    about = json.loads((tmp_path / "gaze" / "dataset.json").read_text()) | {"units": "predicted loss"}
    (tmp_path / "gaze" / "dataset.json").write_text(json.dumps(about))
    console = Console(file=io.StringIO(), width=200)
    run(EvaluateConfig(data=place, output=str(tmp_path / "out"), ratios="0.02", methods="random"), console)
    found = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert found["methods"]["random"]["points"][0]["standard_error"] is None
    assert found["threshold"] is None and found["methods"]["random"]["ratio_for_threshold"] is None
    assert "give threshold=" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("methods", ["stored", "stored,random"])
def test_a_dataset_whose_gaze_is_empty_is_measured_and_drawn(
    gazed_dataset: Callable[..., str], tmp_path: Path, methods: str
) -> None:
    place, out = gazed_dataset(tmp_path / "gaze", threshold=1.0), tmp_path / "out"  # which grey frames meet
    assert cli.main(["evaluate", place, f"output={out}", "ratios=0.02", f"methods={methods}"]) == 0
    stored = json.loads((out / "evaluate.json").read_text())["methods"]["stored"]
    assert stored["with_stored_lengths"]["ratio"] == 0 and stored["with_stored_lengths"]["error"] > 0
    assert stored["ratio_for_threshold"] == 0
    assert "nan" not in (out / "evaluate.svg").read_text() and Image.open(out / "evaluate.png").size


@pytest.mark.parametrize(
    "settings, told",
    [
        ([], "data= is missing: autogaze evaluate"),
        (["{none}"], "no dataset here"),
        (["{frameless}"], "stores no frames"),
        (["{failed}"], "no clip in it is ok"),
        (["{good}", "reconstructor=painter"], "reconstructor=painter: "),
        (["{good}", "ratios=0.1,2"], "at most 1"),
        (["{good}", "ratios=0.1,0.0001"], "0.0001 of a clip's 795 patches is none; give 0.0013 or more"),
        (["{good}", "ratios=few"], "numbers with commas"),
        (["{good}", "methods=random,best"], "best is not one of stored, greedy"),
        (["{good}", "clips=0"], "clips=0"),
        (["{good}", "device=tpu"], "device=tpu"),
        (["{good}", "teachers.siglip2=/there"], "canvas has none"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line(
    settings: list[str],
    told: str,
    dataset: str,
    gazed_dataset: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"none": str(tmp_path), "good": dataset}
    if settings == ["{frameless}"]:
        places["frameless"] = gazed_dataset(tmp_path / "frameless", videos=1, storage="none")
    if settings == ["{failed}"]:
        places["failed"] = gazed_dataset(tmp_path / "failed", videos=1, failing=(0, 1))
    words = [word.format(**places) for word in settings]
    assert cli.main(["evaluate", *words, f"output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
