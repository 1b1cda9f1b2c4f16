"""autogaze scan: what is refused before Ray is there."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cluster.local import RayConfig
from jobs.scan import ScanConfig, run
from pipelines.errors import PipelineError

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
