"""Stored targets are what the teacher computes, and are refused where they are another network's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from autogaze.images import as_model_input
from autogaze.reconstruction.losses import FrameLoss, Teacher
from autogaze.reconstruction.targets import Targets, target_frames
from autogaze.vision import load as load_encoder
from autogaze.vision.distillation import FullFeatures
from jobs.config import load
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import TARGETS, Outcome, build_shard, commit_shard, open_dataset
from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.train.encoder import EncoderTask
from pipelines.train.encoder_config import EncoderTrainConfig
from pipelines.train.task import RandomKey
from tests.support import training

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 56, "image_size": 224}
NAMES = {"siglip2": "siglip", "dinov2_reg": "dinov2_with_registers"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each teacher, and of another network of the first one's kind."""
    folder = tmp_path_factory.mktemp("teachers")
    siglip = transformers.SiglipVisionConfig(**SIZES, intermediate_size=24)
    dinov2 = transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)
    for seed, (name, model) in enumerate(
        {
            "siglip2": transformers.SiglipVisionModel(siglip),
            "dinov2_reg": transformers.Dinov2WithRegistersModel(dinov2),
            "other": transformers.SiglipVisionModel(siglip),
        }.items()
    ):
        random = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data.normal_(generator=random).mul_(0.3)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ("siglip2", "dinov2_reg", "other")}


@pytest.fixture(scope="module")
def data(teachers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of one shard whose clips have targets of two frames, by both teachers."""
    url = training.write_dataset(tmp_path_factory.mktemp("targets") / "data", clips=2)
    dataset = open_dataset(url)
    loss = FrameLoss(1.0, [Teacher.from_pretrained(name, teachers[name]) for name in NAMES])
    rows, made = dataset.plan.clips_of(0), []
    for number, clip in enumerate(rows["clip"]):
        frames = training.clip_of(number)
        at = target_frames(clip, len(frames), 2)
        targets = Targets.of(loss, as_model_input(frames[None])[0, at], at)
        members = [*encode_frames(frames, "raw", 90), (TARGETS, targets.to_npz())]
        made.append(Outcome(training.short_gaze(number), members))
    commit_shard(url, 0, *build_shard(rows, made, training.THRESHOLD))
    about = dataset.about
    about["config"]["targets"] = {"frames": 2}
    about["models"] = {"targets": {"fingerprint": loss.targets_fingerprint, "teachers": loss.names}}
    Path(url, "dataset.json").write_text(json.dumps(about))
    return url


def task(data: str, checkpoint: Path, *changed: str) -> EncoderTask:
    words = [f"data={data}", "run=/r", f"encoder.checkpoint={checkpoint}", "encoder.scales=112+224", "gaze=random"]
    return EncoderTask(load(EncoderTrainConfig, [*words, "targets=stored", *changed]), CPU)


def first_batch(made: EncoderTask) -> Batch:
    config = replace(made.config.loader_config, workers=0, global_batch=2)
    return next(iter(ShardLoader(config, split="all")))


@pytest.mark.parametrize("name, words", [("siglip2", []), ("dinov2_reg", ["weights.pooled=0"])])
def test_stored_targets_are_what_the_teacher_computes(data: str, teachers, name: str, words: list[str]) -> None:
    made = task(data, teachers[name], *words)
    batch = first_batch(made)
    assert batch.targets is not None
    made.prepare(batch)
    assert made._stored is not None
    samples = batch.ids.tolist()
    at = torch.tensor([made._stored.frames_of(sample) for sample in samples])
    found = made._stored.features(samples, at)
    wanted = FullFeatures.of(load_encoder(teachers[name], (112, 224)), batch.frames, at)
    torch.testing.assert_close(found.places, wanted.places, atol=2e-2, rtol=1e-2)
    assert (found.pooled is None) == bool(words)
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, wanted.pooled, atol=2e-2, rtol=1e-2)
    losses = made.losses(made.module, batch.frames, batch.gaze, RandomKey(0, 0, tuple(samples)), [])
    losses["loss"].sum().backward()
    assert bool(torch.isfinite(losses["loss"]).all()) and ("pooled" in losses) != bool(words)


@pytest.mark.parametrize(
    "name, words, told",
    [
        ("dinov2_reg", [], "no features of class tokens are stored, which DINOv2 with registers pools by"),
        ("siglip2", ["encoder.scales=56+112"], "encoder.scales= has another finest scale than it saw"),
        ("other", [], "the stored features of siglip2 are not those of encoder.checkpoint= (cosine "),
    ],
)
def test_targets_that_do_not_fit_are_one_line(data: str, teachers, name: str, words: list[str], told: str) -> None:
    with pytest.raises(PipelineError) as error:
        made = task(data, teachers[name], *words)
        made.prepare(first_batch(made))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_dataset_that_stores_no_targets_is_told(teachers, tmp_path: Path) -> None:
    plain = training.write_dataset(tmp_path / "data", clips=2)
    with pytest.raises(PipelineError, match="stores features of none, wanted siglip2's; make it with targets"):
        task(plain, teachers["siglip2"])
