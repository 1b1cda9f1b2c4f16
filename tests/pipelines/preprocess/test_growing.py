"""A corpus that grows: new videos become new shards of the same dataset, and nothing of what is there is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.dataset import shards
from pipelines.dataset.versions import versions_of
from pipelines.errors import PipelineError
from pipelines.inspection.verify import verify
from pipelines.loading.samples import open_samples
from pipelines.preprocess import plan_corpus
from tests.support import runs

MakeVideo = Callable[..., Path]


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    for number in (2, 4):
        make_video(tmp_path / "videos" / f"{number}.mp4", frames=20, size=(64, 48), seed=number)
    return tmp_path / "videos"


def preprocess(videos: Path, output: Path, *words: str) -> str:
    done = runs.plainly("preprocess", f"input={videos}", f"output={output}", "shard.clips=2", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_new_videos_become_new_shards_after_those_that_are_there(
    videos: Path, tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "gaze"
    preprocess(videos, output)
    before, made = runs.tree(output), open_samples(str(output))
    for number in (1, 3):  # before and between the others, by name
        make_video(videos / f"{number}.mp4", frames=20, size=(64, 48), seed=number)
    told = preprocess(videos, output)
    assert "2 new, 0 changed, 0 gone" in told and "grow=true" in told and runs.tree(output) == before

    told = preprocess(videos, output, "grow=true", "--dry-run")
    assert "grows by 2 new videos, 4 clips in 2 new shards: version 2" in told and runs.tree(output) == before

    def dies(*_: object) -> None:
        raise PipelineError("killed before dataset.json")

    with monkeypatch.context() as patch:
        patch.setattr(plan_corpus, "publish_about", dies)
        assert runs.plainly(
            "preprocess", f"input={videos}", f"output={output}", "shard.clips=2", "grow=true"
        ).returncode
    assert {name: runs.tree(output)[name] for name in before} == before, "the dataset is what it was"
    assert verify(str(output)).problems == [] and "2 new" in preprocess(videos, output)

    told = preprocess(videos, output, "grow=true")
    after = runs.tree(output)
    untouched = {name: mark for name, mark in before.items() if name != "dataset.json"}
    assert {name: after[name] for name in untouched} == untouched
    about = json.loads((output / "dataset.json").read_text())
    assert [(one.shards, one.clips, one.videos) for one in versions_of(about, "")] == [(2, 4, 2), (4, 8, 4)]
    assert verify(str(output)).problems == []
    dataset = shards.open_dataset(str(output))
    assert [Path(video).stem for video in dataset.plan.uris()] == ["2", "4", "1", "3"]
    assert open_samples(str(output), version=1).table.equals(made.table) and open_samples(str(output)).shards == 4
    assert "nothing to do: all 4 shards" in preprocess(videos, output, "grow=true")


@pytest.mark.slow
def test_growing_in_two_steps_leaves_the_same_bytes(videos: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    """A job that only plans, then one that makes, as an array's do; and one that does both."""
    grown, other = tmp_path / "gaze", tmp_path / "other"
    for output in (grown, other):
        preprocess(videos, output)
    for number in (1, 3):
        make_video(videos / f"{number}.mp4", frames=20, size=(64, 48), seed=number)
    preprocess(videos, grown, "grow=true")
    assert "planned: 8 clips in 4 shards, 2 to make" in preprocess(videos, other, "grow=true", "part=plan")
    assert open_samples(str(other)).shards == 2, "while it grows, a new run takes the version before"
    preprocess(videos, other)
    assert runs.tree(other) == runs.tree(grown)


def test_a_manifest_that_has_more_videos_says_so(videos: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    manifest, output = tmp_path / "manifest.parquet", tmp_path / "gaze"

    def scan() -> None:
        assert runs.plainly("scan", videos, f"output={manifest}").returncode == 0

    scan()
    assert "changed" not in preprocess(manifest, output) and "changed" not in preprocess(manifest, output)
    make_video(videos / "3.mp4", frames=20, size=(64, 48), seed=3)
    (videos / "4.mp4").unlink()
    scan()
    told = preprocess(manifest, output)
    assert "(1 new, 0 changed, 1 gone)" in told and f"such as {videos}/3.mp4: grow=true makes new shards" in told
    assert "grows by 1 new videos" in preprocess(manifest, output, "grow=true")
