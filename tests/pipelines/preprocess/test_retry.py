"""retry=failed takes back the shards in which another try can help, and no others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.dataset import shards
from pipelines.dataset.shards import INDEX_SCHEMA
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import Job
from pipelines.preprocess.shard_job import hopeless_clips, prepare_output
from pipelines.storage import tables
from tests.support import training
from tests.support.plain_plan import plan_bytes


@pytest.mark.parametrize(
    ("failed", "planned", "taken_back"),
    [
        ({0: "missing"}, {}, [0]),
        ({0: "bad_name", 1: "no_video_stream"}, {0: "bad_name", 1: "no_video_stream"}, []),
        ({1: "too_short", 4: "decoder_timeout"}, {1: "too_short"}, [1]),
        ({1: "unreadable", 2: "missing"}, {1: "unreadable"}, [0]),
        ({}, {}, []),
    ],
)
def test_what_had_failed_when_it_was_planned_is_left(
    tmp_path: Path, failed: dict[int, str], planned: dict[int, str], taken_back: list[int]
) -> None:
    """failed, planned: the reason of each clip that is failed in its index, and already in the plan, by its number."""
    url = training.write_dataset(tmp_path / "gaze", clips=12)
    dataset = shards.open_dataset(url)
    plan = dataset.plan.rows()
    plan["reason"] = [planned.get(number) for number in range(len(plan))]
    (tmp_path / "gaze" / "plan.parquet").write_bytes(plan_bytes(plan))
    for shard in dataset.committed():
        index = shards.read_index(url, shard).to_pandas()
        for number, reason in failed.items():
            mine = (index["shard"] == plan["shard"][number]) & (index["position"] == plan["position"][number])
            index.loc[mine, ["outcome", "reason"]] = ["failed", reason]
        Path(shards.index_url(url, shard)).write_bytes(tables.to_bytes(index, INDEX_SCHEMA))
    config = PreprocessConfig(input="/v", output=url, retry="failed")
    gazer: Any = SimpleNamespace()
    job = Job(config, dataset.url, shards.open_dataset(url).plan, [], gazer)
    before = dataset.committed()
    prepare_output(config, job)
    assert sorted({*before} - {*dataset.committed()}) == taken_back
    assert hopeless_clips(job) == dict.fromkeys(planned.values(), 1)
