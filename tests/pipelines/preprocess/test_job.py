"""pipelines.preprocess.job from end to end: outcomes, resuming, worker counts, clusters, storage, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipelines.dataset.shards import open_dataset
from pipelines.inspection.verify import verify
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import plan_job, resume
from tests.support import runs
from tests.support.plain_ray_data import plain_ray_data
from tests.support.runs import Run
from tests.support.waiting import wait_until


def test_every_planned_clip_has_exactly_one_row(undisturbed: Run, store_of_videos: Path) -> None:
    plan = open_dataset(str(undisturbed.output)).plan.rows()
    index = pd.read_parquet(undisturbed.output / "index")
    assert sorted(index["clip"]) == sorted(plan["clip"]) and index["clip"].is_unique
    videos = {str(path) for path in store_of_videos.rglob("*.mp4")}
    assert set(index["video"]) == videos
    failed = index[index["outcome"] == "failed"]
    assert failed[["video", "reason"]].to_numpy().tolist() == [[str(store_of_videos / "broken.mp4"), "unreadable"]]
    good = index[index["outcome"] == "ok"]
    assert (good["met"] == 1).all() and (good["loss"] <= 0.02).all() and (good["tokens"] > 0).all()


def test_the_dataset_verifies_and_holds_nothing_that_varies(undisturbed: Run) -> None:
    assert verify(str(undisturbed.output)).problems == []
    assert {name.split("/")[0] for name in undisturbed.files} == {
        "dataset.json",
        "manifest.parquet",
        "plan.parquet",
        "shards",
        "index",
    }
    about = json.loads((undisturbed.output / "dataset.json").read_text())
    assert about["config"]["threshold"] == 0.02 and "workers" not in about["config"]
    assert about["software"]["decoder"].startswith("pyav-")


def test_the_summary_and_the_run_record_say_what_happened(undisturbed: Run) -> None:
    (record_file,) = Path(f"{undisturbed.output}.runs").iterdir()
    record = json.loads(record_file.read_text())
    index = pd.read_parquet(undisturbed.output / "index")
    good = index[index["outcome"] == "ok"]
    assert record["status"] == "done" and record["clips"] == {"ok": len(good), "failed": 1}
    assert record["tokens"] == good["tokens"].sum() and record["frames"] == good["frames"].sum()
    assert record["slowest_stage"] in ("decode", "gaze") and 0 < record["speed_of_light"] <= 1
    assert list(record["start_up"]) == ["ray", "plan", "actors", "first_shard"]
    assert sum(record["start_up"].values()) > 0 and min(record["start_up"].values()) >= 0
    for part in (f"{len(good)} ok, 1 failed", "1 unreadable", "x fewer", "slowest stage", "autogaze report"):
        assert part in undisturbed.printed


def test_a_finished_job_does_nothing(undisturbed: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.output.rglob("*")}
    done = runs.plainly("preprocess", *undisturbed.settings, f"output={undisturbed.output}")
    assert done.returncode == 0 and "nothing to do" in done.stdout
    folders = {undisturbed.output}  # where it proved that it may write
    assert {p: t for p, t in before.items() if p not in folders} == {
        p: p.stat().st_mtime_ns for p in undisturbed.output.rglob("*") if p not in folders
    }


@pytest.mark.parametrize("decode, gaze", [(2, 1), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_any_number_of_workers_of_which_one_dies_gives_the_same_bytes(
    undisturbed: Run, joins: list[str], tmp_path: Path, decode: int, gaze: int
) -> None:
    output, killed = tmp_path / "gaze", list[int]()

    def kill_one() -> None:
        wait_until(lambda: any(output.glob("index/*.parquet")), every=0.01)
        actors = [pid for pid, line in runs.descendants(os.getpid()).items() if "PreprocessStage" in line]
        for pid in actors[:1]:
            runs.kill(pid)
            killed.append(len(list(output.glob("index/*.parquet"))))

    killer = threading.Thread(target=kill_one)
    killer.start()
    workers = [f"workers.decode={decode}", f"workers.gaze={gaze}", joins[0]]
    done = runs.here("preprocess", *undisturbed.settings, f"output={output}", *workers)
    killer.join()
    assert done.returncode == 0, done.stderr
    assert killed and killed[0] < len(list(output.glob("index/*.parquet"))), "in the middle"
    assert runs.tree(output) == undisturbed.files


@pytest.mark.slow
def test_a_three_node_cluster_that_loses_a_node_gives_the_same_bytes(undisturbed: Run, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    output = tmp_path / "gaze"
    try:
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=200 << 20) for _ in range(2)]
        workers = ["workers.decode=4", "workers.gaze=2", f"ray.address={cluster.address}"]
        job = runs.start("preprocess", *undisturbed.settings, f"output={output}", *workers)
        assert wait_until(lambda: list(output.glob("index/*.parquet")) or job.poll() is not None)
        assert job.poll() is None, "the job ended before a node could be taken from it"
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert job.wait() == 0
    finally:
        cluster.shutdown()
    assert runs.tree(output) == undisturbed.files


def copy_of(run: Run, place: Path) -> Path:
    return Path(shutil.copytree(run.output, place / "gaze"))


def shards_of(output: Path, video: Path) -> list[int]:
    plan = open_dataset(str(output)).plan.rows()
    return sorted(set(plan[plan["video"] == str(video)]["shard"]))


def test_a_video_that_went_away_is_recorded_and_retried_once_it_is_back(
    undisturbed: Run, store_of_videos: Path, tmp_path: Path
) -> None:
    output, video = copy_of(undisturbed, tmp_path), store_of_videos / "clip3.mp4"
    touched = shards_of(output, video)
    for shard in touched:
        (output / "index" / f"{shard:06d}.parquet").unlink()
    arguments = [*undisturbed.settings, f"output={output}"]
    video.rename(tmp_path / "aside.mp4")
    try:
        gone = runs.plainly("preprocess", *arguments)
    finally:
        (tmp_path / "aside.mp4").rename(video)
    assert gone.returncode == 0, gone.stderr
    assert "the input changed since this dataset was planned (0 new, 0 changed, 1 gone)" in gone.stdout
    index = pd.read_parquet(output / "index")
    assert set(index[index["video"] == str(video)]["reason"]) == {"missing"}
    assert (index[index["video"] != str(video)]["reason"].dropna() == "unreadable").all()
    again = runs.plainly("preprocess", *arguments, "retry=failed")
    assert again.returncode == 0 and runs.tree(output) == undisturbed.files


def test_a_video_whose_bytes_changed_is_not_taken_for_the_planned_one(
    undisturbed: Run, store_of_videos: Path, tmp_path: Path
) -> None:
    output, video = copy_of(undisturbed, tmp_path), store_of_videos / "clip2.mp4"
    for shard in shards_of(output, video):
        (output / "index" / f"{shard:06d}.parquet").unlink()
    original, stamp = video.read_bytes(), video.stat().st_mtime_ns
    video.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        done = runs.plainly("preprocess", *undisturbed.settings, f"output={output}")
    finally:
        video.write_bytes(original)
        os.utime(video, ns=(stamp, stamp))
    assert done.returncode == 0, done.stderr
    index = pd.read_parquet(output / "index")
    assert set(index[index["video"] == str(video)]["reason"]) == {"source_changed"}


def test_a_dry_run_writes_nothing_but_its_scan(undisturbed: Run, tmp_path: Path) -> None:
    done = runs.plainly("preprocess", *undisturbed.settings, f"output={tmp_path / 'gaze'}", "--dry-run")
    assert done.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["gaze.scan"]
    plan = open_dataset(str(undisturbed.output)).plan.rows()
    for part in (f"{len(plan)} planned", f"{plan['shard'].nunique()} planned", "estimated bytes"):
        assert part in done.stdout


@pytest.mark.parametrize(
    "change, told",
    [
        ("threshold=0.1", "threshold is 0.02 there, 0.1 here"),
        ("clip.frames=8", "clip.frames is 16 there, 8 here"),
        ("frames=raw", "frames is 'jpeg' there, 'raw' here"),
    ],
)
def test_an_output_of_another_config_is_refused_by_the_name_of_the_field(
    undisturbed: Run, change: str, told: str
) -> None:
    done = runs.plainly("preprocess", *undisturbed.settings, f"output={undisturbed.output}", change)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert runs.tree(undisturbed.output) == undisturbed.files


def test_bad_places_are_one_clear_line_and_leave_nothing(store_of_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    output = tmp_path / "out"
    for source, place, told in (
        (tmp_path / "nowhere", output, "does not exist"),
        (tmp_path / "empty", output, "no videos among its 0 files"),
        (tmp_path / "texts", output, "no videos among its 1 files"),
        (store_of_videos, tmp_path / "texts" / "a.txt" / "gaze", "a part of this path is a file"),
        (store_of_videos, "/proc/gaze", "/proc/gaze"),
    ):
        done = runs.plainly("preprocess", f"input={source}", f"output={place}")
        assert done.returncode == 2 and told in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
        assert not output.exists() or list(output.rglob("*")) == []


def test_too_many_failures_stop_the_job_and_keep_what_is_committed(undisturbed: Run, tmp_path: Path) -> None:
    output = tmp_path / "gaze"
    done = runs.plainly("preprocess", *undisturbed.settings, f"output={output}", "max_failed_fraction=0.01")
    assert done.returncode == 2 and "1 unreadable" in done.stderr and "max_failed_fraction=0.01" in done.stderr
    assert open_dataset(str(output)).committed()
    again = runs.plainly("preprocess", *undisturbed.settings, f"output={output}", "max_failed_fraction=0.01")
    assert again.returncode == 2 and again.stderr == done.stderr, "failures of earlier runs count"
    higher = runs.plainly("preprocess", *undisturbed.settings, f"output={output}")
    assert higher.returncode == 0 and runs.tree(output) == undisturbed.files


def test_the_time_limit_of_decoding_holds_for_the_scan_too(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "counted.avi", frames=60, size=(640, 480))  # probing it decodes it all
    config = PreprocessConfig(str(video), str(tmp_path / "gaze"), decoder_timeout_s=1e-6)
    with plain_ray_data():
        assert plan_job(config).plan.refused(range(1)) == {"decoder_timeout": 1}


def test_a_name_that_is_not_utf8_is_no_change_of_the_input(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "videos" / "good.mp4", frames=4)
    os.link(video, os.fsencode(video.parent) + b"/bad\xff.mp4")
    config = PreprocessConfig(str(video.parent), str(tmp_path / "gaze"))
    with plain_ray_data():
        plan_job(config)
    job = resume(config)
    assert job is not None and job.notice == ""


@pytest.mark.parametrize("run", [runs.plainly, pytest.param(runs.autogaze, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_clear_line_and_the_job_goes_on_when_there_is_room(
    undisturbed: Run, small_disk: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    output = small_disk / "gaze"
    arguments = [*undisturbed.settings, f"output={output}"]
    full = run("preprocess", *arguments, "ray.cpus=2")
    assert full.returncode == 2 and "no space left on the device" in full.stderr and full.stderr.count("\n") == 1
    assert not [name for name in runs.tree(output) if ".tmp-" in name]
    for shard in open_dataset(str(output)).committed():
        name = f"index/{shard:06d}.parquet"
        assert runs.tree(output)[name] == undisturbed.files[name]
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    again = runs.plainly("preprocess", *arguments)
    assert again.returncode == 0 and runs.tree(output) == undisturbed.files
