"""verify deep=true finds frames that are wrong though every hash is right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from jobs.verify import VerifyConfig, run
from pipelines.corpus.clips import PlannedClip, decode_planned
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.scan import probe_object
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import Outcome, build_shard, commit_shard
from pipelines.inspection.deep import verify_deep
from pipelines.storage import store
from pipelines.storage.location import Entry, Location
from pipelines.video.base import DecodeConfig, Source
from pipelines.video.isolated import IsolatedDecoder
from tests.support.plain_plan import make_plan, plan_bytes
from tests.support.training import T, short_gaze
from tests.support.videos import write_video


def made(folder: Path, storage: str, wrong: str = "") -> str:
    """What preprocess would leave of two videos. wrong: black | late (one frame off), of one video's second clip."""
    with IsolatedDecoder(DecodeConfig()) as decoder:
        rows = []
        for name in ("a", "b"):
            path = write_video(folder / "videos" / f"{name}.mp4", frames=2 * T, seed=ord(name))
            entry = Entry(Location(str(path)), path.stat().st_size, "1")
            rows += probe_object(entry, decoder)
        plan = make_plan(pd.DataFrame(rows), str(folder / "videos"), ClipConfig(T), 4)
        done = []
        for number, row in enumerate(plan.to_dict("records")):
            frames = np.zeros((1, T, 224, 224, 3), np.uint8)
            clip = PlannedClip.of_row(row)
            if number == 3 and wrong == "late":
                clip = clip._replace(start=clip.start - 1)
            assert not decode_planned(decoder, Source(row["object"]), [clip], frames)
            if number == 3 and wrong == "black":
                frames[...] = 0
            done.append(Outcome(short_gaze(number), encode_frames(frames[0], storage, 90)))
    url = str(folder / "gaze")
    store.publish(plan_bytes(plan), f"{url}/plan.parquet")
    commit_shard(url, 0, *build_shard(plan, done, 0.05))
    config = {"clip": {"frames": T}, "frames": storage, "jpeg_quality": 90, "decoder": "pyav", "threshold": 0.05}
    about = {"config": config, "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(), "shards": 1}
    store.publish(json.dumps(about).encode(), f"{url}/dataset.json")
    return url


@pytest.mark.parametrize("storage", ["jpeg", pytest.param("raw", marks=pytest.mark.slow), "none"])
def test_right_frames_are_told_to_be_right(tmp_path: Path, storage: str) -> None:
    verdict = verify_deep(made(tmp_path, storage), threads=1)
    assert (verdict.problems, verdict.videos, verdict.skipped.total()) == ([], 2, 0)
    assert 2 <= verdict.clips <= 4


@pytest.mark.parametrize(("storage", "wrong"), [("jpeg", "black"), ("raw", "late")])
def test_wrong_frames_are_found(tmp_path: Path, storage: str, wrong: str) -> None:
    url = made(tmp_path, storage, wrong)
    console = Console(record=True, width=200)
    assert run(VerifyConfig(url, threads=1), console) == 0  # every hash is right
    assert run(VerifyConfig(url, threads=1, deep=True), console) == 1
    text = console.export_text()
    assert "frames are not those of its video" in text and "decoded a second way: 1 problem" in text


def test_a_video_that_is_gone_is_told_and_no_problem(tmp_path: Path) -> None:
    url = made(tmp_path, "jpeg")
    (tmp_path / "videos" / "a.mp4").unlink()
    verdict = verify_deep(url, threads=1)
    assert (verdict.problems, verdict.videos, dict(verdict.skipped)) == ([], 1, {"missing": 1})
