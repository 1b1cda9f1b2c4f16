"""pipelines.preprocess.job: what is refused before any work starts, and how workers are shared out."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.corpus.plan import ClipConfig
from pipelines.dataset.shards import ShardConfig
from pipelines.errors import PipelineError
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig, TargetsConfig, TeachersConfig
from pipelines.preprocess.config import PreprocessConfig, WorkersConfig, check_preprocess_config
from pipelines.preprocess.workers import share_workers

POLICY: dict[str, Any] = {"gaze": "policy", "policy": PolicyConfig("weights")}
VIDEOMAE: dict[str, Any] = {"gaze": "videomae", "reconstructor": ReconstructorConfig("weights"), "threshold": 0.7}
PAPER: dict[str, Any] = {"labels": LabelsConfig("paper")}


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"input": ""}, "input= is missing"),
        ({"output": ""}, "output= is missing"),
        ({"gaze": "canvass"}, "gaze=canvass: must be one of canvas, policy, videomae, learned"),
        ({"frames": "png"}, "frames=png: must be one of jpeg, raw, none"),
        ({"decoder": "ffmpeg"}, "decoder=ffmpeg: must be one of pyav, decord, torchcodec, torchcodec-cuda"),
        ({"threshold": 1.5}, "threshold=1.5: must be between 0.0 and 1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"max_ratio": -0.1}, "max_ratio=-0.1"),
        ({"max_ratio": 0.0}, "max_ratio=0.0: must be more than 0"),
        ({"gaze": "policy"}, "policy.checkpoint= is missing"),
        ({"policy": PolicyConfig(checkpoint="w")}, "policy.checkpoint=w: is for gaze=policy"),
        ({"policy": PolicyConfig(dtype="bfloat16")}, "policy.dtype=bfloat16: is for gaze=policy"),
        (POLICY | {"threshold": -0.1}, "threshold=-0.1: must be 0 or more"),
        (POLICY | {"threshold": float("nan")}, "threshold=nan"),
        (POLICY | {"threshold": float("inf")}, "threshold=inf"),
        ({"gaze": "policy", "policy": PolicyConfig("w", positions="right")}, "policy.positions=right: must be one of"),
        ({"gaze": "policy", "policy": PolicyConfig("w", dtype="fp16")}, "policy.dtype=fp16: must be one of float32, b"),
        ({"gaze": "policy", "policy": PolicyConfig("w", batch=0)}, "policy.batch=0"),
        ({"gaze": "policy", "policy": PolicyConfig("w", cuda_graphs="yes")}, "policy.cuda_graphs=yes"),
        ({"gaze": "videomae"}, "reconstructor.checkpoint= is missing"),
        (VIDEOMAE | {"threshold": None}, "gaze=videomae needs an end: give threshold="),
        (VIDEOMAE | {"threshold": -1.0}, "threshold=-1.0: must be 0 or more"),
        (VIDEOMAE | {"reconstructor": ReconstructorConfig("w", dtype="int8")}, "reconstructor.dtype=int8: must be one"),
        (VIDEOMAE | {"labels": LabelsConfig("long")}, "labels.lengths=long: must be one of threshold, paper"),
        (VIDEOMAE | {"labels": LabelsConfig(step=0)}, "labels.step=0: must be at least 1"),
        (VIDEOMAE | {"labels": LabelsConfig(candidates=2, step=3)}, "labels.step=3: takes more than the labels.cand"),
        (VIDEOMAE | {"labels": LabelsConfig(seed=1)}, "labels.seed=1: is for labels.lengths=paper"),
        (VIDEOMAE | PAPER, "threshold=0.7: labels.lengths=paper decides"),
        (PAPER | {"max_ratio": 0.1}, "max_ratio=0.1: labels.lengths=paper decides"),
        ({"labels": LabelsConfig("paper", seed=-1)}, "labels.seed=-1"),
        ({"labels": LabelsConfig(candidates=5)}, "labels.candidates=5: is for gaze=learned, and gaze=canvas"),
        (POLICY | PAPER, "labels.lengths=paper: is for gaze=canvas and gaze=learned, and gaze=policy"),
        ({"reconstructor": ReconstructorConfig("w")}, "reconstructor.checkpoint=w: is for gaze=learned and targets"),
        ({"teachers": TeachersConfig(siglip2="t")}, "teachers.siglip2=t: is for gaze=learned and targets.frames"),
        ({"targets": TargetsConfig(2)}, "reconstructor.checkpoint= is missing"),
        ({"targets": TargetsConfig(17)}, "targets.frames=17: must be between 0 and the 16 of clip.frames"),
        ({"device": "mps"}, "device=mps: canvas"),
        (VIDEOMAE | {"device": "mps", "labels": LabelsConfig(candidates=9)}, "device=mps: canvas"),
        ({"device": "gpu"}, "device=gpu: must be one of auto, cpu, cuda, mps"),
        ({"clip": ClipConfig(tiles="big")}, "clip.tiles=big: must be one of whole, native"),
        ({"jpeg_quality": 100}, "jpeg_quality=100"),
        ({"retry": "all"}, "retry=all: must be one of failed"),
        ({"clip": ClipConfig(frames=0)}, "clip.frames=0"),
        ({"shard": ShardConfig(clips=-1)}, "shard.clips=-1: must be at least 0"),
        ({"clip": ClipConfig(frames=15_000)}, "clip.frames=15000: the frames of a clip are in memory together"),
        ({"decoder_timeout_s": 0.0}, "decoder_timeout_s=0.0: must be more than 0, and at most 86400"),
        ({"decoder_timeout_s": 1e10}, "decoder_timeout_s=10000000000.0: must be"),
        ({"decoder_timeout_s": float("nan")}, "decoder_timeout_s=nan: must be"),
        ({"workers": WorkersConfig(decode=-1)}, "workers.decode=-1"),
        ({"input": "/data/x", "output": "/data/x/gaze"}, "lies inside the input"),
        ({"input": "s3://b/x", "output": "s3://b/x/"}, "lies inside the input"),
    ],
)
def test_a_value_that_cannot_work_is_named_before_any_work(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PipelineError) as error:
        check_preprocess_config(PreprocessConfig(**({"input": "/in", "output": "/out"} | changes)))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cpus, gpus, expected",
    [(2, 0, (2, 1, "cpu")), (3, 0, (3, 1, "cpu")), (64, 0, (64, 32, "cpu")), (16, 4, (16, 4, "cuda"))],
)
def test_workers_share_the_cluster_out(cpus: int, gpus: int, expected: tuple[int, int, str]) -> None:
    workers = share_workers(PreprocessConfig(), cpus, gpus)
    assert (workers.decode, workers.gaze, workers.device) == expected
    assert workers.wanted.cpus <= cpus, "Ray would wait for ever"


def test_more_decoders_leave_room_for_fewer_gazers() -> None:
    workers = share_workers(PreprocessConfig(workers=WorkersConfig(decode=18)), 16, 0)
    assert workers.gaze == 5 and workers.wanted.cpus == 16


@pytest.mark.parametrize(
    "network", [POLICY, VIDEOMAE, {"targets": TargetsConfig(1), "reconstructor": ReconstructorConfig("weights")}]
)
@pytest.mark.parametrize("cpus", [2, 3, 7, 8, 9, 16, 64, 199])
def test_a_network_on_cpus_gets_nearly_all_of_them(cpus: int, network: dict[str, Any]) -> None:
    workers = share_workers(PreprocessConfig(**network), cpus, 0)
    assert workers.gaze == cpus and workers.decode == max(1, cpus // 8) and workers.device == "cpu"
    assert workers.gaze * workers.gaze_cpus + workers.decode * workers.decode_cpus <= cpus, "Ray would wait for ever"


def test_a_policy_on_gpus_leaves_the_cpus_to_the_decoders() -> None:
    workers = share_workers(PreprocessConfig(**POLICY), 32, 2)
    assert (workers.decode, workers.gaze, workers.gaze_cpus, workers.device) == (32, 2, 0, "cuda")


@pytest.mark.parametrize(
    "config, told",
    [
        (PreprocessConfig(workers=WorkersConfig(decode=6)), "need 5 CPUs; the cluster has 4 CPUs"),
        (PreprocessConfig(device="cuda"), "no GPU"),
        (
            PreprocessConfig(gaze="policy", policy=PolicyConfig("w", cuda_graphs="on")),
            "cuda_graphs=on: the policy runs",
        ),
    ],
)
def test_more_workers_than_the_cluster_can_hold_are_refused(config: PreprocessConfig, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        share_workers(config, 4, 0)


def test_one_cpu_is_too_few_and_says_what_to_do() -> None:
    with pytest.raises(PipelineError, match=r"ray\.cpus="):
        share_workers(PreprocessConfig(), 1, 0)
