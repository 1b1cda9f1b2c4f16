"""autogaze evaluate encoder.checkpoint=: what an encoder loses by each way of gazing, at equal numbers of patches."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from autogaze import baselines
from autogaze.lengths import mean_lengths
from autogaze.patches import PatchVocabulary
from autogaze.vision import by_coverage, load
from autogaze.vision.agreement import agreement, retrieval
from jobs import cli, error_results, feature_results
from jobs.evaluate import EvaluateConfig, run
from jobs.pictures.curves import Plot
from pipelines.dataset import shards
from pipelines.inspection.gazes import cut_gaze, fitted
from pipelines.inspection.reading import ClipBatch, read_batches
from pipelines.inspection.sampling import sample_clips
from pipelines.networks.encoders import EncoderConfig
from tests.support.encoders import write_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

RATIO = 0.1  # 80 of the 795 patches of three frames


@pytest.fixture(scope="module")
def dataset(gazed_dataset: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three clips of three frames."""
    return gazed_dataset(tmp_path_factory.mktemp("features") / "gaze", videos=2)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "siglip")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "dinov2", "dinov2", patch=14)


@pytest.fixture(scope="module")
def clips(dataset: str) -> ClipBatch:
    opened = shards.open_dataset(dataset)
    return next(read_batches(opened, sample_clips(opened, 9, 0), 9))


