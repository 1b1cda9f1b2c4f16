"""What an encode job refuses, in one line and before any work; and what other jobs say of a dataset of features."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.config import load
from jobs.encode import EncodeCommand
from pipelines.encode.config import EncodeConfig, layer_names
from pipelines.encode.workers import share_encode_workers
from pipelines.errors import PipelineError
from tests.pipelines.encode.conftest import Encoded
from tests.support import runs

GIVEN = ["data=/data/gaze", "encoder.checkpoint=org/name", "output=/data/features"]


def refused(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and "Traceback" not in error, error


@pytest.mark.parametrize(
    "settings, told",
    [
        (["encoder.checkpoint=org/name", "output=/o"], "data= is missing, a gaze dataset, or input=, videos: autogaze"),
        ([*GIVEN, "input=/videos"], "data= and input= are both given"),
        ([GIVEN[0], GIVEN[2]], "encoder.checkpoint= is missing"),
        (GIVEN[:2], "output= is missing"),
        ([*GIVEN, "threshold=0.1"], "threshold=0.1: is for input=; with data= the dataset has clips and gaze"),
        ([*GIVEN, "clip.frames=8"], "clip.frames=8: is for input="),
        ([*GIVEN[:2], "output=/data/gaze/features"], "lies inside data=/data/gaze; put it beside it"),
        (["input=/data", *GIVEN[1:]], "lies inside the input"),
        ([*GIVEN, "layers=last"], "layers=last: must be none, or with commas final and numbers, such as final,-2"),
        ([*GIVEN, "layers=none"], "layers=none with pooled=none: nothing would be stored"),
        ([*GIVEN, "store=float32"], "store=float32: must be one of float16, bfloat16"),
        ([*GIVEN, "encoder.scales=224,112"], "encoder.scales=224,112: must be pixels joined by +"),
        ([*GIVEN, "batch=0"], "batch=0: must be at least 1"),
        ([*GIVEN, "encoder.layers=-2"], "encoder.layers"),
        ([*GIVEN, "part=3/3"], "part=3/3: must be plan, or K/N"),
    ],
)
def test_settings_that_cannot_work(capsys: pytest.CaptureFixture[str], settings: list[str], told: str) -> None:
    refused(capsys, ["encode", *settings], told)


def test_places_that_cannot_work(capsys: pytest.CaptureFixture[str], encoded: Encoded, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "file").write_text("")
    data, encoder, output = encoded.settings[0], encoded.settings[1], f"output={tmp_path / 'out'}"
    half = tmp_path / "half"
    shutil.copytree(encoded.gaze, half, ignore=shutil.ignore_patterns("shards", "index"))
    for words, told in (
        ([data, f"encoder.checkpoint={tmp_path / 'bert'}", output], "'bert', which has no vision tower known here"),
        ([f"data={encoded.output}", encoder, output], "holds features of an encoder, and no gaze; give the gaze"),
        ([f"data={tmp_path / 'bert'}", encoder, output], "no dataset here (no dataset.json)"),
        ([f"data={half}", encoder, output], "0 of its 4 shards are committed; finish it with autogaze preprocess"),
        ([data, encoder, f"output={tmp_path / 'file' / 'out'}"], "a part of this path is a file"),
        ([data, encoder, f"output={encoded.gaze}2/../gaze"], "lies inside data="),
        ([data, encoder, output, "layers=7"], "layers=7: this encoder has 2 layers: 0 (embeddings) to 2"),
    ):
        refused(capsys, ["encode", *words], told)
    refused(capsys, ["preprocess", "input=/x", f"output={encoded.output}"], "is a dataset of features, not of gaze")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_layers_are_named_by_what_they_are() -> None:
    assert layer_names("final,-2,0", 12) == ["final", "hidden_11", "hidden_0"] and layer_names("none", 12) == []
    assert layer_names(" final, 12", 12) == ["final", "hidden_12"]
    for layers, told in (("13", "12 layers"), ("-14", "12 layers"), ("-2,11", "names a layer twice")):
        with pytest.raises(PipelineError, match=told):
            layer_names(layers, 12)


def test_workers_share_cpus_and_gpus() -> None:
    def share(*settings: str, cpus: int = 8, gpus: int = 0):
        return share_encode_workers(load(EncodeConfig, list(settings)), cpus, gpus)

    assert share().actors == {"decode": 1, "features": 8} and share().device == "cpu"
    on_gpus = share(gpus=2)
    assert on_gpus.actors == {"decode": 8, "features": 2} and (on_gpus.device, on_gpus.gpus) == ("cuda", 1.0)
    assert share("workers.gpus=0.5", gpus=2).encode == 4
    for settings, gpus, told in (
        (["workers.encode=20"], 0, "workers.decode=1 and workers.encode=20 need 16 CPUs"),
        (["workers.encode=5", "workers.gpus=0.5"], 2, "need 6 CPUs and 2.5 GPUs"),
        (["device=cuda"], 0, "this cluster has no GPU"),
    ):
        with pytest.raises(PipelineError, match=told):
            share(*settings, gpus=gpus)


def test_other_jobs_refuse_features_or_show_them(
    capsys: pytest.CaptureFixture[str], encoded: Encoded, tmp_path: Path
) -> None:
    refused(capsys, ["evaluate", str(encoded.output)], "holds features of an encoder, and no gaze")
    refused(capsys, ["verify", str(encoded.output), "deep=true"], "holds features of an encoder, and no gaze")
    page = tmp_path / "page.html"
    assert main(["report", str(encoded.output), f"output={page}"]) == 0
    text = page.read_text()
    tokens = sum(row["tokens"] for row in rows_of(encoded))
    for part in (f'data-stat="tokens" data-value="{tokens:.0f}"', "final: 16 numbers a token", "unreadable", "SigLIP"):
        assert part in text
    refused(capsys, ["report", str(encoded.output), encoded.settings[1]], "is for the report of a gaze dataset")


def rows_of(encoded: Encoded) -> list[dict]:
    from pipelines.dataset.features import open_features

    return open_features(str(encoded.output)).index().query("outcome == 'ok'").to_dict("records")


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(encoded: Encoded, tmp_path: Path) -> None:
    done = runs.plainly("encode", *encoded.settings, f"output={tmp_path / 'out'}", "--dry-run")
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr
    for said in ("6 planned, of them 5 to encode, 20 frames", "4 planned, 4 to make", "64 bytes: final, hidden_1"):
        assert said in done.stdout


def test_a_submission_carries_the_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("{backend: slurm, slurm: {array: 3}}")
    words = ["submit", "encode", *GIVEN, "layers=final,-2", f"cluster={tmp_path / 's.yaml'}", "--dry-run"]
    assert main(words) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-2" in script and "encoder.checkpoint=org/name" in script and "layers=final,-2" in script
    assert load(EncodeCommand, [*GIVEN, "ray.cpus=3"]).ray.cpus == 3
