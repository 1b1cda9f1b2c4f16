"""autogaze scan: what is refused before Ray is there, what it says, and that it goes on after an interruption."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from cluster.local import RayConfig
from jobs import scan as job
from jobs.scan import ScanConfig, run
from pipelines.corpus import scan as scans
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.errors import PipelineError
from pipelines.storage.location import Entry
from pipelines.video.base import DecodeConfig
from pipelines.video.isolated import IsolatedDecoder

NO_RAY = RayConfig(address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input": ""}, "input= is missing"),
        ({"input": "/does/not/exist"}, "does not exist"),
        ({"output": "{folder}/file/m.parquet"}, "a part of this path is a file"),
        ({"output": "/proc/m.parquet"}, "/proc: no such place"),
        ({"decoder_timeout_s": float("inf")}, "decoder_timeout_s=inf: must be more than 0, and at most 86400"),
    ],
)
def test_what_cannot_end_well_is_refused_at_once(
    make_video: Callable[..., Path], tmp_path: Path, changes: dict, told: str
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=2)
    (tmp_path / "file").write_bytes(b"")
    config = {"input": str(video), "output": str(tmp_path / "m.parquet")} | changes
    config["output"] = config["output"].format(folder=tmp_path)
    with pytest.raises(PipelineError) as error:
        run(ScanConfig(**config, ray=NO_RAY), Console(file=io.StringIO()))
    assert told in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "v.mp4"]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scans run in this process; Ctrl-C comes after as many objects as the list's only number says."""
    stop: list[int] = []

    @contextmanager
    def running(_: object) -> Iterator[None]:
        yield

    def probe_all(entries: list[Entry], timeout_s: float) -> Iterator[tuple[int, pa.Table]]:
        with IsolatedDecoder(DecodeConfig(timeout_s=timeout_s)) as decoder:
            for number, entry in enumerate(entries):
                if stop == [number]:
                    raise KeyboardInterrupt
                yield 1, pa.Table.from_pylist(scans.probe_object(entry, decoder), MANIFEST_SCHEMA)

    monkeypatch.setattr(job, "running", running)
    monkeypatch.setattr(scans, "_probe_all", probe_all)
    return stop


def scanned(source: Path, output: Path) -> str:
    """Run the job; what it printed."""
    console = Console(file=io.StringIO(), width=80)
    try:
        assert run(ScanConfig(input=str(source), output=str(output)), console) == 0
    except KeyboardInterrupt:
        console.print("stopped")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_scan_tells_what_it_passed_over_and_goes_on_after_ctrl_c(
    make_video: Callable[..., Path], tmp_path: Path, without_ray: list[int]
) -> None:
    videos, output = tmp_path / "v", tmp_path / "m.parquet"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(videos / name, frames=2, size=(64, 48))
    for name in ("a.json", "b.json", "x.tar.gz", ".DS_Store"):
        (videos / name).touch()
    without_ray.append(2)
    told = scanned(videos, output)
    assert "scanning 3 of 3 files\nscanned 2 of 3 files; the same command goes on from there\nstopped" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet.scan", "v"]
    without_ray.clear()
    told = scanned(videos, output)
    assert "scanning 1 of 3 files (2 are known from an earlier scan)" in told
    assert "3 videos: 3 ok, 0 failed; 6 frames" in told
    assert "passed over: 4\n  2 other files: 2 .json\n  1 compressed" in told and "1 hidden names (such as" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "v"]
    assert "scanning" not in scanned(videos, output) and len(pd.read_parquet(output)) == 3
    with pytest.raises(PipelineError, match="is a manifest already; give it to preprocess"):
        scanned(output, tmp_path / "other.parquet")