def evaluate(output: Path, drawn: bool = False, **settings: Any) -> tuple[dict[str, Any], str]:
    """evaluate.json, and what was printed on 80 columns. drawn: curves too, which costs more than all the rest."""
    console = Console(file=io.StringIO(), width=80)
    with pytest.MonkeyPatch.context() as patch:
        for module in () if drawn else (error_results, feature_results):
            patch.setattr(module, "draw_curves", lambda *_: Plot(b"", b""))
        assert run(EvaluateConfig(output=str(output), **settings), console) == 0
    return json.loads((output / "evaluate.json").read_text()), console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found(dataset: str, siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Of all methods on the dataset's own patches: the results, what was printed, the folder."""
    output = tmp_path_factory.mktemp("results")
    settings = {"data": dataset, "ratios": f"{RATIO},0.4", "batch": 2, "encoder": EncoderConfig(str(siglip))}
    return *evaluate(output, drawn=True, **settings), output


@pytest.mark.slow
def test_each_number_is_that_of_the_gaze_measured_alone(
    found: tuple[dict[str, Any], str, Path], clips: ClipBatch, siglip: Path
) -> None:
    encoder = load(siglip)
    full = encoder.sharing(attention="frame").encode(clips.frames)
    lengths = mean_lengths(RATIO, 3).expand(3, 3)
    methods = found[0]["features"]["methods"]
    for point, gaze in (
        (methods["random"]["points"][0], baselines.random_patches(clips.frames, lengths, clips.keys)),
        (methods["coarse_to_fine"]["points"][0], baselines.coarse_to_fine(clips.frames, lengths)),
        (methods["stored"]["with_stored_lengths"], clips.stored),
    ):
        out = encoder.encode(clips.frames, gaze)
        wanted, among = agreement(full, out), retrieval(out.pool().clips, full.pool().clips)
        own = wanted.tokens[~wanted.tokens.isnan()]
        assert (point["own"] is None) == (len(own) == 0)
        for name, values in (("own", own), ("dense", wanted.dense), ("pooled", wanted.pooled)):
            if point[name] is not None:
                assert point[name]["mean"] == pytest.approx(float(values.mean()), abs=1e-5), name
        assert point["found"] == {"first": pytest.approx(among.first), "reciprocal": pytest.approx(among.reciprocal)}
        assert point["tokens"] == pytest.approx(float(gaze.counts().double().mean()))
        assert point["encoding"] > 0


def test_all_methods_have_equal_tokens_but_those_that_cannot(found: tuple[dict[str, Any], str, Path]) -> None:
    methods = found[0]["features"]["methods"]
    assert list(methods) == [*found[0]["methods"], "stalest", "every_nth_frame", "token_merging"]
    tokens = {name: [point["tokens"] for point in about["points"]] for name, about in methods.items()}
    for name in ("greedy", "random", "coarse_to_fine", "frame_difference", "stalest"):
        assert tokens[name] == pytest.approx([80, 318], abs=1) or (name == "stalest" and tokens[name][1] <= 318)
    assert tokens["every_nth_frame"] == [196, 196], "whole frames: at least the first"
    # Two layers of 196 patches see (1/2 + 1/4) / 2 of them at least, and 318 tokens are 0.54 of three frames.
    assert tokens["token_merging"] == pytest.approx([318], rel=0.02)
    assert methods["token_merging"]["with_stored_lengths"] is None
    assert methods["every_nth_frame"]["points"][0]["own"]["mean"] == pytest.approx(1)
    assert found[0]["features"]["full_frames"]["tokens"] == 3 * 196


def test_table_and_files_show_the_same_numbers(found: tuple[dict[str, Any], str, Path]) -> None:
    record, text, output = found
    rows = list(csv.DictReader((output / "features.csv").open()))
    for method, about in record["features"]["methods"].items():
        whole = about["with_stored_lengths"]
        points = [p for p in about["points"] if p["asked"] is not None] + ([whole] if whole else [])
        written = [row for row in rows if row["method"] == method]
        assert [float(row["dense"]) for row in written] == [p["dense"]["mean"] for p in points]
        assert [float(row["mrr"]) for row in written] == [p["found"]["reciprocal"] for p in points]
        for p in points:
            assert f"{p['tokens']:.0f}" in text and f"{p['dense']['mean']:.3f}" in text
    assert "rank 1" in text and "token merging is left out where" in text
    assert max(map(len, text.split("results: ")[0].splitlines())) <= 80, "fits a terminal"
    assert "…" not in text, "no word is cut"
    assert record["encoder"]["attention"] == "block_causal" and len(record["encoder"]["fingerprint"]) == 64
    assert Image.open(output / "features.png").width > Image.open(output / "evaluate.png").width
    assert "random" in (output / "features.svg").read_text()


def test_gaze_of_other_scales_is_converted_and_cut_to_fit_by_name(
    dataset: str, dinov2: Path, clips: ClipBatch, tmp_path: Path
) -> None:
    encoder = EncoderConfig(str(dinov2), scales="56+112+224")
    settings = {"data": dataset, "ratios": "0.004", "methods": "stored,greedy", "clips": 1, "encoder": encoder}
    record, text = evaluate(tmp_path, **settings, convert="coverage")
    wanted = PatchVocabulary((56, 112, 224), 14)
    methods = record["features"]["methods"]
    whole = by_coverage(clips.stored, wanted).counts().tolist()
    assert methods["stored"]["with_stored_lengths"]["tokens"] in whole
    assert methods["greedy"]["with_stored_lengths"]["tokens"] == methods["stored"]["with_stored_lengths"]["tokens"]
    assert methods["stored"]["points"][0]["tokens"] <= round(0.004 * 3 * wanted.size)
    assert record["encoder"]["scales"] == [56, 112, 224]
    assert methods["greedy"]["points"][0]["found"] is None and "one clip has no other" in text


def test_a_teacher_says_what_full_frames_are(dataset: str, siglip: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", seed=1)
    settings = {"data": dataset, "ratios": "0.1", "methods": "random,every_nth_frame", "clips": 2}
    encoder = EncoderConfig(str(siglip))
    found = {}
    for name, teacher in (("own", ""), ("other", str(other))):
        record, text = evaluate(tmp_path / name, **settings, encoder=encoder, teacher=teacher)
        found[name] = record["features"]["methods"]
        assert ("teacher=" in text) == bool(teacher) == bool(record["encoder"]["teacher"])
    dense = {name: methods["random"]["points"][0]["dense"]["mean"] for name, methods in found.items()}
    assert abs(dense["other"]) < dense["own"]
    assert found["other"]["every_nth_frame"]["points"][0]["own"]["mean"] == pytest.approx(1), "by the teacher itself"


def test_frames_without_a_token_are_measured_and_find_nothing(
    gazed_dataset: Callable[..., str], siglip: Path, tmp_path: Path
) -> None:
    place = gazed_dataset(tmp_path / "gaze", videos=1, failing=(), threshold=1.0)  # which grey frames meet
    settings = {"data": place, "ratios": "0.01", "methods": "stored,token_merging,stalest"}
    record, text = evaluate(tmp_path / "out", drawn=True, **settings, encoder=EncoderConfig(str(siglip)))
    for method in ("stored", "stalest"):
        empty = record["features"]["methods"][method]["with_stored_lengths"]
        assert empty["tokens"] == empty["dense"]["mean"] == empty["pooled"]["mean"] == 0 and empty["own"] is None
        assert empty["found"] == {"first": 0.5, "reciprocal": 0.75}, "chance among two clips"
    assert record["features"]["methods"]["token_merging"] == {"points": [], "with_stored_lengths": None}
    assert "nan" not in (tmp_path / "out" / "features.svg").read_text() and "nan" not in text


def test_a_fitted_gaze_holds_the_most_first_patches_that_fit(clips: ClipBatch) -> None:
    wanted = PatchVocabulary((56, 112, 224), 14)
    lengths = torch.tensor([[9, 3, 0]] * 3)
    found = fitted(clips.stored, lengths, wanted)
    assert bool((found.lengths <= lengths).all())
    for clip in range(3):
        for frame in range(3):
            gazed = clips.stored.frames(clip)[frame]
            counts = [int(_one(clips, clip, frame, n, wanted)) for n in range(len(gazed) + 1)]
            most = max(count for count in counts if count <= int(lengths[clip, frame]))
            assert len(found.frames(clip)[frame]) == most


def _one(clips: ClipBatch, clip: int, frame: int, tokens: int, wanted: PatchVocabulary) -> torch.Tensor:
    lengths = torch.zeros_like(clips.stored.lengths)
    lengths[clip, frame] = tokens
    return by_coverage(cut_gaze(clips.stored, lengths), wanted).lengths[clip, frame]


@pytest.mark.parametrize(
    "settings, told",
    [
        (["encoder.checkpoint={nothing}"], "nothing: is not there; give a vision transformer"),
        (["encoder.checkpoint={bert}"], "'bert', which has no vision tower known here"),
        (["encoder.checkpoint={siglip}", "encoder.scales=224,112"], "must be pixels joined by +"),
        (["encoder.checkpoint={siglip}", "encoder.scales=50+100"], "multiple of 16"),
        (
            ["encoder.checkpoint={dinov2}", "encoder.scales=56+112+224"],
            "encoder.scales=56+112+224: with its patches of 14 pixels the encoder sees other patches than",
        ),
        (["encoder.checkpoint={siglip}", "encoder.scales=112+224"], "give encoder.scales=32+64+112+224, or convert="),
        (["encoder.checkpoint={wide}"], "features of these frames are NaN or infinite in float32"),
        (["encoder.attention=newest"], "encoder.checkpoint= is missing"),
        (["convert=coverage"], "encoder.checkpoint= is missing"),
        (["teacher={siglip}"], "is compared with an encoder; give encoder.checkpoint="),
        (
            ["encoder.checkpoint={siglip}", "encoder.scales=112+224", "convert=coverage", "teacher={dinov2}"],
            "has 16 x 16 features of 16 numbers, encoder.checkpoint= has 14 x 14 of 16; give the network",
        ),
        (["methods=stalest"], "stalest is measured by features; give encoder.checkpoint="),
    ],
)
def test_what_cannot_be_seen_is_told_in_one_line(
    settings: list[str],
    told: str,
    dataset: str,
    siglip: Path,
    dinov2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"nothing": tmp_path / "nothing", "siglip": siglip, "dinov2": dinov2, "bert": tmp_path / "bert"}
    if settings == ["encoder.checkpoint={bert}"]:
        places["bert"].mkdir()
        (places["bert"] / "config.json").write_text('{"model_type": "bert"}')
    if settings == ["encoder.checkpoint={wide}"]:
        places["wide"] = write_encoder(tmp_path / "wide")
        weights = load_file(places["wide"] / "model.safetensors")
        name = next(name for name in weights if name.endswith("post_layernorm.weight"))
        weights[name] = torch.full_like(weights[name], np.finfo(np.float32).max)
        save_file(weights, places["wide"] / "model.safetensors", {"format": "pt"})
        capsys.readouterr()  # transformers' progress
    words = [word.format(**places) for word in settings]
    assert cli.main(["evaluate", dataset, f"output={tmp_path / 'out'}", "ratios=0.02", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "evaluate.json").exists()
