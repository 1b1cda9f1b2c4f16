"""Distilling an encoder: begins exactly at the checkpoint, learns, and is the same run however it is cut up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.vision import load as load_encoder
from autogaze.vision.distillation import FullFeatures
from jobs.cli import main
from jobs.config import load
from pipelines.errors import PipelineError
from pipelines.networks.encoders import EncoderConfig, open_encoder
from pipelines.runs.events import read_events
from pipelines.train.encoder import EncoderTask
from pipelines.train.encoder_config import EncoderTrainConfig, check_encoder_config
from pipelines.train.step import precision
from pipelines.train.task import RandomKey
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint
from tests.support import training
from tests.support.encoders import write_encoder
from tests.support.training import Ranks, end_of, newest, require_clean, run_ranks, train
from tests.support.waiting import wait_until

CPU = torch.device("cpu")
# Two scales of few patches: a step takes milliseconds.
SMALL = ["encoder.scales=112+224", "encoder.attention=newest", "gaze=random", "frames=2", "max_ratio=0.2", "epochs=2"]
SMALL += ["global_batch=4", "micro_batch=4", "loader.workers=0", "loader.window=2", "loader.val_fraction=0.25"]
SMALL += ["every.checkpoint=2", "every.validate=0", "val_clips=0", "optimizer.lr=1e-3", "embeddings=true"]
CLIPS = torch.from_numpy(np.stack([training.clip_of(n) for n in range(2)]))
STORED = Gaze.cat([training.short_gaze(n) for n in range(2)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A DINOv2 of patches of 28 pixels, which gaze of patches of 16 does not fit."""
    return str(write_encoder(tmp_path_factory.mktemp("encoder"), "dinov2", patch=28, size=224))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_dataset(tmp_path_factory.mktemp("gazes") / "data", clips=12)


@pytest.fixture(scope="module")
def config(checkpoint: str, data: str):
    """config(run, *changed) of a small run."""

    def make(run: Path | str, *changed: str) -> EncoderTrainConfig:
        words = [*SMALL, f"data={data}", f"run={run}", f"encoder.checkpoint={checkpoint}", *changed]
        last = dict(word.split("=", 1) for word in words)
        made = load(EncoderTrainConfig, [f"{name}={value}" for name, value in last.items()])
        check_encoder_config(made)
        return made

    return make


@pytest.fixture(scope="module")
def smooth(config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    run = tmp_path_factory.mktemp("smooth") / "run"
    assert train(config(run, "every.validate=2", "val_clips=2")) == "done"
    return run


def steps(run: Path, kind: str = "step") -> Any:
    events = read_events(str(run))
    return events[events["kind"] == kind]


def weights(run: Path) -> torch.Tensor:
    folder = newest(run) / "encoder"
    found = {**load_file(folder / "model.safetensors"), **load_file(folder / "gaze_embeddings.safetensors")}
    return torch.cat([found[name].flatten().double() for name in sorted(found)])


def near(one: Path, other: Path) -> bool:
    return float((weights(one) - weights(other)).norm() / weights(other).norm()) < 1e-5


def test_it_begins_exactly_at_the_checkpoint(config, checkpoint: str) -> None:
    task = EncoderTask(config("/r"), CPU)
    plain = load_encoder(checkpoint, (112, 224), "newest")
    gaze = Gaze.from_lists([[[3, 79, 40], [], [9]], [[1], [2, 50], [60]]], vocabulary=plain.vocabulary)
    found, wanted = task.student.encode(CLIPS, gaze), plain.encode(CLIPS, gaze)
    assert task.student.embeddings is not None and found.tokens.requires_grad
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.prefix, wanted.prefix)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on_ends_with_the_same_bits(config, smooth: Path, tmp_path: Path) -> None:
    asked = iter([False, True])
    assert train(config(tmp_path), stopping=lambda: next(asked)) == "stopped"
    assert newest(tmp_path).name == "step-000001"
    assert train(config(tmp_path)) == "done"
    assert end_of(tmp_path) == end_of(smooth)
    require_clean(tmp_path)
    assert train(config(tmp_path)) == "finished"
    with pytest.raises(PipelineError, match=r"was begun with max_ratio=0\.2, not 0\.3"):
        train(config(tmp_path, "max_ratio=0.3"))


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_bits(config, smooth: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = Ranks(config(run), 1, tmp_path / "ranks")
    assert wait_until(lambda: (run / "checkpoints" / "step-000002" / "state.json").exists()), ranks.join()
    ranks.kill()
    assert run_ranks(config(run), 1, tmp_path / "ranks") in (["done"], ["finished"])
    assert end_of(run) == end_of(smooth)
    require_clean(run)


def test_parts_of_a_batch_do_not_change_the_run(config, smooth: Path, tmp_path: Path) -> None:
    assert train(config(tmp_path, "micro_batch=1")) == "done"
    assert near(tmp_path, smooth)
    np.testing.assert_allclose(steps(tmp_path)["loss"], steps(smooth)["loss"], rtol=1e-4)


@pytest.mark.slow
def test_two_ranks_train_and_validate_as_one_does(config, smooth: Path, tmp_path: Path) -> None:
    words = ["every.validate=2", "val_clips=2", "micro_batch=1"]
    assert run_ranks(config(tmp_path / "run", *words), 2, tmp_path / "ranks") == ["done", "done"]
    assert near(tmp_path / "run", smooth)
    require_clean(tmp_path / "run")
    for kind, names in (("step", ["loss", "own", "dense", "pooled"]), ("validation", ["own", "dense_untrained"])):
        np.testing.assert_allclose(*(steps(run, kind)[names] for run in (tmp_path / "run", smooth)), rtol=1e-4)


def test_what_it_leaves_is_read_by_transformers_and_by_vision(smooth: Path, checkpoint: str) -> None:
    folder = newest(smooth) / "encoder"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "gaze_embeddings.safetensors",
        "model.safetensors",
    ]
    student = load_encoder(folder, (112, 224), "newest")
    plain = transformers.Dinov2Model.from_pretrained(folder).state_dict()
    assert all(torch.equal(plain[name], weight) for name, weight in student.model.state_dict().items())
    before = load_encoder(checkpoint, (112, 224), "newest")
    assert student.fingerprint != before.fingerprint and student.embeddings is not None
    assert bool(student.embeddings.scale.any() and student.embeddings.time.any())
    last = steps(smooth, "validation").iloc[-1]
    measured = [last[f"{name}{suffix}"] for suffix in ("", "_untrained") for name in ("own", "dense", "pooled")]
    assert all(0 < value <= 1 for value in measured) and len(steps(smooth, "validation")) == 2


