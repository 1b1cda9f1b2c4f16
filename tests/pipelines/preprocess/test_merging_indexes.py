"""A job merges indexes while it runs and at its end, and takes shards back from merged ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.dataset import indexes, shards
from pipelines.dataset.indexes import INDEX_SCHEMA
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import Job
from pipelines.preprocess.merging import IndexMerger
from pipelines.preprocess.shard_job import finish_dataset, prepare_output
from pipelines.storage import tables
from tests.support import runs, training


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "BLOCK", 3)


def names(output: Path) -> list[str]:
    return sorted(path.stem for path in (output / "index").iterdir())


def job_of(url: str, missing: list[int], **settings: Any) -> Job:
    config = PreprocessConfig(input="/v", output=url, **settings)
    gazer: Any = SimpleNamespace()
    dataset = shards.open_dataset(url)
    return Job(config, dataset.url, dataset.plan, missing, gazer)


def test_a_thousand_is_merged_when_its_last_shard_is_committed(tmp_path: Path) -> None:
    url = training.write_dataset(tmp_path / "gaze", clips=32)  # 8 shards
    held = tmp_path / "000004.parquet"
    shutil.move(shards.index_url(url, 4), held)
    with IndexMerger(job_of(url, [1, 4, 2])) as merger:
        merger.committed(1)
        merger.committed(2)
        merger._thread.submit(lambda: None).result()
        assert names(tmp_path / "gaze") == ["000000-000002", "000003", "000005", "000006", "000007"]
        shutil.move(held, shards.index_url(url, 4))
        merger.committed(4)
    assert names(tmp_path / "gaze") == ["000000-000002", "000003-000005", "000006", "000007"]


def test_a_part_leaves_thousands_that_it_shares_until_all_are_done(tmp_path: Path) -> None:
    url = training.write_dataset(tmp_path / "gaze", clips=32)
    held = tmp_path / "000007.parquet"
    shutil.move(shards.index_url(url, 7), held)
    finish_dataset(job_of(url, [], part="0/2"))  # shards 0 to 3
    assert names(tmp_path / "gaze")[:2] == ["000000-000002", "000003"]
    shutil.move(held, shards.index_url(url, 7))
    finish_dataset(job_of(url, [], part="1/2"))
    assert names(tmp_path / "gaze") == ["000000-000002", "000003-000005", "000006", "000007"]


def test_what_failed_is_taken_back_from_a_merged_index(tmp_path: Path) -> None:
    url = training.write_dataset(tmp_path / "gaze", clips=32)
    index = shards.read_index(url, 1).to_pandas()
    index.loc[2, ["outcome", "reason"]] = ["failed", "missing"]
    Path(shards.index_url(url, 1)).write_bytes(tables.to_bytes(index, INDEX_SCHEMA))
    finish_dataset(job_of(url, []))
    assert names(tmp_path / "gaze")[0] == "000000-000002"
    job = job_of(url, [], retry="failed")
    prepare_output(job.config, job)
    assert shards.committed_shards(url) == [0, 2, 3, 4, 5, 6, 7]
    assert not (tmp_path / "gaze/shards/000001.tar").exists()


def test_a_finished_job_that_is_run_again_merges_what_was_left(undisturbed: runs.Run, tmp_path: Path) -> None:
    output = tmp_path / "gaze"
    shutil.copytree(undisturbed.output, output)
    count = len(names(output))
    done = runs.plainly("preprocess", *undisturbed.settings, f"output={output}")
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert names(output)[0] == "000000-000002" and len(names(output)) == count // 3 + count % 3
    assert shards.open_dataset(str(output)).index().equals(shards.open_dataset(str(undisturbed.output)).index())
