"""Videos that share the last three parts of their paths: labels of such a dataset go out and in by whole paths."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from jobs.labels import ExportConfig, ImportConfig, export, import_
from pipelines.dataset import shards
from pipelines.dataset.shards import INDEX_SCHEMA
from pipelines.errors import PipelineError
from pipelines.storage import tables

RENAMED = {
    "/data/corpus/train/v0.mp4": "/x/corpus/train/v.mp4",
    "/data/corpus/train/v1.mp4": "s3://y/corpus/train/v.mp4",
}
QUIET = Console(file=io.StringIO())


@pytest.fixture
def dataset(gazed_dataset: Callable[..., str], tmp_path: Path) -> str:
    """Two videos of two clips with one label key, and one with its own."""
    url = gazed_dataset(tmp_path / "gaze", videos=3, failing=(), storage="jpeg")
    for shard in shards.committed_shards(url):
        index = shards.read_index(url, shard).to_pandas().replace({"video": RENAMED})
        Path(shards.index_url(url, shard)).write_bytes(tables.to_bytes(index, INDEX_SCHEMA))
    plan = pd.read_parquet(f"{url}/plan.parquet").replace({"video": RENAMED})
    plan.to_parquet(f"{url}/plan.parquet")
    return url


def test_labels_by_whole_paths_come_back_as_the_same_gaze(dataset: str, tmp_path: Path) -> None:
    file = str(tmp_path / "labels.json")
    with pytest.raises(PipelineError, match="keys=full writes whole paths"):
        export(ExportConfig(data=dataset, output=file), QUIET)
    assert export(ExportConfig(data=dataset, output=file, keys="full"), QUIET) == 0
    keys = {f"{video}{start}" for video in (*RENAMED.values(), "/data/corpus/train/v2.mp4") for start in ("", "#3")}
    assert set(json.loads(Path(file).read_text())) == keys
    assert import_(ImportConfig(labels=file, data=dataset, output=str(tmp_path / "new")), QUIET) == 0
    old, new = (shards.open_dataset(url).index() for url in (dataset, str(tmp_path / "new")))
    columns = ["clip", "video", "outcome", "tokens", "loss", "met"]
    pd.testing.assert_frame_equal(new[columns], old[columns])


def test_a_short_key_of_two_videos_is_refused_and_others_are_read(dataset: str, tmp_path: Path) -> None:
    label = {"gazing_pos": [[0, 4], [265], [599]], "task_losses": [[0.2, 0.1], [0.09], [0.01]]}
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"corpus/train/v2.mp4": label, "corpus/train/v.mp4#3": label}))
    with pytest.raises(PipelineError, match=r"v\.mp4#3: is a label of /x/corpus/train/v\.mp4 and of s3://y/"):
        import_(ImportConfig(labels=str(file), data=dataset, output=str(tmp_path / "new")), QUIET)
    file.write_text(json.dumps({"corpus/train/v2.mp4": label, "s3://y/corpus/train/v.mp4#3": label}))
    assert import_(ImportConfig(labels=str(file), data=dataset, output=str(tmp_path / "new")), QUIET) == 0
    index = shards.open_dataset(str(tmp_path / "new")).index()
    labelled = index[index["outcome"] == "ok"]
    named = set(zip(labelled["video"], labelled["start"], strict=True))
    assert named == {("/data/corpus/train/v2.mp4", 0), ("s3://y/corpus/train/v.mp4", 3)}
