"""gaze=videomae and targets: labels are greedy search's whoever makes them, targets are of the frames as stored."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import load_file, save_file

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.lengths import paper_lengths
from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.targets import target_frames
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from jobs import cli, report
from jobs.config import load
from jobs.threads import one_torch_thread
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.shards import Dataset, Outcome, ShardConfig, build_shard, commit_shard, open_dataset
from pipelines.dataset.targets import read_targets
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig, TargetsConfig, TeachersConfig
from pipelines.inspection.verify import verify
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decoding import Decoding
from pipelines.preprocess.job import resolve_gaze, resume
from pipelines.preprocess.stage import PreprocessStage
from pipelines.rl.config import RLConfig
from pipelines.rl.rollouts import Group, RolloutMaker, RolloutRequest
from pipelines.rl.task import RLTask
from pipelines.video.base import DecodeConfig
from tests.support import places, runs, training
from tests.support.decoding import decode

transformers = pytest.importorskip("transformers")

PLAIN = places.GOLDEN / "videomae_tiny"
TINY = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
RATIO, THRESHOLD, CANDIDATES = 0.008, 0.5, 12  # two patches a frame, of few: to try all takes a second for each


SMALL = ["clip.frames=2", "shard.clips=1", "device=cpu"]
TEACHERS = ("dinov2_reg", "siglip2")


@dataclass(frozen=True)
class Made:
    """A checkpoint trained with teachers, videos, and the dataset that the command made of them."""

    folder: Path
    files: dict[str, str]

    @property
    def output(self) -> Path:
        return self.folder / "gaze"

    def settings(self, output: Path, checkpoint: str = "checkpoint") -> list[str]:
        named = {"input": "videos", "reconstructor.checkpoint": checkpoint}
        named |= {f"teachers.{name}": name for name in TEACHERS}
        limits = [f"threshold={THRESHOLD}", f"max_ratio={RATIO}", f"labels.candidates={CANDIDATES}"]
        places = [f"{name}={self.folder / place}" for name, place in named.items()]
        return [*places, f"output={output}", "gaze=videomae", *limits, "targets.frames=1", *SMALL]

    def reconstructor(self, **changes: str) -> ReconstructorConfig:
        return ReconstructorConfig(**({"checkpoint": str(self.folder / "checkpoint")} | changes))

    def teachers(self, **changes: str) -> TeachersConfig:
        return TeachersConfig(**({name: str(self.folder / name) for name in TEACHERS} | changes))

    def config(self, **changes: Any) -> PreprocessConfig:
        """The config that made the dataset, but for changes."""
        config = PreprocessConfig(
            input=str(self.folder / "videos"),
            output=str(self.output),
            gaze="videomae",
            reconstructor=self.reconstructor(),
            teachers=self.teachers(),
            labels=LabelsConfig(candidates=CANDIDATES),
            targets=TargetsConfig(1),
            threshold=THRESHOLD,
            max_ratio=RATIO,
            clip=ClipConfig(frames=2),
            shard=ShardConfig(1),
            device="cpu",
        )
        return replace(config, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Made:
    folder = tmp_path_factory.mktemp("videomae")
    make_video(folder / "videos" / "a.mp4", frames=3)
    torch.manual_seed(20260)
    dino = transformers.Dinov2WithRegistersConfig(**TINY)
    transformers.Dinov2WithRegistersModel(dino).save_pretrained(folder / "dinov2_reg")
    (folder / "dinov2_reg" / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": {"height": 32, "width": 32}})
    )
    siglip = transformers.SiglipVisionConfig(**TINY, intermediate_size=16)
    transformers.SiglipVisionModel(siglip).save_pretrained(folder / "siglip2")
    trained_with(folder / "checkpoint", "l1+dinov2_reg+siglip2", "1+0.3+0.3")
    made = Made(folder, {})
    done = runs.plainly("preprocess", *made.settings(made.output))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "videomae in float32, the 12 patches best on canvas tried, targets of 1 frames" in " ".join(
        done.stdout.split()
    )
    return replace(made, files=runs.tree(made.output))


def trained_with(folder: Path, loss_type: str, loss_weights: str) -> Path:
    shutil.copytree(PLAIN, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"loss_type": loss_type, "loss_weights": loss_weights}))
    return folder


def changed_weights(source: Path, folder: Path) -> Path:
    """The same model but for one number."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    weights[name].view(-1)[0] += 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def reconstructor(made: Made) -> VideoMAE:
    found = reconstruction.load(made.folder / "checkpoint", teachers=made.teachers().given())
    assert isinstance(found, VideoMAE)
    return found


