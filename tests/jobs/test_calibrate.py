"""autogaze calibrate: a threshold that a policy keeps in new videos, and gaze that uses it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from autogaze import reconstruction
from autogaze.model import AutoGaze
from jobs.threads import one_torch_thread
from pipelines.dataset.shards import open_dataset
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.calibration import from_json, read_calibration
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.inspection.calibrate import Meter, videos_of
from pipelines.inspection.reading import read_clip
from tests.support import places, runs
from tests.support.training import T, write_dataset

CHECKPOINT = places.GOLDEN / "autogaze_small_k4"
CANVAS = reconstruction.load("canvas")
THRESHOLD, RATIO = 0.36, 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six videos of two clips each, each video of bytes of its own."""
    folder = tmp_path_factory.mktemp("held-out")
    url = write_dataset(folder / "gaze", clips=12, per_shard=6)
    plan = pd.read_parquet(f"{url}/plan.parquet")
    plan["fingerprint"] = plan["video"]
    plan.to_parquet(f"{url}/plan.parquet")
    about = json.loads(Path(url, "dataset.json").read_text())
    Path(url, "dataset.json").write_text(json.dumps(about | {"units": CANVAS.units}))
    return url


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("policy") / "policy"))


def calibrate(*words: object) -> str:
    done = runs.here("calibrate", "target=0.7", f"threshold={THRESHOLD}", f"max_ratio={RATIO}", "stops=3", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*words: object) -> str:
    done = runs.here("calibrate", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def calibrated(data: str, policy: Path) -> str:
    """What the job printed; its file lies beside the policy."""
    return calibrate(f"policy.checkpoint={policy}", f"data={data}")


def test_it_writes_what_it_promises_beside_the_policy(calibrated: str, policy: Path) -> None:
    about = json.loads((policy / "calibration.json").read_text())
    assert about["promise"] | {"bound": 0} == {
        "risk": "share", "target": 0.7, "method": "crc", "confidence": None, "bound": 0, "p": None,
        "videos": 3, "clips": 6, "fitted": 3,
    }  # fmt: skip
    chosen = [one for one in about["tried"] if one["keeps"]][-1]
    assert about["promise"]["bound"] == chosen["bound"] <= 0.3
    assert about["stops"] == [chosen["stops"][0]] + [chosen["stops"][1]] * (T - 1)
    assert (about["threshold"], about["units"], about["max_ratio"]) == (THRESHOLD, CANVAS.units, RATIO)
    assert about["reconstructor"] == {"name": "canvas", "fingerprint": CANVAS.fingerprint}
    assert about["policy"]["fingerprint"] == AutoGaze.from_pretrained(policy).fingerprint
    for line in ("promise   at most 0.3 of a new video's frames over 0.36", "what trained the policy is not all known"):
        assert line in calibrated
    assert (AutoGaze.from_pretrained(policy).fingerprint, "calibration=auto" in calibrated) == (
        about["policy"]["fingerprint"], True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_same_again_writes_the_same_bytes(calibrated: str, data: str, policy: Path, tmp_path: Path) -> None:
    calibrate(f"policy.checkpoint={policy}", f"data={data}", f"output={tmp_path}")
    assert (tmp_path / "calibration.json").read_bytes() == (policy / "calibration.json").read_bytes()


def test_a_videos_loss_is_that_of_truly_gazing_with_the_stop(data: str, policy: Path) -> None:
    dataset = open_dataset(data)
    videos = videos_of(dataset, dataset.index(), 0, 0)
    model, stops = AutoGaze.from_pretrained(policy), [0.3, 0.2, 0.2]
    with one_torch_thread():
        meter = Meter(dataset, model, CANVAS, THRESHOLD, "share", RATIO, 32, "cpu")
        found = meter.measure(videos[:2], stops)
        excess = replace(meter, risk="excess").measure(videos[:2], stops)
        assert np.array_equal(meter.measure(videos[:2], stops, whole=True).losses, found.losses)
        for video, loss, over in zip(videos[:2], found.losses, excess.losses, strict=True):
            errors = []
            for row in video.clips:
                frames = read_clip(dataset, row)[0][None]
                gaze = model.gaze(frames, max_ratio=RATIO, loss_threshold=stops)
                errors.append(CANVAS.reconstruct(frames, gaze).error)
            each = torch.cat(errors)
            assert loss == pytest.approx(float((each > THRESHOLD).float().mean()))
            assert over == pytest.approx(float(((each - THRESHOLD) / THRESHOLD).clamp(0, 1).mean()), abs=1e-6)
    assert sorted(len(video.clips) for video in videos) == [2] * 6


def test_videos_are_drawn_whole_and_by_their_names(data: str) -> None:
    dataset = open_dataset(data)
    index = dataset.index()
    one, again = (videos_of(dataset, rows, 1, 5) for rows in (index, index.sample(frac=1, random_state=0)))
    assert [video.name for video in one] == [video.name for video in again]
    assert {video.name for video in one} == set(index["video"]) and all(len(video.clips) == 1 for video in one)
    assert [video.name for video in videos_of(dataset, index, 1, 6)] != [video.name for video in one]


# -- gaze that uses it -------------------------------------------------------------------------------------------------


def settings(place: Path, **changed: object) -> GazeSettings:
    given = {"gaze": "policy", "policy": PolicyConfig(str(place)), "calibration": "auto"} | changed
    return GazeSettings(**given)  # type: ignore[arg-type]


def test_gaze_stops_where_the_calibration_says(calibrated: str, data: str, policy: Path) -> None:
    dataset = open_dataset(data)
    frames = read_clip(dataset, dataset.index().to_dict("records")[0])[0][None]
    kept = read_calibration("auto", str(policy))
    with one_torch_thread():
        resolved = gazers.resolve(settings(policy))
        gaze = gazers.start(resolved, "cpu").gaze(frames)
        by_hand = AutoGaze.from_pretrained(policy).gaze(frames, max_ratio=RATIO, loss_threshold=list(kept.stops))
        short = gazers.start(resolved, "cpu").gaze(frames[:, :2])
    assert gaze.frames(0) == by_hand.frames(0) and short.frames(0) == by_hand.frames(0)[:2]
    assert (resolved.threshold, resolved.max_ratio, resolved.stops) == (THRESHOLD, RATIO, kept.stops)
    assert torch.equal(gaze.met(kept.stops)[0], gaze.final()[0] <= torch.tensor(kept.stops))
    assert resolved.models["calibration"]["stops"] == list(kept.stops)
    assert json.loads(json.dumps(resolved.models)) == resolved.models, "so a resumed job compares it"


def test_a_dataset_records_it_and_is_refused_with_another(
    calibrated: str, policy: Path, tmp_path: Path, make_video: object
) -> None:
    make_video(tmp_path / "videos" / "one.mp4", frames=2 * T)  # type: ignore[operator]
    words = [f"input={tmp_path / 'videos'}", f"output={tmp_path / 'out'}", "gaze=policy", f"clip.frames={T}"]
    words += [f"policy.checkpoint={policy}", "clip.per_video=1", "calibration=auto"]
    done = runs.plainly("preprocess", *words)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "out"))
    kept = read_calibration("auto", str(policy))
    assert dataset.threshold == THRESHOLD and dataset.stops == list(kept.stops)
    assert "calibration" not in dataset.config
    (row,) = dataset.index().to_dict("records")
    assert row["met"] == np.float32(dataset.read_gaze(row).met(dataset.stops).float().mean())

    done = runs.plainly("preprocess", *words[:-1], f"threshold={THRESHOLD}", f"max_ratio={RATIO}")
    assert done.returncode == 2 and "models.calibration.stops is" in done.stderr
    other = tmp_path / "calibration.json"
    about = json.loads((policy / "calibration.json").read_text())
    other.write_text(json.dumps(about | {"stops": [stop / 2 for stop in about["stops"]]}))
    done = runs.plainly("preprocess", *words[:-1], f"calibration={other}")
    assert done.returncode == 2 and "models.calibration.stops is" in done.stderr
    done = runs.plainly("preprocess", *words[:-1], f"calibration={policy}")  # the same content, named otherwise
    assert done.returncode == 0, done.stderr


