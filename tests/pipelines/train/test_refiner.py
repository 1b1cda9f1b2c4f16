"""Training of the refiner: it learns, resumes to the same bits, and its checkpoint does as any reconstructor's does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autogaze import reconstruction
from autogaze.draws import numbered_generator
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.refiner.reconstructor import Refiner
from jobs.config import load
from jobs.train import TrainReconstructor
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig, TeachersConfig
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.networks.find import require_network
from pipelines.train import loop
from pipelines.train.config import ReconstructorTrainConfig, check_train_config
from pipelines.train.reconstructor import ReconstructorTask
from pipelines.train.refiner import RefinerTask, random_gaze
from pipelines.train.task import RandomKey
from tests.support import places, training

SMALL = ["kind=refiner", "refiner.width=8", "refiner.blocks=1", "refiner.deep_width=8", "refiner.deep_blocks=1"]
SMALL += ["global_batch=2", "micro_batch=2", "frames=1", "loader.workers=0", "loader.val_fraction=0.25"]
SMALL += ["steps=4", "val_clips=1", "every.validate=0", "every.checkpoint=1", "optimizer.lr=0.003"]


def config_of(data: str, run: Path, *changed: str) -> ReconstructorTrainConfig:
    return load(ReconstructorTrainConfig, [*SMALL, f"data={data}", f"run={run}", *changed])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_dataset(tmp_path_factory.mktemp("refiner") / "gaze", clips=8)


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner") / "run"
    assert loop.train(config_of(data, folder), RefinerTask) == "done"
    return folder


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits_and_is_clean(data: str, run: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    config = config_of(data, tmp_path / "run")
    assert loop.train(config, RefinerTask, stopping=lambda: next(asked)) == "stopped"
    assert loop.train(config, RefinerTask) == "done"
    assert training.end_of(tmp_path / "run") == training.end_of(run)
    training.require_clean(run)
    with pytest.raises(PipelineError, match="kind=refiner, not videomae"):
        loop.train(config_of(data, tmp_path / "run", "kind=videomae"), ReconstructorTask)


def test_what_it_made_is_a_reconstructor_and_no_policy(run: Path, tmp_path: Path) -> None:
    made = reconstruction.load(training.newest(run) / "reconstructor")
    assert isinstance(made, Refiner) and made.config.width == 8
    with pytest.raises(PipelineError, match="is a reconstructor; give a policy"):
        require_network(str(training.newest(run) / "reconstructor"), "policy", "policy")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps, validations = ([event for event in events if event["kind"] == kind] for kind in ("step", "validation"))
    assert {"loss", "error", "canvas_error"} <= set(steps[0])
    assert {"error", "random_0.01", "canvas_random_0.01", "random_0.3"} <= set(validations[-1])


def test_it_learns_to_correct_the_canvas(tmp_path: Path) -> None:
    """A bright square on black: where nothing was shown yet, black is a better guess than grey."""
    config = load(ReconstructorTrainConfig, [*SMALL, "stored_gaze=0", "max_ratio=0.02", "data=x", f"run={tmp_path}"])
    task = RefinerTask(config, torch.device("cpu"))
    optimizer = torch.optim.Adam(task.module.parameters(), lr=0.003)
    frames = torch.from_numpy(np.stack([training.clip_of(number) for number in range(2)]))
    gaze = training.Gaze.cat([training.short_gaze(number) for number in range(2)])
    found = []
    for step in range(12):
        losses = task.losses(task.module, frames, gaze, RandomKey(0, step, (0, 1)), [])
        losses["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append({name: float(value.detach().mean()) for name, value in losses.items()})
    assert found[0]["error"] == pytest.approx(found[0]["canvas_error"])  # untrained
    assert sum(each["error"] for each in found[-5:]) < 0.7 * sum(each["canvas_error"] for each in found[-5:])


def test_random_gaze_covers_all_shares_and_depends_on_its_generator_alone() -> None:
    drawn = [random_gaze(numbered_generator(seed), 4, ratio, VOCABULARY) for seed in (1, 2) for ratio in (0.01, 0.5)]
    assert [gaze.clips for gaze in drawn] == [1] * 4 and all(int(gaze.lengths[0, 0]) >= 1 for gaze in drawn)
    again = random_gaze(numbered_generator(2), 4, 0.5, VOCABULARY)
    assert torch.equal(again.tokens, drawn[3].tokens) and int(again.lengths.sum()) > 100 > int(drawn[2].lengths.sum())
    assert any(tokens != sorted(tokens) for tokens in again.frames(0))  # coarse over fine too


def test_begun_from_a_checkpoint_it_goes_on_with_a_teacher_and_other_weights(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path / "teacher")
    words = [f"init={run}", f"teachers.dinov2={tmp_path / 'teacher'}", "data=x", "run=y", "kind=refiner"]
    task = RefinerTask(load(ReconstructorTrainConfig, [*words, "weights.dinov2=0.1"]), torch.device("cpu"))
    assert task.about()["model"]["loss_weights"] == "1+0.1"
    frames, gaze = torch.from_numpy(training.clip_of(0))[None], training.short_gaze(0)
    task.losses(task.module, frames, gaze, RandomKey(0, 0, (0,)), [])["loss"].sum().backward()
    assert task.model.correct.weight.grad is not None and bool(task.model.correct.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["kind=videomae"], "refiner.[*]: has sizes of kind=refiner, and kind=videomae"),
        (["model.num_layers=2"], "model.[*]: has sizes of kind=videomae, and kind=refiner"),
        (["weights.siglip2=0.3"], "weights.siglip2: weights a teacher that is not given"),
        (["weights.l1=-1"], "weights.l1=-1.0: must be 0 or more"),
        (["min_ratio=0.6"], "min_ratio=0.6: must be at most max_ratio"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changed: list[str], told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        check_train_config(load(ReconstructorTrainConfig, [*SMALL, "data=x", "run=y", *changed]))


def test_a_checkpoint_of_the_other_kind_says_which_key_is_wrong(run: Path) -> None:
    with pytest.raises(PipelineError, match="is a refiner; add kind=refiner"):
        ReconstructorTask(load(ReconstructorTrainConfig, [f"init={run}", "data=x", "run=y"]), torch.device("cpu"))
    other = [f"init={places.GOLDEN / 'videomae_tiny'}", "kind=refiner", "data=x", "run=y"]
    with pytest.raises(PipelineError, match="is no refiner; leave kind=refiner out"):
        RefinerTask(load(ReconstructorTrainConfig, other), torch.device("cpu"))


def test_the_preset_of_a_refiner_leaves_the_sizes_of_the_other_alone() -> None:
    config = load(TrainReconstructor, ["preset=small", "kind=refiner", "data=x", "run=y"])
    assert config.model == type(config.model)() and config.steps == 200
    assert load(TrainReconstructor, ["preset=small", "data=x", "run=y"]).model.hidden_size == 192


# -- gaze=learned ----------------------------------------------------------------------------------------------------


def gaze_by(checkpoint: object, **changes: Any) -> GazeSettings:
    limits: dict[str, Any] = {"gaze": "learned", "max_ratio": 0.008, "device": "cpu"} | changes
    return GazeSettings(reconstructor=ReconstructorConfig(str(checkpoint)), labels=LabelsConfig(candidates=3), **limits)


def test_a_refiner_gazes_and_a_dataset_says_so(run: Path) -> None:
    settings = gaze_by(run)
    check_gaze(settings)
    gazer = gazers.load(settings, "cpu")
    assert list(gazer.models) == ["refiner"] and gazer.about.startswith("refiner ") and gazer.max_frames is None
    clips = np.stack([training.clip_of(number) for number in range(2)])
    gaze = gazer.gaze(clips)
    assert torch.equal(
        gaze.final(), reconstruction.load(training.newest(run) / "reconstructor").reconstruct(clips, gaze).error
    )
    with pytest.raises(PipelineError, match="is a refiner; use gaze=learned"):
        gazers.load(gaze_by(run, gaze="videomae"), "cpu")


def test_learned_takes_a_videomae_too_and_gives_the_same_gaze() -> None:
    clips = training.clip_of(0)[None, :2]
    gazes = [
        gazers.load(gaze_by(places.GOLDEN / "videomae_tiny", gaze=name), "cpu") for name in ("learned", "videomae")
    ]
    assert gazes[0].models == gazes[1].models
    first, second = (gazer.gaze(clips) for gazer in gazes)
    assert torch.equal(first.tokens, second.tokens)


def test_without_teachers_there_are_no_targets_to_store(run: Path) -> None:
    with pytest.raises(PipelineError, match="was trained without teachers"):
        gazers.load(gaze_by(run), "cpu", targets=1)
    with pytest.raises(PipelineError, match="has no teacher dinov2"):
        gazers.load(
            GazeSettings(
                gaze="learned", reconstructor=ReconstructorConfig(str(run)), teachers=TeachersConfig(dinov2="/t")
            ),
            "cpu",
        )


@pytest.mark.slow
def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    data = training.write_dataset(tmp_path / "data", clips=4)

    def config(name: str, ranks: int) -> ReconstructorTrainConfig:
        words = [*SMALL, f"data={data}", f"run={tmp_path / name}", "micro_batch=1", "steps=2", "val_clips=0"]
        words += ["loader.val_fraction=0", f"scale.min_workers={ranks}", f"scale.max_workers={ranks}"]
        return load(ReconstructorTrainConfig, words)

    assert training.run_ranks(config("two", 2), 2, tmp_path) == ["done", "done"]
    assert training.train(config("one", 1)) == "done"
    weights = "reconstructor/model.safetensors"
    one, two = (load_file(training.newest(tmp_path / name) / weights) for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