@pytest.fixture(scope="module")
def frames(made: Made) -> dict[str, np.ndarray]:
    """Of each clip, what the gaze stage saw: decoded and not encoded yet; uint8 [T, S, S, 3]."""
    plan = open_dataset(str(made.output)).plan
    return {row.clip: decode(plan, row.shard).frames[0] for row in plan.rows().itertuples()}


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.index().to_dict("records")
    assert len(rows) == 2 and all(row["outcome"] == "ok" for row in rows)
    return rows


def test_the_stored_gaze_is_the_greedy_label_of_the_frames_the_stage_saw(
    made: Made, reconstructor: VideoMAE, frames: dict[str, np.ndarray]
) -> None:
    assert verify(str(made.output)).problems == []
    dataset = open_dataset(str(made.output))
    with one_torch_thread():
        for row in rows_of(dataset):
            clip = frames[row["clip"]][None]
            how = {"exact": False, "candidates": CANDIDATES}
            label = greedy.label(clip, reconstructor, threshold=THRESHOLD, max_ratio=RATIO, **how)
            assert dataset.read_clip(row)["gaze.npz"] == label.to_npz()
            assert row["tokens"] == 4 and row["loss"] == np.float32(label.final().mean())
            assert row["met"] == label.met(THRESHOLD).float().mean()


def test_targets_are_what_a_job_would_compute_from_the_shard(
    made: Made, reconstructor: VideoMAE, frames: dict[str, np.ndarray]
) -> None:
    dataset, loss = open_dataset(str(made.output)), reconstructor.frame_loss
    with one_torch_thread():
        for row in rows_of(dataset):
            targets = read_targets(dataset, row, loss)
            stored = decode_frames(dataset.read_clip(row))
            assert targets is not None and stored is not None
            at = target_frames(row["clip"], 2, 1)
            assert targets.at.tolist() == at
            computed = loss.targets(reconstructor.normalised(torch.from_numpy(stored[at])))
            original = loss.targets(reconstructor.normalised(torch.from_numpy(frames[row["clip"]][at])))
            for target, ours, other in zip(targets.for_frames(at), computed, original, strict=True):
                assert torch.equal(target, ours.half())
                assert not torch.equal(target, other.half()), "of the pixels before JPEG"


def test_targets_of_other_teachers_are_refused(made: Made, reconstructor: VideoMAE) -> None:
    dataset = open_dataset(str(made.output))
    row = rows_of(dataset)[0]
    one = FrameLoss.from_config("l1+siglip2", "1+0.3", {"siglip2": str(made.folder / "siglip2")})
    with pytest.raises(PipelineError, match="these targets are of dinov2_reg, siglip2") as error:
        read_targets(dataset, row, one)
    assert row["clip"] in str(error.value) and "\n" not in str(error.value)


def test_plain_webdataset_reads_gaze_and_targets(made: Made) -> None:
    tars = sorted(str(path) for path in (made.output / "shards").iterdir())
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 2
    for sample in samples:
        names = [name for name in sample if not name.startswith("__")]
        assert names == ["json", "00.jpg", "01.jpg", "gaze.npz", "targets.npz"]
        assert sample["gaze.npz"]["lengths"].tolist() == [2, 2]
        assert sample["targets.npz"]["features_siglip2"].shape == (1, 4, 32)
        assert sample["targets.npz"]["features_dinov2_reg"].dtype == np.float16


