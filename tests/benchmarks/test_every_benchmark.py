"""Every benchmark runs at its smallest size, against what it measures today. tests/benchmarks/test_gpu_command.py has
those of `make gpu`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import places, s3_servers
from tests.support.encoders import write_encoder
from tests.support.videos import write_video

FOLDER = places.ROOT / "benchmarks"
# Modules of the others; and what needs a clone of the reference, or a download.
MODULES = {"arithmetic", "counting", "results", "reference", "dinov2_small", "scale_plan", "watched", "readers"}
# VIDEOS, DATASET and ENCODER stand for folders that the test makes, OUT for a new one; then what each must print.
SMALLEST = {
    "canvas_greedy": ("--corpus VIDEOS --clips 2 --batch 2 --threshold 0.05 --repeats 1 --plain 1", "frames/s"),
    "clips": ("--videos VIDEOS --output OUT --clips 1 --tokens 2", ""),
    "decode": ("--corpus VIDEOS --files 2 --rounds 1 --decoders pyav", "clips/s"),
    "distillation": (
        "--encoder ENCODER --student ENCODER --corpus VIDEOS --scales 224 --stride 2 --shares 0.25",
        "stalest",
    ),
    "encode": ("--data DATASET --small", "gazed beside dense"),
    "generation": ("--batch 1 --rounds 1 --repeats 1 --float32-only", "forward and backward"),
    "gpu": ("--device cpu --seconds 5 --only profile --output OUT", ""),
    "gpu_profile": ("--device cpu --batch 1 --units gaze --top 1", ""),
    "labels": ("--corpus VIDEOS --clips 1 --tokens 1 --frames 2 --rounds 1", ""),
    "launches": ("--narrow --frames 2 --units gaze-1 vision --calls 3", "launches"),
    "loader": ("--corpus VIDEOS --videos 2 --per-video 1 --rounds 1 --samples 1000", ""),
    "loader --million": ("--corpus VIDEOS --million --samples 1000", ""),
    "memory": ("--corpus VIDEOS --sizes 1 2", ""),
    "pipeline": ("--corpus VIDEOS --videos 2 --per-video 1", "speed of light"),
    "precision": ("--clips 1 --frames 2 --gazes 2 --tries 2", "rewards"),
    "reconstructor_learning": ("--data DATASET --clips 1 tiny=tests/golden/videomae_tiny", ""),
    "refiner": (
        "--data DATASET --clips 1 --frames 1 --label-clips 1 --label-frames 1 --tokens 1 --candidates 2",
        "shown",
    ),
    "rl": ("--data DATASET --steps 2 --rounds 1 --ratio 0.01 --group 2", "trajectories/s"),
    "rl_learning": ("--data DATASET --clips 1 small=tests/golden/autogaze_small_k4", ""),
    "rl_learning --verify": (
        "--data DATASET --clips 1 --search 1 --verify --error 0.2 small=tests/golden/autogaze_small_k4",
        "verified",
    ),
    "rl_learning --temperatures": (
        "--data DATASET --clips 1 --temperatures 1 --group 2 small=tests/golden/autogaze_small_k4",
        "better than greedy",
    ),
    "roofline": ("--batch 1 --rounds 1", "floor"),
    "s3": ("--corpus VIDEOS --videos 2 --per-video 1 --rounds 1", "s3 / disk"),
    "scale": ("index --samples 2000 --shard 100", "first"),
    "scale --s3": ("index --samples 2000 --shard 100 --merged --s3 1 --rounds 1", "requests"),
    "scale plan": ("plan --videos 1000 --shards 20", "CPU s"),
    "sizing": ("--hours 100 --minutes 1 --sizes 64x48 --strides 1 --measure-s 0.01", "hours of video an hour"),
    "sizing_check": (
        "--rules --cases 1 --shards 2 --nodes 2 --corpus VIDEOS --measure-s 0.01 --keys clip.per_video=1",
        "error",
    ),
    "thresholds": ("--corpus VIDEOS --clips 1 --thresholds 0.05", "patches"),
    "tiling": ("--frames 2 --height 224 --width 224", ""),
    "train": ("--data DATASET --small --batch 1 --steps 2 --every 1", ""),
    "training_memory": ("--narrow --clips 1 2", "clips fit"),
    "two_stages": ("--corpus VIDEOS --videos 2 --per-video 2 --shard 2", "stages"),
    "verified": (
        "--data DATASET --policy tests/golden/autogaze_small_k4 --threshold 0.1 --max-ratio 0.05 --go-on 1 --clips 1",
        "greedy alone",
    ),
    "vision": ("speed --rounds 1 --ratios 0.1", ""),
    "vision fidelity": ("fidelity --encoder ENCODER --corpus VIDEOS --scales 224 --stride 2 --shares 0.25", "stalest"),
}


def test_each_is_tried() -> None:
    scripts = {file.stem for file in FOLDER.glob("*.py")}
    assert {name.split()[0] for name in SMALLEST} == scripts - MODULES


def test_make_bench_runs_those_that_need_nothing_but_videos() -> None:
    recipe = (places.ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    ran = set(re.findall(r"benchmarks/(\w+)\.py", recipe))
    needs_more = {
        "clips",
        "distillation",
        "encode",
        "gpu",
        "gpu_profile",
        "reconstructor_learning",
        "refiner",
        "rl_learning",
        "verified",
        "vision",
    }
    assert {name.split()[0] for name in SMALLEST} - ran - needs_more == set()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        write_video(folder / f"{number}.mp4", frames=36, size=(64, 48), seed=number)
    return folder


@pytest.fixture(scope="module")
def dataset(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "gaze"
    done = run("clips", ["--videos", str(videos), "--output", str(folder), "--clips", "2", "--tokens", "2"])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "siglip")


def run(name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        command, cwd=places.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_at_its_smallest_size(
    name: str, videos: Path, dataset: Path, encoder: Path, tmp_path: Path
) -> None:
    if "s3" in name and s3_servers.rclone() is None:
        pytest.skip("rclone with `serve s3` is not installed")
    line, printed = SMALLEST[name]
    there = {"VIDEOS": videos, "DATASET": dataset, "ENCODER": encoder, "OUT": tmp_path / "out"}
    done = run(name.split()[0], [str(there.get(word, word)) for word in line.split()])
    assert done.returncode == 0, done.stderr[-3000:]
    assert printed in done.stdout and (printed or done.stdout or (tmp_path / "out").exists()), done.stdout


def test_what_the_reference_imports_and_does_not_use_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("reference_runner", FOLDER / "reference.py")
    assert spec is not None and spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, runner.StandIns("not_here", "numpy")])
    import not_here
    import numpy
    from not_here.models.layers import DropPath, trunc_normal_  # type: ignore[import-not-found]

    assert not_here.models.layers.DropPath is trunc_normal_ and hasattr(numpy, "ndarray")
    with pytest.raises(ModuleNotFoundError, match=r"not_here\.models.layers is used after all: install it"):
        DropPath(0.1)
