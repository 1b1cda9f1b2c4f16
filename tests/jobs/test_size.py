"""`autogaze size`: what it prints of a described corpus and of a manifest, and one line for what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.scan import probe_object
from pipelines.sizing import measure
from pipelines.sizing.rates import read_rates, write_rates
from pipelines.storage.location import Entry, Location
from pipelines.video.isolated import IsolatedDecoder
from tests.pipelines.sizing.test_rates import RATES
from tests.support.videos import write_video


@pytest.fixture
def rates(tmp_path: Path) -> str:
    file = str(tmp_path / "rates.json")
    write_rates(RATES, file)
    return file


def test_a_described_corpus_is_sized_by_rates_of_another_machine(rates: str, capsys: pytest.CaptureFixture) -> None:
    words = ["size", "hours=50", "minutes=0.64", f"rates={rates}", "nodes=2", "cores=8", "days=0.02", "shard.clips=120"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "2 nodes of 8 cores" in printed and "in 0.02 days" in printed
    assert cli.main([*words, "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["job"]["clips"] == 4_688 * 60 and found["cluster"]["nodes"] == 2
    assert found["prediction"]["clips_per_s"] == pytest.approx(4_688 * 60 / found["prediction"]["seconds"])
    assert found["moved"]["stored"]["jpeg"] == pytest.approx(4_688 * 60 * 3e5)
    nodes = found["deadline"]["nodes"]
    assert cli.main([*words, "format=json", "nodes=0"]) == 0
    sized = json.loads(capsys.readouterr().out)
    assert sized["cluster"]["nodes"] == nodes and sized["prediction"]["seconds"] <= 1728


def test_a_manifest_is_measured_on_its_own_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once and kept; the file then serves a larger cluster, and frames stored otherwise."""
    monkeypatch.setattr(measure, "CLIPS", 3)
    monkeypatch.setattr(measure, "_ROUNDS", 1)
    monkeypatch.setattr(measure, "_LEAST", 2)
    rows = []
    with IsolatedDecoder() as decoder:
        for number in range(2):
            video = write_video(tmp_path / f"videos/{number}.mp4", frames=40, size=(64, 48), seed=number)
            rows += probe_object(Entry(Location(str(video)), video.stat().st_size, "1"), decoder)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "manifest.parquet")
    words = ["size", f"input={tmp_path}/manifest.parquet", f"rates={tmp_path}/own.json", "measure_s=0.01", "cores=2"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "6 in 1 shard" in printed and "all 6 clips, one by one" in printed and "fetched" not in printed
    measured = read_rates(f"{tmp_path}/own.json")
    assert (
        measured is not None
        and measured.search > 0
        and max(measured.decode.frame, measured.decode.video, measured.decode.megapixel) > 0
    )
    assert measured.stored["raw"] > measured.stored["jpeg"] > measured.stored["none"] > 0
    assert cli.main([*words, "frames=none", "nodes=3", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"]["actors"] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "input= is missing: autogaze size input=manifest.parquet nodes=4 cores=64 days=7, or hours=1000"),
        (["input=m.parquet", "hours=1"], "input= and hours= are both given: give one of them"),
        (["hours=1", "nodes=0"], "nodes=0: asks how many nodes keep a deadline; give days="),
        (["hours=1", "resolution=720p"], "resolution=720p: must be width x height, both even, such as 1280x720"),
        (["hours=1", "codec=mpeg"], "codec=mpeg: must be one of h264, hevc, vp9, av1"),
        (["hours=1", "device=cuda"], "device=cuda: this cluster has no GPU; use device=cpu"),
        (["hours=1", "cores=2", "workers.decode=9"], "workers.decode=9 and workers.gaze=1 need 8 CPUs"),
        (["hours=1", "noddes=4"], "noddes: no such key; did you mean nodes?"),
        (["input=/nowhere/manifest.parquet"], "input=/nowhere/manifest.parquet: no such manifest, nor a dataset; of"),
        (["hours=100000", "days=0.0001", "nodes=0"], "days=0.0001: 10,000 nodes take longer; give more days"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], line: str, rates: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["size", f"rates={rates}", *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_rates_of_a_gpu_cannot_be_measured_without_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["size", "hours=1", "gpus=8", f"rates={tmp_path}/new.json"]) == 2
    assert "device=cuda: this machine has none to measure; give rates= a file" in capsys.readouterr().err


def test_rates_of_a_gpu_are_read_without_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_rates(replace(RATES, device="cuda"), f"{tmp_path}/gpu.json")
    assert cli.main(["size", "hours=10", "gpus=8", "cores=64", f"rates={tmp_path}/gpu.json"]) == 0
    assert "1 node of 64 cores and 8 GPUs" in capsys.readouterr().out