def test_a_student_of_other_weights_learns_its_teachers_features(config, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", "dinov2", seed=1, patch=28, size=224)
    task = EncoderTask(config("/r", f"init={other}"), CPU)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=4e-2)
    found = []
    for _ in range(15):
        losses = task.losses(task.module, CLIPS, STORED, RandomKey(0, 0, (0, 1)), [])
        losses["loss"].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append({name: float(value.detach().mean()) for name, value in losses.items()})
    for name in ("loss", "own", "dense", "pooled"):
        assert found[-1][name] < 0.4 * found[0][name], name


def test_what_is_drawn_is_a_function_of_seed_epoch_and_sample(config) -> None:
    task = EncoderTask(config("/r", "min_ratio=0.01", "max_ratio=1"), CPU)
    seen: list[tuple[list[int], list[int], list[list[int]]]] = []

    def model(frames: torch.Tensor, gaze: Gaze, full: FullFeatures) -> dict[str, torch.Tensor]:
        seen.extend((gaze.lengths[b].tolist(), gaze.frames(b)[1], full.at[b].tolist()) for b in range(gaze.clips))
        return {"loss": torch.zeros(gaze.clips)}

    for key in (RandomKey(0, 0, (5, 6)), RandomKey(0, 0, (6, 5)), RandomKey(0, 1, (5, 6)), RandomKey(1, 0, (5, 6))):
        task.losses(model, CLIPS, STORED, key, [])  # type: ignore[arg-type]
    assert seen[0] == seen[3] and seen[1] == seen[2]
    assert len({str(one) for one in seen}) == 6
    assert all(lengths[0] == 64 and 1 <= lengths[1] == lengths[2] <= 64 for lengths, _, _ in seen)


def test_half_precision_computes_otherwise_and_keeps_whole_weights(config) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        words = config("/r", f"scale.dtype={dtype}")
        task = EncoderTask(words, CPU)
        with precision(words, CPU):
            losses = task.losses(task.module, CLIPS, STORED, RandomKey(0, 0, (0, 1)), [])
            assert all(0 < value <= 1 for value in task.summary(task.validate(CLIPS, STORED)).values())
        losses["loss"].sum().backward()
        learns = [weight for weight in task.module.parameters() if weight.requires_grad]
        assert all(weight.grad is not None and weight.dtype == weight.grad.dtype == torch.float32 for weight in learns)
        found.append(losses["loss"].detach())
    assert (found[0] != found[1]).all()
    torch.testing.assert_close(*found, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "words, some, none",
    [
        (
            ["learn=first", "layers=1"],
            ["embeddings.patch_embeddings", "encoder.layer.0"],
            ["encoder.layer.1", "layernorm."],
        ),
        (["learn=last", "layers=1"], ["encoder.layer.1", "layernorm."], ["encoder.layer.0", "model.embeddings"]),
        (["learn=embeddings"], [], ["model."]),
        (["learn=all"], ["encoder.layer.0", "encoder.layer.1", "cls_token", "layernorm."], ["mask_token"]),
    ],
)
def test_only_the_weights_asked_for_learn(config, words: list[str], some: list[str], none: list[str]) -> None:
    student = EncoderTask(config("/r", *words), CPU).student
    learns = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert {"embeddings.scale", "embeddings.time"} <= set(learns)
    for part in some:
        assert any(part in name for name in learns), part
    for part in none:
        assert not any(name.startswith(part) or f".{part}" in name for name in learns), part


