"""What `autogaze gaze` and `report` show of a verified gaze: measured errors, and where the patches come from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from autogaze.patches import VOCABULARY
from jobs import gaze, report
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset.shards import open_dataset
from pipelines.gazing.policy import PolicyConfig
from tests.support import places, runs

CHECKPOINT = places.GOLDEN / "autogaze_small_k4"


@pytest.mark.parametrize("tiles", ["whole", "native"])
def test_gaze_shows_what_was_measured(make_video: Callable[..., Path], tmp_path: Path, tiles: str) -> None:
    video = make_video(tmp_path / "v.mp4", frames=4, size=(224, 224))
    told = io.StringIO()
    config = gaze.GazeConfig(
        str(video),
        str(tmp_path / "out"),
        gaze="policy",
        policy=PolicyConfig(str(CHECKPOINT)),
        verify=True,
        threshold=0.06,
        device="cpu",
        clip=ClipConfig(frames=2, tiles=tiles),
    )
    gaze.run(config, Console(file=told, width=200))
    labels = json.loads((tmp_path / "out" / "gaze.json").read_text())
    assert len(labels) == 2
    by_origin = [0, 0, 0]
    for label in labels.values():
        assert (label["measured"], label["verify"], label["met"]) == (True, True, [True, True])
        assert [sum(frame) for frame in label["origins"]] == [len(ids) for ids in label["gazing_pos"]]
        by_origin = [sum(part) for part in zip(by_origin, *label["origins"], strict=True)]
    text = told.getvalue()
    assert "100.0% of frames at or under" in text or "100.0% of frames of tiles at or under" in text
    assert "verified by canvas" in text
    prefix, continuation, greedy = by_origin
    assert (
        f"verified {prefix:,} patches by the policy, {continuation:,} after it would have stopped, "
        f"{greedy:,} by greedy search" in text
    )


def test_what_a_policy_predicts_is_called_predicted(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", frames=1, size=(64, 48))
    told = io.StringIO()
    config = gaze.GazeConfig(
        str(video), str(tmp_path / "out"), gaze="policy", policy=PolicyConfig(str(CHECKPOINT)), max_ratio=0.02
    )
    config.threshold = 0.7
    gaze.run(config, Console(file=told, width=200))
    (label,) = json.loads((tmp_path / "out" / "gaze.json").read_text()).values()
    assert label["measured"] is False
    assert "origins" not in label
    assert "of frames predicted to be at or under the threshold" in told.getvalue()


def test_the_report_shows_where_patches_come_from(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video(tmp_path / "videos" / "v.mp4", frames=3, size=(64, 48))
    done = runs.plainly(
        "preprocess",
        *[f"input={tmp_path / 'videos'}", f"output={tmp_path / 'ds'}", "clip.frames=2", "clip.per_video=1"],
        *["gaze=policy", f"policy.checkpoint={CHECKPOINT}", "verify=true", "threshold=0.06"],
    )
    assert done.returncode == 0, done.stderr + done.stdout
    dataset = open_dataset(str(tmp_path / "ds"))
    gazed = dataset.read_gaze(dataset.index().iloc[0].to_dict())
    assert gazed.vocabulary == VOCABULARY
    assert gazed.origins is not None
    prefix, continuation, greedy = gazed.origins[0].sum(dim=0).tolist()
    page = " ".join(report.build(dataset).split())
    assert f"{prefix} by the policy, {continuation} after it would have stopped, {greedy} by greedy search" in page
    assert "met the threshold" in page
    assert "predicted" not in page.partition("<body")[2].partition("units")[0]
