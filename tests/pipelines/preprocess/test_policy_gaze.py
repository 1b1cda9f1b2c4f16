"""gaze=policy: what is stored is what the network gazes at, whoever runs it, and other weights are never mixed in."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from jobs.threads import one_torch_thread
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset.shards import ShardConfig, open_dataset
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.policy import PolicyConfig
from pipelines.inspection.verify import verify
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decoding import Decoding
from pipelines.preprocess.description import describe
from pipelines.preprocess.job import resolve_gaze, resume
from pipelines.preprocess.stage import PreprocessStage
from pipelines.video.base import DecodeConfig
from tests.support import places, runs

CHECKPOINT = places.GOLDEN / "autogaze_small_k10"
RATIO, THRESHOLD = 0.5, 0.7  # what its config.json says


@dataclass(frozen=True)
class Gazed:
    """A dataset that the small golden checkpoint gazed: tiles of a 300x250 video, and a small one."""

    videos: Path
    output: Path
    files: dict[str, str]
    printed: str

    def settings(self, output: Path, checkpoint: Path = CHECKPOINT) -> list[str]:
        named = [f"input={self.videos}", f"output={output}", "gaze=policy", f"policy.checkpoint={checkpoint}"]
        return [*named, "clip.frames=4", "clip.tiles=native", "frames=raw", "shard.clips=5"]

    def config(self, **policy: object) -> PreprocessConfig:
        return PreprocessConfig(
            input=str(self.videos),
            output=str(self.output),
            gaze="policy",
            policy=PolicyConfig(**({"checkpoint": str(CHECKPOINT)} | policy)),  # type: ignore[arg-type]
            clip=ClipConfig(frames=4, tiles="native"),
            shard=ShardConfig(5),
            frames="raw",
        )


@pytest.fixture(scope="module")
def gazed(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Gazed:
    folder = tmp_path_factory.mktemp("policy")
    make_video(folder / "videos" / "wide.mp4", frames=7, size=(300, 250))
    make_video(folder / "videos" / "small.mp4", frames=5, size=(96, 64), seed=1)
    run = Gazed(folder / "videos", folder / "gaze", {}, "")
    done = runs.plainly("preprocess", *run.settings(run.output))
    assert done.returncode == 0, done.stderr + done.stdout
    return replace(run, files=runs.tree(run.output), printed=done.stdout)


@pytest.fixture(scope="module")
def model() -> AutoGaze:
    return AutoGaze.from_pretrained(str(CHECKPOINT))


def changed_weights(folder: Path) -> Path:
    """The same checkpoint but for one number."""
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_stored_gaze_is_that_of_each_stored_clip_alone(gazed: Gazed, model: AutoGaze) -> None:
    assert verify(str(gazed.output)).problems == []
    dataset = open_dataset(str(gazed.output))
    index = dataset.index()
    assert (index["outcome"] == "ok").all() and len(index) == 2 * 4 + 2
    with one_torch_thread():
        for row in index.to_dict("records"):
            members = dataset.read_clip(row)
            frames = np.load(io.BytesIO(members["frames.npy"]))
            alone = model.gaze(frames[None], max_ratio=RATIO, loss_threshold=THRESHOLD)
            stored = Gaze.from_npz(members["gaze.npz"])
            assert stored.frames(0) == alone.frames(0) and all(alone.frames(0))
            assert stored.losses is not None and alone.losses is not None
            torch.testing.assert_close(stored.losses, alone.losses, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(stored.initial, alone.initial, rtol=1e-5, atol=1e-5)
            for name, there in alone.padded().items():
                assert torch.equal(stored.padded()[name], there), name
            assert row["loss"] == np.float32(stored.final().mean())
            assert row["met"] == np.float32(stored.met(THRESHOLD).float().mean())


def test_the_dataset_says_what_gazed_and_in_which_units_and_not_where_it_lay(gazed: Gazed, model: AutoGaze) -> None:
    text = (gazed.output / "dataset.json").read_text()
    about = json.loads(text)
    assert (about["config"]["threshold"], about["config"]["max_ratio"]) == (THRESHOLD, RATIO)
    assert about["models"] == {
        "policy": {
            "fingerprint": model.fingerprint,
            "positions": "reference",
            "dtype": "float32",
            "block_size": 10,
            "batch": 32,
        }
    }
    assert "units" in about and "predicts" in about["units"]
    assert str(CHECKPOINT) not in text
    (record,) = (json.loads(path.read_text()) for path in Path(f"{gazed.output}.runs").iterdir())
    assert record["device"] == "cpu" and record["gaze"] == "policy in float32, 32 clips at once, CUDA graphs off"
    assert record["gaze"] in " ".join(gazed.printed.split())


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_batch_changes_no_gaze_and_only_the_last_digits_of_its_losses(
    gazed: Gazed, tmp_path: Path, batch: int
) -> None:
    """The stage called as Ray calls it."""
    shutil.copytree(gazed.output / "plan.parquet", tmp_path / "plan.parquet")
    shutil.copy(gazed.output / "dataset.json", tmp_path)
    dataset, made = open_dataset(str(gazed.output)), open_dataset(str(tmp_path))
    gaze, decoding = resolve_gaze(gazed.config(batch=batch)), Decoding(DecodeConfig(), "raw")
    with one_torch_thread(), closing(PreprocessStage(str(tmp_path), made.plan, gaze, decoding, "cpu")) as stage:
        for shard in range(dataset.shards):
            stage({"shard": shard})
    if batch == 32:
        assert {name: gazed.files[name] for name in runs.tree(tmp_path)} == runs.tree(tmp_path)
    for there, here in zip(dataset.index().to_dict("records"), made.index().to_dict("records"), strict=True):
        one, two = (Gaze.from_npz(d.read_clip(r)["gaze.npz"]) for d, r in ((dataset, there), (made, here)))
        assert one.frames(0) == two.frames(0)
        assert (one.places is None) == (two.places is None) and torch.equal(one.frame_slots(), two.frame_slots())
        torch.testing.assert_close(one.losses, two.losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", [runs.plainly, pytest.param(runs.autogaze, marks=pytest.mark.slow)])
def test_more_workers_and_a_checkpoint_that_moved_finish_with_the_same_bytes(
    gazed: Gazed, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    output = Path(shutil.copytree(gazed.output, tmp_path / "gaze"))
    for shard in (0, 1):
        (output / "index" / f"{shard:06d}.parquet").unlink()
    (output / "shards" / "000001.tar").unlink()
    moved = Path(shutil.copytree(CHECKPOINT, tmp_path / "moved"))
    done = run("preprocess", *gazed.settings(output, moved), "ray.cpus=4", "workers.decode=2", "workers.gaze=2")
    assert done.returncode == 0 and runs.tree(output) == gazed.files, done.stderr


def refused(config: PreprocessConfig) -> str:
    with pytest.raises(PipelineError) as error:
        resume(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_weights_are_refused_by_the_name_of_what_differs(gazed: Gazed, tmp_path: Path) -> None:
    other = changed_weights(tmp_path / "other")
    assert "models.policy.fingerprint is" in refused(gazed.config(checkpoint=str(other)))
    told = refused(gazed.config(positions="consistent"))
    assert "models.policy.positions is 'reference' there, 'consistent' here" in told
    assert "models.policy.dtype is 'float32' there, 'bfloat16' here" in refused(gazed.config(dtype="bfloat16"))
    assert "threshold is 0.7 there, 0.5 here" in refused(replace(gazed.config(), threshold=0.5))
    canvas = replace(gazed.config(), gaze="canvas", policy=PolicyConfig())
    assert "gaze is 'policy' there, 'canvas' here" in refused(canvas)
    assert "models.policy.batch is 32 there, 7 here" in refused(gazed.config(batch=7))
    assert resume(replace(gazed.config(cuda_graphs="on"), threshold=THRESHOLD, max_ratio=RATIO)) is not None


@pytest.mark.slow
def test_weights_that_change_under_a_running_job_stop_it(gazed: Gazed, tmp_path: Path) -> None:
    settled = resolve_gaze(gazed.config())
    other = replace(settled.settings, policy=PolicyConfig(str(changed_weights(tmp_path / "other"))))
    with pytest.raises(PipelineError, match="its weights changed while the job ran"):
        gazers.start(replace(settled, settings=other), "cpu")


def test_a_checkpoint_that_does_not_load_is_one_line_before_any_work(gazed: Gazed, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(CHECKPOINT, tmp_path / "broken"))
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    for place in (str(broken), str(tmp_path / "nowhere")):
        told = refused(replace(gazed.config(checkpoint=place), output=str(tmp_path / "out")))
        assert place in told
    done = runs.plainly("preprocess", *gazed.settings(tmp_path / "out", broken))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_limit_that_nobody_gives_is_none_and_one_there_must_be(gazed: Gazed, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(CHECKPOINT, tmp_path / "bare"))
    config = json.loads((bare / "config.json").read_text()) | {"has_task_loss_requirement_during_inference": False}
    (bare / "config.json").write_text(json.dumps(config))
    asked = replace(gazed.config(checkpoint=str(bare)), output=str(tmp_path / "out"))
    settled = resolve_gaze(asked)
    assert (settled.threshold, settled.max_ratio, settled.limits) == (None, RATIO, f"max_ratio {RATIO}")
    described = json.loads(json.dumps(describe(asked, settled)))
    assert described["config"]["threshold"] is None and described["config"]["max_ratio"] == RATIO
    assert resolve_gaze(replace(asked, threshold=1.5)).threshold == 1.5
    config["gazing_ratio_config"]["sample_strategy_during_inference"] = "uniform"
    (bare / "config.json").write_text(json.dumps(config))
    assert "names no limits of its own; give threshold= or max_ratio=" in refused(asked)