def test_a_run_begins_with_what_another_has_learnt(config, smooth: Path, tmp_path: Path) -> None:
    asked = iter([True])
    assert train(config(tmp_path, f"init={smooth}"), stopping=lambda: next(asked)) == "stopped"
    assert torch.equal(weights(tmp_path), weights(smooth))


def test_the_command_leaves_a_run_that_other_jobs_take_by_name(
    data: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"data={data}", f"run={tmp_path}", f"encoder.checkpoint={checkpoint}", "steps=1"]
    assert main(["train", "encoder", *words]) == 0
    printed = capsys.readouterr()
    assert f"the encoder: {newest(tmp_path)}/encoder" in printed.out and "Writing" not in printed.err
    assert main(["audit", str(tmp_path)]) == 0
    found = open_encoder(EncoderConfig(checkpoint=str(tmp_path), scales="112+224", attention="newest"), "cpu")
    assert found.fingerprint == load_encoder(newest(tmp_path) / "encoder", (112, 224), "newest").fingerprint
    assert main(["train", "encoder", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "nothing to do" in capsys.readouterr().out


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, told",
    [
        (["encoder.checkpoint="], "encoder.checkpoint= is missing"),
        (["encoder.dtype=bfloat16"], "encoder.dtype=bfloat16: weights that are trained stay float32"),
        (["min_ratio=0"], "min_ratio=0.0: must be more than 0, and at most 1"),
        (["max_ratio=1.5"], "max_ratio=1.5: must be more than 0, and at most 1"),
        (["min_ratio=0.6"], "min_ratio=0.6: must be at most max_ratio=0.2"),
        (["weights.own=0", "weights.dense=0", "weights.pooled=0"], "weights.own=0.0: nothing counts"),
        (["weights.dense=-1"], "weights.dense=-1.0: must be 0 or more"),
        (["learn=last"], "learn=last: say of how many layers"),
        (["layers=2"], "layers=2: is for learn=first and learn=last"),
        (["learn=embeddings", "embeddings=false"], "learn=embeddings: there are none to learn"),
        (["gaze=greedy"], "gaze=greedy: must be one of stored, random, stalest, changed_most"),
        (["run=DATA/encoder"], "lies in the dataset"),
        (["global_batch=3", "scale.max_workers=2"], "global_batch=3: 2 ranks cannot share it evenly"),
    ],
)
def test_a_value_that_cannot_work_is_one_line(config, data: str, words: list[str], told: str) -> None:
    with pytest.raises(PipelineError) as error:
        config("/r", *(word.replace("DATA", data) for word in words))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, told",
    [
        (["gaze=stored"], "is of scales 32+64+112+224/16, the encoder's are 112+224/28"),
        (["encoder.scales=100+224"], "encoder.scales=100+224: scales 100+224 do not fit this DINOv2"),
        (["encoder.checkpoint=/nowhere"], "encoder.checkpoint=/nowhere: there is no folder"),
        (["encoder.checkpoint=RESNET"], "'resnet', which has no vision tower known here"),
        (["encoder.checkpoint=OTHER/../text"], "'siglip_text_model', which has no vision tower known here"),
        (["init=OTHER"], "is a SigLIP, 16 wide, and encoder.checkpoint= a DINOv2"),
        (["learn=last", "layers=9"], "layers=9: this DINOv2 has 2 layers"),
        (["targets=stored"], "is a DINOv2, and preprocess stores features of DINOv2 with registers and of SigLIP 2"),
        (["targets=stored", "encoder.checkpoint=OTHER"], "stores features of none, wanted siglip2's"),
        (["data=/nowhere"], "/nowhere: no dataset here"),
    ],
)
def test_what_does_not_go_together_is_one_line(config, tmp_path: Path, words: list[str], told: str) -> None:
    places = {"OTHER": tmp_path / "other", "RESNET": tmp_path / "resnet"}
    write_encoder(places["OTHER"], "siglip", patch=28, size=224)
    for name, kind in (("resnet", "resnet"), ("text", "siglip_text_model")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    with pytest.raises(PipelineError) as error:
        EncoderTask(config(tmp_path / "run", *words), CPU)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_dataset_without_frames_is_read_from_its_videos_or_told(config, data: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(data, tmp_path / "bare"))
    about = json.loads((bare / "dataset.json").read_text())
    about["config"]["frames"] = "none"
    for decoder, told in (("another 1.0", "keeps no frames, and was decoded by another 1.0"), ("", "its video /v/")):
        about["software"] = {"decoder": decoder or decoder_fingerprint(DecodeConfig(decoder="pyav"))}
        (bare / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(PipelineError) as error:
            train(config(tmp_path / "run", f"data={bare}"))
        assert told in str(error.value) and "\n" not in str(error.value)


def test_a_network_with_learnt_embeddings_is_no_teacher(config, smooth: Path) -> None:
    with pytest.raises(PipelineError, match="has learnt embeddings, so it is no network of full frames"):
        EncoderTask(config("/r", f"encoder.checkpoint={newest(smooth) / 'encoder'}"), CPU)
