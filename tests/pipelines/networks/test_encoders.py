"""The encoder that a job names: opened on any of its names, or refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.networks.encoders import EncoderConfig, open_encoder, scales_of
from tests.support import places
from tests.support.encoders import write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def refused(config: EncoderConfig, told: str, device: str = "cpu") -> None:
    with pytest.raises(PipelineError, match=told) as caught:
        open_encoder(config, device)
    assert "\n" not in str(caught.value)


def test_it_sees_as_its_settings_say(folder: Path) -> None:
    config = EncoderConfig(checkpoint=str(folder), scales="32+112", attention="frame", dtype="bfloat16")
    encoder = open_encoder(config, "cpu")
    assert encoder.vocabulary.scales == (32, 112) and encoder.vocabulary.patch_size == 16
    assert encoder.attention == "frame" and str(encoder.dtype) == "torch.bfloat16"


def test_a_run_that_trains_one_names_its_newest(folder: Path, tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step-000002"
    shutil.copytree(folder, step / "encoder")
    (step.parent / "latest").write_text("step-000002\n")
    config = EncoderConfig(checkpoint=str(folder))
    by_run = open_encoder(replace(config, checkpoint=str(tmp_path / "run")), "cpu")
    assert by_run.fingerprint == open_encoder(config, "cpu").fingerprint


def test_an_encoder_that_cannot_be_opened_is_one_line(folder: Path, tmp_path: Path) -> None:
    config = EncoderConfig(checkpoint=str(folder))
    refused(EncoderConfig(), r"^encoder\.checkpoint= is missing: give the folder")
    refused(replace(config, checkpoint=str(places.GOLDEN / "autogaze_small_k4")), "is a policy; give a vision trans")
    refused(replace(config, checkpoint=str(tmp_path)), r"^encoder\.checkpoint=.*holds no network")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(replace(config, checkpoint=str(tmp_path)), "'bert', which has no vision tower known here")
    refused(replace(config, scales="28+56"), r"^encoder\.scales=28\+56: .*nearest are")
    refused(config, r"^device=cuda:9: ", device="cuda:9")


@pytest.mark.parametrize(
    "scales, told", [("32,64", "joined by"), ("", "joined by"), ("64+32+64", "must rise; give 32")]
)
def test_scales_are_whole_numbers_that_rise(scales: str, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        scales_of(EncoderConfig(scales=scales))
