"""Features of a gaze dataset, or of a folder of videos, that has grown since they were begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset import shards
from pipelines.dataset.features import open_features
from pipelines.dataset.versions import versions_of
from pipelines.inspection.verify import verify
from pipelines.loading.samples import samples_of
from tests.pipelines.encode.conftest import preprocessed
from tests.pipelines.encode.test_encode import encode
from tests.support import runs
from tests.support.videos import write_video


def shard_count(features: Path) -> list[int]:
    dataset = open_features(str(features))
    return [version.shards for version in versions_of(dataset.about, dataset.url)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_video(tmp_path / "videos" / "2.mp4", frames=12, size=(64, 48), seed=2).parent


def add_video(videos: Path, number: int) -> None:
    write_video(videos / f"{number}.mp4", frames=8, size=(64, 48), seed=number)


@pytest.mark.slow
def test_features_grow_with_their_gaze_dataset(videos: Path, siglip: Path, tmp_path: Path) -> None:
    gaze, output = tmp_path / "gaze", tmp_path / "features"
    settings = (f"data={gaze}", f"encoder.checkpoint={siglip}")
    preprocessed(videos, gaze)
    encode(*settings, f"output={output}")
    before = runs.tree(output)
    shards.uncommit_shards(str(output), [1], open_features(str(output)).schema)  # as if the job had been killed
    for number in (1, 3):
        add_video(videos, number)
        preprocessed(videos, gaze, "grow=true")

    told = encode(*settings, f"output={output}")
    assert "has grown by 2 shards; grow=true makes new shards of them" in told
    assert runs.tree(output) == before, "a job that goes on makes the version it was begun with"
    told = encode(*settings, f"output={output}", "grow=true", "part=0/2")
    assert "part=0/2 makes what is planned; part=plan grow=true" in told and runs.tree(output) == before
    told = encode(*settings, f"output={output}", "grow=true", "--dry-run")
    assert "grow by 4 clips in 2 new shards: version 3" in told and runs.tree(output) == before

    encode(*settings, f"output={output}", "grow=true")
    after = runs.tree(output)
    assert {name: after[name] for name in before if name != "dataset.json"}.items() <= before.items()
    assert verify(str(output)).problems == [] and shard_count(output) == [2, 3, 4]
    assert samples_of(open_features(str(output)), version=1).shards == 2
    encode(*settings, f"output={tmp_path / 'anew'}")
    assert runs.tree(tmp_path / "anew") == after, "as those of the grown dataset made at once"
    assert "nothing to do: all 4 shards" in encode(*settings, f"output={output}", "grow=true")


@pytest.mark.slow
def test_a_gaze_dataset_that_is_growing_is_encoded_up_to_its_newest_whole_version(
    videos: Path, siglip: Path, tmp_path: Path
) -> None:
    gaze, output = tmp_path / "gaze", tmp_path / "features"
    settings = (f"data={gaze}", f"encoder.checkpoint={siglip}", f"output={output}")
    preprocessed(videos, gaze)
    add_video(videos, 1)
    preprocessed(videos, gaze, "grow=true", "part=plan")
    assert "3 ok" in encode(*settings) and shard_count(output) == [2]
    preprocessed(videos, gaze)
    assert "2 ok" in encode(*settings, "grow=true") and shard_count(output) == [2, 3]


@pytest.mark.slow
def test_features_of_videos_grow_with_these(videos: Path, siglip: Path, tmp_path: Path) -> None:
    output = tmp_path / "features"
    settings = (f"input={videos}", "clip.frames=4", "shard.clips=2", f"encoder.checkpoint={siglip}", f"output={output}")
    encode(*settings)
    add_video(videos, 1)
    assert "1 new" in encode(*settings)
    assert "grows by 1 new videos, 2 clips in 1 new shards" in encode(*settings, "grow=true")
    assert verify(str(output)).problems == [] and shard_count(output) == [2, 3]
