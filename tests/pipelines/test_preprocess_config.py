"""pipelines.preprocess: what is refused before any work starts, and how workers are shared out."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import PipelineError
from pipelines.plan import ClipConfig
from pipelines.preprocess import PreprocessConfig, Workers, WorkersConfig, check_config, share_workers
from pipelines.shards import ShardConfig


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"input": ""}, "input= is missing"),
        ({"output": ""}, "output= is missing"),
        ({"gaze": "canvass"}, "gaze=canvass: must be one of canvas"),
        ({"frames": "png"}, "frames=png: must be one of jpeg, raw, none"),
        ({"decoder": "ffmpeg"}, "decoder=ffmpeg: must be one of pyav, decord, torchcodec"),
        ({"threshold": 1.5}, "threshold=1.5: must be between 0.0 and 1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"max_ratio": -0.1}, "max_ratio=-0.1"),
        ({"jpeg_quality": 100}, "jpeg_quality=100"),
        ({"retry": "all"}, "retry=all: must be one of failed"),
        ({"clip": ClipConfig(frames=0)}, "clip.frames=0"),
        ({"shard": ShardConfig(clips=100_000)}, "use shard.clips="),
        ({"workers": WorkersConfig(decode=-1)}, "workers.decode=-1"),
        ({"input": "/data/x", "output": "/data/x/gaze"}, "lies inside the input"),
        ({"input": "s3://b/x", "output": "s3://b/x/"}, "lies inside the input"),
    ],
)
def test_a_value_that_cannot_work_is_named_before_any_work(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PipelineError) as error:
        check_config(PreprocessConfig(**({"input": "/in", "output": "/out"} | changes)))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("cpus, gpus, expected", [(2, 0, (2, 1, False)), (8, 0, (8, 2, False)), (16, 4, (16, 4, True))])
def test_workers_share_the_cluster_out(cpus: int, gpus: int, expected: tuple[int, int, bool]) -> None:
    assert share_workers(PreprocessConfig(), cpus, gpus) == Workers(*expected)


@pytest.mark.parametrize(
    "config, told",
    [
        (PreprocessConfig(workers=WorkersConfig(decode=6)), "need 5 CPUs; the cluster has 4 CPUs"),
        (PreprocessConfig(device="cuda"), "no GPU"),
    ],
)
def test_more_workers_than_the_cluster_can_hold_are_refused(config: PreprocessConfig, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        share_workers(config, 4, 0)


def test_one_cpu_is_too_few_and_says_what_to_do() -> None:
    with pytest.raises(PipelineError, match=r"ray\.cpus="):
        share_workers(PreprocessConfig(), 1, 0)
