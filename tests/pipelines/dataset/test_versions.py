"""A dataset that has grown: runs read the version they began with, new ones the newest that is whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text

from jobs.report import build
from jobs.status import shown
from pipelines.dataset import indexes, shards
from pipelines.dataset.indexes import INDEX_SCHEMA
from pipelines.dataset.merging import merge_indexes
from pipelines.errors import PipelineError
from pipelines.inspection.dataset_status import DatasetStatus
from pipelines.inspection.status import read_status
from pipelines.inspection.verify import verify
from pipelines.loading.config import LoaderConfig, ReadConfig
from pipelines.loading.loader import ShardLoader
from pipelines.loading.samples import open_samples
from pipelines.storage.location import Location
from pipelines.train.config import PolicyTrainConfig
from pipelines.train.data_versions import with_data_versions
from pipelines.train.identity import data_fingerprint
from tests.support import training


@pytest.fixture
def grown(tmp_path: Path) -> str:
    """Version 1 has 3 shards, version 2 has 5, of four clips each."""
    url = training.write_dataset(tmp_path / "gaze", clips=20)
    place = tmp_path / "gaze" / "dataset.json"
    about = json.loads(place.read_text())
    about["versions"] = [{"shards": n, "clips": 4 * n, "videos": 2 * n} for n in (3, 5)]
    place.write_text(json.dumps(about))
    return url


def loader(url: str, *versions: int) -> ShardLoader:
    return ShardLoader(LoaderConfig(data=[url], versions=[*versions], global_batch=4, workers=0), epochs=1)


def test_a_version_is_what_the_dataset_was(grown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = training.write_dataset(tmp_path / "before", clips=12)
    old, first = loader(before), loader(grown, 1)
    assert first.samples == 12 and loader(grown, 2).samples == loader(grown).samples == 20
    assert first.fingerprint == old.fingerprint != loader(grown).fingerprint
    assert first.row_fingerprint() == old.row_fingerprint()
    assert [batch.keys for batch in first] == [batch.keys for batch in old]
    monkeypatch.setattr(indexes, "BLOCK", 2)
    merge_indexes(Location(grown), INDEX_SCHEMA, range(5))  # shards 2 and 3 are of both versions
    assert loader(grown, 1).fingerprint == old.fingerprint
    with pytest.raises(PipelineError, match="has no version 3; its newest is 2"):
        loader(grown, 3)


def test_a_run_keeps_to_its_version_and_a_new_one_takes_the_newest_whole(grown: str, tmp_path: Path) -> None:
    old = PolicyTrainConfig(data=grown, run=str(tmp_path / "old"), loader=ReadConfig())
    begun = ShardLoader(old.loader_config)  # before the dataset grew
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.yaml").write_text(f"config: {{}}\ndata_fingerprint: {begun.row_fingerprint()}\n")
    config, notes = with_data_versions(old)
    assert config == old and ShardLoader(config.loader_config).samples == 12
    assert data_fingerprint(config, ShardLoader(config.loader_config)) == begun.row_fingerprint()
    [note] = notes
    assert "version 1 is read (3 shards, 12 clips); the newest is 2 (5 shards, 20 clips)" in note

    new = replace(old, run=str(tmp_path / "new"))
    config, notes = with_data_versions(new)
    assert config.data_versions == "2" and notes == [] and ShardLoader(config.loader_config).samples == 20
    assert with_data_versions(replace(new, data_versions="1"))[0].data_versions == ""
    assert with_data_versions(replace(old, data_versions="1"))[0] == old
    with pytest.raises(PipelineError, match="was begun with data_versions=1, not 2; leave it out"):
        with_data_versions(replace(old, data_versions="2"))
    shards.uncommit_shards(grown, [4])
    config, notes = with_data_versions(new)
    assert config.data_versions == "" and len(notes) == 1, "while it grows, the version before is the newest whole one"
    assert open_samples(grown).shards == 3
    with pytest.raises(PipelineError, match="4 of its 5 shards are committed; finish it with autogaze preprocess"):
        open_samples(grown, version=2)


def test_a_version_is_verified_by_itself(grown: str) -> None:
    newest = verify(grown)
    assert newest.problems == [] and newest.version is not None and newest.version.number == 2
    shards.uncommit_shards(grown, [4])
    assert verify(grown).problems == ["shard 4: not committed (4 clips missing)"]
    first = verify(grown, version=1)
    assert first.problems == [] and first.clips == 12
    with pytest.raises(PipelineError, match="has no version 3"):
        verify(grown, version=3)


def test_status_says_which_version_is_there_and_which_is_whole(grown: str) -> None:
    status = read_status(grown)
    assert isinstance(status, DatasetStatus) and (status.version, status.whole_version) == (2, 2)
    assert Text("2") in shown(status).columns[1].cells
    shards.uncommit_shards(grown, [4])
    assert Text("2; the newest whole one is 1") in shown(read_status(grown)).columns[1].cells


def test_a_report_names_the_versions(grown: str) -> None:
    page = build(shards.open_dataset(grown), clips=0)
    assert "Version 2: 5 shards. Before: 1 (3 shards)." in page and "&#39;shards&#39;" not in page
