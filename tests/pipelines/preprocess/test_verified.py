"""verify=true: what is stored is measured on the frames that are stored, and met wherever it can be."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from autogaze import reconstruction
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.reconstruction.canvas import Canvas
from jobs import verify as verify_job
from pipelines.dataset.shards import Dataset, open_dataset
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.calibration import Calibration, Promise, to_json
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig, TeachersConfig
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.inspection.measured import check_errors
from pipelines.inspection.verify import verify
from tests.support import places, runs

CHECKPOINT = places.GOLDEN / "autogaze_small_k4"
LEARNED = places.GOLDEN / "videomae_tiny"
THRESHOLD = 0.06


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "videos"
    for seed in range(3):
        make_video(folder / f"{seed}.mp4", frames=6, size=(64, 48), seed=seed)
    return folder


def preprocess(videos: Path, output: Path, *settings: str) -> str:
    done = runs.plainly(
        "preprocess",
        *[f"input={videos}", f"output={output}", "gaze=policy", f"policy.checkpoint={CHECKPOINT}", "verify=true"],
        *[f"threshold={THRESHOLD}", "clip.frames=3", "clip.per_video=1", "shard.clips=2", *settings],
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def made(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("made") / "gaze"
    return output, preprocess(videos, output)


def read(dataset: Dataset) -> list[tuple[np.ndarray, Gaze]]:
    """Frames and gaze of each clip, as a reader of the shard has them."""
    found = []
    for row in dataset.index().to_dict("records"):
        members = dataset.read_clip(row)
        frames = dataset.frames_of(row, members)
        assert frames is not None
        found.append((frames, dataset.gaze_of(row, members)))
    return found


def test_every_stored_error_is_that_of_the_stored_frames(made: tuple[Path, str]) -> None:
    dataset = open_dataset(str(made[0]))
    clips = read(dataset)
    assert len(clips) == 3
    for frames, gaze in clips:
        rebuilt = Canvas().reconstruct(frames[None], gaze)  # paints: another way than the search that measured
        assert torch.equal(rebuilt.error, gaze.final())
        assert gaze.met(THRESHOLD).all()
        assert gaze.origins is not None
    assert dataset.index()["met"].tolist() == [1.0] * 3


def test_the_dataset_says_who_measured_and_in_which_units(made: tuple[Path, str]) -> None:
    about = json.loads((made[0] / "dataset.json").read_text())
    assert about["units"] == Canvas.units
    assert about["models"]["canvas"] == Canvas().fingerprint
    assert about["models"]["policy"]["fingerprint"]
    assert (about["config"]["verify"], about["config"]["threshold"], about["config"]["max_ratio"]) == (True, 0.06, 0.75)
    assert "100.0% of frames met threshold 0.06" in made[1]
    assert "verified by canvas" in made[1]


def test_a_killed_run_goes_on_and_other_batches_make_the_same_bytes(
    made: tuple[Path, str], videos: Path, tmp_path: Path
) -> None:
    whole = runs.tree(made[0])
    again = tmp_path / "again"
    preprocess(videos, again, "part=plan")
    preprocess(videos, again, "part=1/2")
    preprocess(videos, again)
    assert runs.tree(again) == whole
    batched = tmp_path / "batched"
    preprocess(videos, batched, "policy.batch=2")
    one, other = runs.tree(batched), whole
    assert {name: one[name] for name in one if name != "dataset.json"} == {
        name: other[name] for name in other if name != "dataset.json"
    }


def test_verify_measures_again_and_finds_what_is_off(made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    config = verify_job.VerifyConfig(str(made[0]), errors=True)
    assert verify_job.run(config, Console(file=told, width=200)) == 0
    assert "3 clips measured again by canvas" in told.getvalue()
    dataset = open_dataset(str(made[0]))
    frames, gaze = read(dataset)[0]
    assert check_errors(dataset, gaze, frames, Canvas()) == []
    other = frames.copy()
    other[1, :40] ^= 64
    assert "errors are not those of its frames: frame 1" in check_errors(dataset, gaze, other, Canvas())[0]
    assert gaze.losses is not None
    assert check_errors(dataset, replace(gaze, losses=gaze.losses + 1e-6), frames, Canvas())
    monkeypatch.setattr(
        "autogaze.gaze.Gaze.from_npz",
        lambda data, vocabulary, read=Gaze.from_npz: replace(read(data, vocabulary), origins=None),
    )
    assert "does not say where its patches come from" in verify(str(made[0])).problems[0]


def test_errors_of_other_datasets_are_not_measured_again(videos: Path, tmp_path: Path) -> None:
    done = runs.plainly(
        "preprocess", f"input={videos}", f"output={tmp_path / 'ds'}", "clip.frames=3", "clip.per_video=1"
    )
    assert done.returncode == 0
    assert "verify" not in json.loads((tmp_path / "ds" / "dataset.json").read_text())["config"]
    with pytest.raises(PipelineError, match="its gaze is not one of verify=true"):
        verify_job.run(verify_job.VerifyConfig(str(tmp_path / "ds"), errors=True), Console(quiet=True))


def settings(**changes: object) -> GazeSettings:
    given = {"gaze": "policy", "policy": PolicyConfig(str(CHECKPOINT)), "verify": True} | changes
    return GazeSettings(**given)  # type: ignore[arg-type]


def test_the_learned_reconstructor_verifies_too() -> None:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (2, 1, 14, 14, 3), np.uint8).repeat(16, 2).repeat(16, 3)
    learned = reconstruction.load(LEARNED)
    before = learned.search(clips[:1]).open(0).item()
    gazer = gazers.load(
        settings(
            reconstructor=ReconstructorConfig(str(LEARNED)),
            threshold=before * 1.5,
            max_ratio=0.01,
            labels=LabelsConfig(candidates=2),
        ),
        "cpu",
    )
    assert gazer.units == learned.units
    assert gazer.models["videomae"] == {"fingerprint": learned.fingerprint, "dtype": "float32"}
    assert set(gazer.models) == {"policy", "videomae"}
    gaze = gazer.gaze(clips)
    assert gaze.met(before * 1.5).all()
    assert gaze.initial is not None
    assert gaze.initial[0, 0].item() == before


def test_a_calibration_says_where_search_takes_over_and_must_be_of_the_same_reconstructor(tmp_path: Path) -> None:
    promise = Promise("share", 0.8, "crc", None, 0.1, None, 20, 20, 10)
    found = Calibration(
        stops=(0.0, 10.0),
        threshold=0.05,
        units=Canvas.units,
        max_ratio=0.5,
        promise=promise,
        policy={"fingerprint": AutoGaze.from_pretrained(CHECKPOINT).fingerprint, "dtype": "float32"},
        reconstructor={"name": "canvas", "fingerprint": Canvas().fingerprint},
        clip={"frames": 2, "stride": 1, "fps": 0.0, "tiles": "whole"},
    )
    place = tmp_path / "calibration.json"
    place.write_bytes(to_json(found, {}))
    gazer = gazers.load(settings(calibration=str(place)), "cpu")
    assert (gazer.threshold, gazer.max_ratio, gazer.stops) == (0.05, 0.5, 0.05)
    assert gazer.models["calibration"]["stops"] == [0.0, 10.0]
    clips = np.random.default_rng(1).integers(0, 255, (1, 2, 14, 14, 3), np.uint8).repeat(16, 2).repeat(16, 3)
    gaze = gazer.gaze(clips)
    assert gaze.met(0.05).all()
    assert gaze.origins is not None
    assert gaze.origins[0, 0, 1] == 0  # never stops by itself, so nothing is beyond its stop
    assert gaze.origins[0, 1, 0] <= 1  # would stop after one patch
    place.write_bytes(to_json(replace(found, reconstructor={"name": "videomae", "fingerprint": "f00d"}), {}))
    with pytest.raises(PipelineError, match="verify by the reconstructor that calibrated"):
        gazers.load(settings(calibration=str(place)), "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gaze": "canvas", "policy": PolicyConfig()}, "verify=true: is for gaze=policy, and gaze=canvas"),
        ({"reconstructor": ReconstructorConfig(str(LEARNED))}, "needs threshold=, in the units of that reconstructor"),
        ({"reconstructor": ReconstructorConfig(dtype="bfloat16")}, "reconstructor.dtype=bfloat16: is for"),
        ({"teachers": TeachersConfig(siglip2="/teacher")}, "teachers.siglip2=/teacher: is for"),
        ({"labels": LabelsConfig(candidates=8)}, "labels.candidates=8: is for"),
        ({"labels": LabelsConfig(lengths="paper")}, "labels.lengths=paper: is for"),
        ({"threshold": 1.5}, "threshold=1.5: must be between 0.0 and 1.0"),
        ({"device": "mps"}, "device=mps: canvas computes in float64"),
        ({"policy": PolicyConfig()}, "policy.checkpoint= is missing"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(PipelineError) as caught:
        check_gaze(settings(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