def test_the_dataset_says_what_labelled_it_and_the_report_in_which_units(made: Made, reconstructor: VideoMAE) -> None:
    text = (made.output / "dataset.json").read_text()
    about = json.loads(text)
    assert about["models"] == {
        "videomae": {"fingerprint": reconstructor.fingerprint, "dtype": "float32"},
        "targets": {
            "fingerprint": reconstructor.frame_loss.targets_fingerprint,
            "teachers": ["dinov2_reg", "siglip2"],
        },
    }
    assert about["config"]["labels"] == {"lengths": "threshold", "seed": 0, "candidates": CANDIDATES, "step": 1}
    assert (about["config"]["threshold"], about["config"]["max_ratio"]) == (THRESHOLD, RATIO)
    assert about["config"]["targets"] == {"frames": 1} and about["units"] == reconstructor.units
    assert str(made.folder / "checkpoint") not in text
    page = report.build(open_dataset(str(made.output)))
    assert reconstructor.units in page and reconstructor.fingerprint in page and "of 2 frames" in page


@pytest.mark.slow
def test_one_worker_and_a_checkpoint_that_moved_make_the_bytes_of_two_workers(made: Made, tmp_path: Path) -> None:
    moved = made.reconstructor(checkpoint=str(shutil.copytree(made.folder / "checkpoint", tmp_path / "moved")))
    output = tmp_path / "gaze"
    config = made.config(output=str(output), reconstructor=moved)
    labelled(made, config, output)
    here = runs.tree(output)
    assert here == made.files
    (output / "index" / "000001.parquet").unlink()
    job = resume(config)
    assert job is not None and job.missing == [1]