def test_without_one_nothing_of_it_is_recorded(policy: Path) -> None:
    resolved = gazers.resolve(settings(policy, calibration=""))
    assert list(resolved.models) == ["policy"] and resolved.stops == resolved.bound == 0.7


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"threshold": 0.06}, r"threshold=0.06: the calibration is for threshold=0.36 \(mean absolute"),
        ({"max_ratio": 0.5}, "max_ratio=0.5: the calibration is for max_ratio=0.1"),
        ({"dtype": "bfloat16"}, "was measured with policy.dtype=float32"),
        ({"calibration": "/nowhere"}, "/nowhere/calibration.json: missing; make one with"),
        ({"checkpoint": CHECKPOINT}, "has no calibration.json beside it; make one with: autogaze calibrate"),
        ({"positions": "consistent"}, "is of the policy"),
    ],
)
def test_what_it_is_not_of_is_refused(calibrated: str, policy: Path, changed: dict[str, object], told: str) -> None:
    named = {name: changed.pop(name) for name in ("dtype", "checkpoint", "positions") if name in changed}
    config = PolicyConfig(**({"checkpoint": str(policy)} | {k: str(v) for k, v in named.items()}))  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=told) as error:
        gazers.resolve(settings(policy, policy=config, **changed))
    assert "\n" not in str(error.value)


