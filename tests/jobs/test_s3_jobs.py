"""Every job with its places on s3://, through a server that refuses each seventh request with 503 SlowDown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from tests.support import s3_servers, training
from tests.support.s3_servers import BUCKET, Proxy, Rclone

PLACE = f"s3://{BUCKET}"


def slow_down(request: s3_servers.Request) -> bool:
    return request.refuse(503, "SlowDown", "Please reduce your request rate.")


@pytest.mark.slow
def test_every_job_reads_and_writes_s3_and_credentials_go_nowhere(
    s3_server: Rclone,
    s3_proxy: Proxy,
    gazed_dataset: Callable[..., str],
    make_video: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    served = s3_server.folder / BUCKET
    gazed_dataset(served / "gaze")
    shutil.copytree(training.write_dataset(tmp_path / "clips"), served / "clips")
    video = make_video(served / "videos" / "one.mp4", frames=6)
    s3_proxy.fault = s3_servers.every(7, slow_down)
    for words in (
        ["verify", f"{PLACE}/gaze"],
        ["report", f"{PLACE}/gaze", f"output={PLACE}/report.html", "clips=2"],
        ["evaluate", f"{PLACE}/gaze", f"output={PLACE}/evaluate", "clips=2", "ratios=0.01"],
        ["export-labels", f"{PLACE}/gaze", f"output={PLACE}/labels.json"],
        ["import-labels", f"{PLACE}/labels.json", f"data={PLACE}/gaze", f"output={PLACE}/labelled"],
        ["gaze", f"{PLACE}/videos/{video.name}", f"output={tmp_path / 'seen'}", "clip.frames=2"],
        ["train", "policy", *training.settings(f"{PLACE}/clips", Path("run"), f"run={PLACE}/run", "epochs=0.5")],
        ["audit", f"{PLACE}/run"],
    ):
        status = main(words)
        printed = "".join(capfd.readouterr())
        assert status == 0, (words, printed)
        assert s3_servers.SECRET not in printed
    assert s3_proxy.counts.total() > 70, "there were requests to refuse"
    made = {path.relative_to(served).parts[0] for path in served.rglob("*") if path.is_file()}
    assert made >= {"report.html", "evaluate", "labels.json", "labelled", "run"}
    written = [path for folder in (served, tmp_path / "seen") for path in folder.rglob("*") if path.is_file()]
    assert not any(s3_servers.SECRET.encode() in path.read_bytes() for path in written)


def test_a_place_that_does_not_exist_is_one_line_before_any_work(
    s3_server: Rclone, gazed_dataset: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    gazed_dataset(s3_server.folder / BUCKET / "gaze")
    for words in (
        ["scan", "s3://nowhere/videos", f"output={PLACE}/manifest.parquet"],
        ["preprocess", "input=s3://nowhere/videos", f"output={PLACE}/out"],
        ["preprocess", f"input={PLACE}/gaze", "output=s3://nowhere/out"],
        ["verify", "s3://nowhere/gaze"],
        ["report", f"{PLACE}/gaze", "output=s3://nowhere/report.html"],
        ["evaluate", f"{PLACE}/gaze", "output=s3://nowhere/out", "clips=1"],
        ["export-labels", f"{PLACE}/gaze", "output=s3://nowhere/labels.json"],
        ["train", "policy", *training.settings("s3://nowhere/clips", Path("r"), f"run={PLACE}/run")],
        ["audit", "s3://nowhere/run"],
    ):
        assert main(words) == 2, words
        told = capsys.readouterr().err
        assert "the bucket nowhere at http://127.0.0.1" in told and "does not exist" in told, (words, told)
        assert told.count("\n") == 1, told
    assert {path.name for path in (s3_server.folder / BUCKET).iterdir()} == {"gaze"}, "nothing was begun"