def refused(config: PreprocessConfig) -> str:
    with pytest.raises(PipelineError) as error:
        resume(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_weights_teachers_and_options_are_refused_by_name(made: Made, tmp_path: Path) -> None:
    assert resume(made.config()) is not None
    other = made.reconstructor(checkpoint=str(changed_weights(made.folder / "checkpoint", tmp_path / "other")))
    told = refused(made.config(reconstructor=other))
    assert "models.videomae.fingerprint is" in told and "models.targets" not in told
    teachers = made.teachers(dinov2_reg=str(changed_weights(made.folder / "dinov2_reg", tmp_path / "dino")))
    assert "models.targets.fingerprint is" in refused(made.config(teachers=teachers))
    assert "models.videomae.dtype is" in refused(made.config(reconstructor=made.reconstructor(dtype="bfloat16")))
    assert "labels.candidates is 12 there, 9 here" in refused(made.config(labels=LabelsConfig(candidates=9)))
    assert "targets.frames is 1 there, 2 here" in refused(made.config(targets=TargetsConfig(2)))
    assert "targets.frames is 1 there, None here" in refused(made.config(targets=TargetsConfig(0)))
    drawn = made.config(labels=LabelsConfig("paper"), threshold=None, max_ratio=None)
    told = refused(drawn)
    assert "labels.lengths is 'threshold' there, 'paper' here" in told and "threshold is 0.5 there, None here" in told


def test_weights_that_change_under_a_running_job_stop_it(made: Made, tmp_path: Path) -> None:
    settled = resolve_gaze(made.config())
    other = made.reconstructor(checkpoint=str(changed_weights(made.folder / "checkpoint", tmp_path / "other")))
    with pytest.raises(PipelineError, match=r"reconstructor\.checkpoint=.*its weights changed while the job ran"):
        gazers.start(replace(settled, settings=replace(settled.settings, reconstructor=other)), "cpu")


def test_what_cannot_work_is_one_line_before_any_work(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, reconstructor = {"output": str(tmp_path / "out")}, made.reconstructor
    nowhere = reconstructor(checkpoint=str(tmp_path / "nowhere"))
    assert "neither canvas nor an existing checkpoint" in refused(made.config(**new, reconstructor=nowhere))
    assert "use gaze=canvas" in refused(made.config(**new, reconstructor=ReconstructorConfig("canvas")))
    told = refused(made.config(**new, teachers=made.teachers(dinov2_reg="")))
    assert "teacher dinov2_reg is not given" in told and "as teachers.dinov2_reg=facebook/dinov2-with-reg" in told
    plain = ReconstructorConfig(str(PLAIN))
    told = refused(made.config(**new, reconstructor=plain, teachers=TeachersConfig()))
    assert "targets.frames=1" in told and "trained without teachers (l1), so there is nothing to store" in told
    assert "leave teachers.dinov2_reg out" in refused(made.config(**new, reconstructor=plain))
    told = refused(made.config(**new, clip=ClipConfig(frames=17)))
    assert "clip.frames=17: this reconstructor takes 16 frames at most" in told
    broken = Path(shutil.copytree(PLAIN, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    assert cli.main(["preprocess", *made.settings(tmp_path / "out", str(broken))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def labelled(made: Made, config: PreprocessConfig, output: Path) -> dict[str, dict[str, bytes]]:
    """The members of each clip, made by the stage called as Ray calls it."""
    shutil.copytree(made.output, output, ignore=shutil.ignore_patterns("shards", "index"))
    dataset = open_dataset(str(output))
    gaze, decoding = resolve_gaze(config), Decoding(DecodeConfig(), config.frames)
    with one_torch_thread(), closing(PreprocessStage(str(output), dataset.plan, gaze, decoding, "cpu")) as stage:
        for shard in range(dataset.shards):
            done = stage({"shard": shard})
            assert config.threshold is not None or done["met"] == done["ok"]
    return {row["clip"]: dataset.read_clip(row) for row in rows_of(dataset)}


def test_drawn_lengths_depend_on_the_clips_name_and_the_seed(made: Made, tmp_path: Path) -> None:
    open_ended = {"threshold": None, "max_ratio": None, "targets": TargetsConfig(0), "teachers": TeachersConfig()}
    options = {
        "canvas": {"gaze": "canvas", "reconstructor": ReconstructorConfig(), "labels": LabelsConfig("paper", seed=3)},
        "videomae": {
            "reconstructor": ReconstructorConfig(str(PLAIN)),
            "labels": LabelsConfig("paper", seed=3, candidates=4, step=4),
        },
    }
    for name, changes in options.items():
        clips = labelled(made, made.config(**open_ended, **changes), tmp_path / name)
        wanted = paper_lengths(list(clips), 2, seed=3)
        assert not torch.equal(wanted, paper_lengths(list(clips), 2, seed=0))
        found = torch.cat([Gaze.from_npz(members["gaze.npz"]).lengths for members in clips.values()])
        assert torch.equal(found, wanted), name


def test_canvas_gaze_can_have_targets_too_and_unencoded_frames_are_their_own(
    made: Made, reconstructor: VideoMAE, frames: dict[str, np.ndarray], tmp_path: Path
) -> None:
    config = made.config(gaze="canvas", labels=LabelsConfig(), targets=TargetsConfig(2), frames="raw")
    assert set(resolve_gaze(config).models) == {"canvas", "targets"}
    labelled(made, config, tmp_path / "canvas")
    dataset, loss = open_dataset(str(tmp_path / "canvas")), reconstructor.frame_loss
    for row in rows_of(dataset):
        targets = read_targets(dataset, row, loss)
        assert targets is not None and targets.at.tolist() == [0, 1]
        with one_torch_thread():
            wanted = loss.targets(reconstructor.normalised(torch.from_numpy(frames[row["clip"]])))
        assert all(torch.equal(a, b.half()) for a, b in zip(targets.features.values(), wanted, strict=True))


def test_verify_notices_targets_that_are_not_those_promised(made: Made, tmp_path: Path) -> None:
    def told(name: str, **config: Any) -> str:
        """What verify says of the dataset if dataset.json promised something else."""
        folder = Path(shutil.copytree(made.output, tmp_path / name))
        about = json.loads((folder / "dataset.json").read_text())
        about["config"] |= config.pop("config", {})
        about["models"] |= config
        (folder / "dataset.json").write_text(json.dumps(about))
        return " ".join(verify(str(folder)).problems)

    assert told("same") == ""
    assert "not of the 2 that its name chooses" in told("more", config={"targets": {"frames": 2}})
    assert "targets of other teachers" in told("other", targets={"fingerprint": "f00d"})
    lost = Path(shutil.copytree(made.output, tmp_path / "lost"))
    dataset = open_dataset(str(lost))
    rows = rows_of(dataset)
    members = dataset.read_clip(rows[0])
    kept = [(name, data) for name, data in members.items() if name.endswith(".jpg")]
    outcome = Outcome(gaze=Gaze.from_npz(io.BytesIO(members["gaze.npz"])), members=kept)
    planned = dataset.plan.clips_of(0)
    commit_shard(str(lost), 0, *build_shard(planned, [outcome], THRESHOLD))
    assert "no targets stored, those of 1 frames expected" in " ".join(verify(str(lost)).problems)


# -- rewards -----------------------------------------------------------------------------------------------------------


def rewards(made: Made, *words: str) -> tuple[Group, RolloutMaker]:
    """A group of the dataset's first clip, rewarded by the learned reconstructor."""
    teachers = [f"teachers.{name}={place}" for name, place in made.teachers().given().items()]
    places = [f"data={made.output}", f"reconstructor={made.folder / 'checkpoint'}"]
    small = ["policy.hidden_size=16", "policy.num_layers=1", "policy.num_heads=2", "policy.intermediate_size=16"]
    how = ["sample.group=3", "sample.strategy=ratio", "max_ratio=0.02", "loader.val_fraction=0"]
    config = load(RLConfig, [*places, *teachers, *small, *how, *words])
    task = training.task_of(config)(config, torch.device("cpu"))
    assert isinstance(task, RLTask)
    maker = RolloutMaker(config, task.policy.config, None, 4, torch.device("cpu"))
    maker.load(0, task._weights())
    return maker.make(RolloutRequest(0, 0, 0, 0)), maker


def test_rl_rewards_are_measured_against_the_stored_targets(made: Made, reconstructor: VideoMAE, monkeypatch) -> None:
    """Where a rewarded frame has them, no teacher looks at its original again; where it has none, one does."""
    seen: list[int] = []
    targets = FrameLoss.targets
    monkeypatch.setattr(FrameLoss, "targets", lambda loss, frames: seen.append(len(frames)) or targets(loss, frames))
    group, maker = rewards(made, "objective.frames=2")
    dataset = open_dataset(str(made.output))
    stored = read_targets(dataset, next(row for row in rows_of(dataset) if row["clip"] == group.clip))
    assert stored is not None and sum(seen) == len(set(group.at.tolist()) - set(stored.at.tolist()))
    clip = maker.reader.read([0]).frames[:, : len(group.slots)]
    at, gaze = group.at.tolist(), group.gaze(reconstructor.vocabulary)
    loss, has = reconstructor.frame_loss, stored.at.tolist()
    each = [
        stored.for_frames([t]) if t in has else loss.targets(reconstructor.normalised(clip[0, [t]]).float()) for t in at
    ]
    held = [torch.cat([features.float() for features in teacher]) for teacher in zip(*each, strict=True)]
    wanted = [reconstructor.reconstruct(clip, one, at, held).error[0] for one in gaze]
    assert np.array_equal(group.errors, torch.stack(wanted).numpy())

    monkeypatch.undo()  # and they are what the teachers say, but for float16
    computed = [reconstructor.reconstruct(clip, one, at).error[0].numpy() for one in gaze]
    np.testing.assert_allclose(group.errors, computed, rtol=1e-3)
    maker.close()


def test_rl_refuses_targets_of_other_teachers(made: Made, tmp_path: Path) -> None:
    other = changed_weights(made.folder / "dinov2_reg", tmp_path / "dino")
    with pytest.raises(PipelineError, match=r"targets are of .* the loss has"):
        rewards(made, f"teachers.dinov2_reg={other}")