def test_clips_of_another_cut_are_refused(calibrated: str, policy: Path) -> None:
    resolved = gazers.resolve(settings(policy))
    resolved.require_clips({"frames": T, "stride": 1, "fps": 0.0, "tiles": "whole"})
    with pytest.raises(PipelineError, match=r"clip\.frames=16: the calibration is of clips of 3 frames"):
        resolved.require_clips({"frames": 16, "stride": 1, "fps": 0.0, "tiles": "whole"})
    cut = read_calibration("auto", str(policy))
    with pytest.raises(PipelineError, match=r"clip.stride=4: the calibration is of clips with 1"):
        replace(cut, clip={"stride": 1}).require_clips({"frames": T, "stride": 4, "fps": 0.0, "tiles": "whole"})


def test_it_is_for_a_policy() -> None:
    with pytest.raises(PipelineError, match="calibration=auto: is for gaze=policy, and gaze=canvas"):
        check_gaze(GazeSettings(calibration="auto"))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 9}',
        b"\xff",
        b'{"format": 1, "stops": [NaN], "promise": {"target": 1}, "threshold": 1}',
    ],
)
def test_a_damaged_file_is_one_line(bad: bytes) -> None:
    with pytest.raises(PipelineError, match=r"/place: (damaged, or not that of autogaze calibrate|has format 9)"):
        from_json(bad, "/place")


# -- refusals of the job -----------------------------------------------------------------------------------------------


def test_too_few_videos_are_told_how_many_it_takes(data: str, policy: Path) -> None:
    words = [f"policy.checkpoint={policy}", f"data={data}", f"threshold={THRESHOLD}"]
    assert "6 videos, of which 3 carry the promise, are too few for target=0.95: it takes 19" in refused(*words)
    told = refused(*words, "target=0.8", "method=ltt", "confidence=0.9")
    assert "with confidence 0.9: it takes 11 even if no frame misses, 22 with fit=0.5" in told


def test_a_threshold_that_no_stop_keeps_is_told(data: str, policy: Path) -> None:
    told = refused(
        f"policy.checkpoint={policy}", f"data={data}", "threshold=0.0001", "max_ratio=0.01", "target=0.7", "stops=2"
    )
    assert "target=0.7: no stop keeps it at threshold=0.0001" in told and "the strictest one keeps 0.0%" in told


def test_a_threshold_in_unknown_units_is_not_taken_from_the_policy(data: str, policy: Path) -> None:
    told = refused(f"policy.checkpoint={policy}", f"data={data}", "target=0.7")
    assert "the policy's 0.7 is in units that it does not name, measured is the mean absolute difference" in told


@pytest.fixture(scope="module")
def run_of_policy(data: str, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run on the dataset leaves, which held out a share of it."""
    run = tmp_path_factory.mktemp("run")
    step = run / "checkpoints" / "step-000001"
    shutil.copytree(CHECKPOINT, step / "policy")
    (step / "state.json").write_text("{}")
    (run / "checkpoints" / "latest").write_text("step-000001\n")
    config = {"data": data, "init": "", "loader": {"val_fraction": 0.6}}
    (run / "config.yaml").write_text(yaml.safe_dump({"kind": "PolicyTrainConfig", "config": config}))
    return run


def test_videos_that_trained_the_policy_are_refused_and_those_held_out_are_not(data: str, run_of_policy: Path) -> None:
    words = [f"policy.checkpoint={run_of_policy}", f"data={data}", f"threshold={THRESHOLD}", "target=0.5"]
    told = refused(*words)
    (seen,) = re.findall(r"(\d) of its 6 videos trained the policy", told)
    assert 0 < int(seen) < 6 and "val_fraction=" in told
    told = calibrate(*words, "val_fraction=0.6")
    assert "not all known" not in told
    kept = json.loads((run_of_policy / "checkpoints" / "step-000001" / "policy" / "calibration.json").read_text())
    assert kept["promise"]["videos"] + kept["promise"]["fitted"] == 6 - int(seen)
    assert kept["trained_on"] == {"datasets": [data], "known": True}


def test_predictions_that_are_no_numbers_are_one_line(data: str, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AutoGaze.gaze

    def broken(self: AutoGaze, *args: object, **named: object) -> object:
        gaze = plain(self, *args, **named)  # type: ignore[arg-type]
        return replace(gaze, losses=torch.full_like(gaze.losses, torch.nan))  # type: ignore[arg-type]

    monkeypatch.setattr(AutoGaze, "gaze", broken)
    told = refused(
        f"policy.checkpoint={policy}", f"data={data}", f"threshold={THRESHOLD}", "max_ratio=0.02", "target=0.7"
    )
    assert "the policy cannot be calibrated: a predicted or measured loss is not a finite number" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "policy.checkpoint= is missing"),
        (["policy.checkpoint=/nowhere"], "policy.checkpoint=/nowhere: is not there"),
        (["target=1"], "target=1.0: must be"),
        (["method=other"], "method=other: must be one of crc, ltt"),
        ([f"policy.checkpoint={CHECKPOINT}", "teachers.siglip2=x"], "canvas has none"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], told: str, data: str) -> None:
    assert told in refused(f"data={data}", *words)
