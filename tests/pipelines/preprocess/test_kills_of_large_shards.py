"""Shards of several hundred clips, and a video longer than two of them, while everything dies in the middle of a spool.

Afterwards the bytes are those of an undisturbed run, and nothing half written is left anywhere.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from pipelines.dataset import shards
from pipelines.inspection.verify import verify
from pipelines.storage import s3
from tests.support import runs, s3_servers
from tests.support.runs import Run
from tests.support.spools import kill_two_in_a_spool, spool_folder, spooled, stored
from tests.support.videos import write_video
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1700)]
SETTINGS = ["clip.frames=2", "clip.per_video=1000", "shard.clips=320", "threshold=0.1"]
PLACE = f"s3://{s3_servers.BUCKET}/gaze"
MB = 1_000_000


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of 719 clips, four of 119, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("large")
    for name, frames in (("a", 720), ("b", 120), ("c", 120), ("e", 120), ("f", 120)):
        write_video(folder / f"{name}.mp4", frames=frames, size=(64, 48), seed=ord(name))
    (folder / "d.mp4").write_bytes(b"this is no video" * 100)
    return folder


@pytest.fixture(scope="module")
def made(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The undisturbed run, without Ray."""
    output, settings = tmp_path_factory.mktemp("made") / "gaze", [f"input={videos}", *SETTINGS]
    done = runs.plainly("preprocess", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    clips = pd.read_parquet(output / "index").groupby("shard").size()
    assert clips.max() == 320 and len(clips) == 4
    return Run(settings, output, runs.tree(output), done.stdout)


def require_whole(output: Path, made: Run) -> None:
    """Audit it; the tree has what is hidden, too."""
    assert runs.tree(output) == made.files
    assert verify(str(output)).problems == []


def go_on(settings: list[str], output: str) -> None:
    done = runs.autogaze("preprocess", *settings, f"output={output}", "ray.cpus=2")
    assert done.returncode == 0, done.stderr


def test_the_driver_killed_again_and_again_in_the_middle_of_a_spool(made: Run, tmp_path: Path) -> None:
    output, chance, left, struck = tmp_path / "gaze", random.Random(5), set[int](), 0
    for _ in range(4):
        job = runs.start("preprocess", *made.settings, f"output={output}", "ray.cpus=2")
        before, most = set(output.glob("shards/.tmp-*")), chance.uniform(0.01, 4) * MB

        def far(before: set[Path] = before, most: float = most) -> bool:
            return any(path.stat().st_size > most for path in set(output.glob("shards/.tmp-*")) - before)

        def due(job: subprocess.Popen[bytes] = job) -> bool:
            try:
                return job.poll() is not None or far()
            except FileNotFoundError:  # it became its shard
                return False

        wait_until(due)
        left |= set(runs.descendants(job.pid))
        struck += job.poll() is None
        runs.kill(job.pid)
        job.wait()
    assert struck >= 2, "it was in the middle"
    go_on(made.settings, str(output))
    assert runs.all_gone(left), "a killed driver leaves no process behind"
    require_whole(output, made)


@pytest.mark.parametrize("stage", ["PreprocessStage", "pipelines.video.child"])
def test_an_actor_or_a_decoder_killed_in_the_middle_of_a_spool(made: Run, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "gaze"
    kill_two_in_a_spool("preprocess", made, output, stage, 3 * MB // 10)
    require_whole(output, made)


def test_a_raylet_that_is_killed_is_one_line_and_the_same_command_goes_on(made: Run, tmp_path: Path) -> None:
    output = tmp_path / "gaze"
    words = [*made.settings, f"output={output}", "ray.cpus=2"]
    with (tmp_path / "told").open("w+") as told:
        command = runs.command("preprocess", *words)
        job = subprocess.Popen(command, env=runs.environment(), stdout=subprocess.DEVNULL, stderr=told)
        wait_until(lambda: spooled(output) > 0.3 * MB or job.poll() is not None, every=0.02)
        [raylet] = [pid for pid, line in runs.descendants(job.pid).items() if "/raylet/raylet " in line]
        runs.kill(raylet)
        assert job.wait() == 1
        told.seek(0)
        [line] = told.read().splitlines()
    assert line.startswith("Ray's raylet on this machine died") and line.endswith("it continues")
    go_on(made.settings, str(output))
    require_whole(output, made)


def test_a_node_lost_with_all_that_ran_on_it(made: Run, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    output = tmp_path / "gaze"
    try:
        node = cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
        words = [*made.settings, f"output={output}", "workers.decode=4", "workers.gaze=2"]
        job = runs.start("preprocess", *words, f"ray.address={cluster.address}")
        assert wait_until(lambda: spooled(output) > MB or job.poll() is not None, every=0.02)
        below = runs.descendants(node.all_processes["raylet"][0].process.pid)
        assert any("PreprocessStage" in line for line in below.values()), "a shard was being made there"
        assert job.poll() is None
        cluster.remove_node(node, allow_graceful=False)
        for pid in below:
            runs.kill(pid)
        assert job.wait() == 0
    finally:
        cluster.shutdown()
    require_whole(output, made)


@pytest.fixture(scope="module")
def raw(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As `made`, with frames as they are: tars of 96 MB, of which an upload has two parts."""
    output = tmp_path_factory.mktemp("raw") / "gaze"
    settings = [f"input={videos}", *SETTINGS, "frames=raw"]
    done = runs.plainly("preprocess", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    return Run(settings, output, runs.tree(output), done.stdout)


def test_a_store_that_goes_away_in_the_middle_of_an_upload(
    raw: Run, s3_server: s3_servers.Rclone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools = spool_folder(monkeypatch, tmp_path / "tmp")
    job = runs.start("preprocess", *raw.settings, f"output={PLACE}", "ray.cpus=2")
    for _ in range(2):
        wait_until(lambda: s3.uploads(PLACE)[0] or job.poll() is not None, every=0.02)
        assert job.poll() is None, "it ended before its store could go away"
        with s3_server.away(14):
            pass
    assert job.wait() == 0
    assert stored(s3_server, "gaze") == raw.files and not list(spools.iterdir())
    assert s3.uploads(PLACE) == ([], None) and verify(PLACE).problems == []


def test_killed_in_the_middle_of_an_upload(
    raw: Run, s3_server: s3_servers.Rclone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools = spool_folder(monkeypatch, tmp_path / "tmp")
    for _ in range(2):
        job = runs.start("preprocess", *raw.settings, f"output={PLACE}", "ray.cpus=2")
        before = {upload.id for upload in s3.uploads(PLACE)[0]}
        wait_until(
            lambda before=before, job=job: (
                {upload.id for upload in s3.uploads(PLACE)[0]} - before or job.poll() is not None
            ),
            every=0.02,
        )
        assert job.poll() is None, "it ended before it could be killed"
        for pid in [job.pid, *runs.descendants(job.pid)]:
            runs.kill(pid)
        job.wait()
    assert s3.uploads(PLACE)[0] and list(spools.iterdir()), "it was in the middle"
    go_on(raw.settings, PLACE)
    assert stored(s3_server, "gaze") == raw.files and not list(spools.iterdir())
    assert s3.uploads(PLACE) == ([], None) and verify(PLACE).problems == []


@pytest.fixture
def disk(small_disk: Path) -> Path:
    """A disk with room for half a shard."""
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    return small_disk


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=900m", disk], check=True)


def test_a_disk_that_is_full_in_the_middle_of_a_spool(made: Run, disk: Path) -> None:
    output = disk / "gaze"
    for _ in range(2):
        full = runs.autogaze("preprocess", *made.settings, f"output={output}", "ray.cpus=2")
        assert full.returncode == 2 and full.stderr.count("\n") == 1, full.stderr
        assert "no space left on the device" in full.stderr
    grow(disk)
    go_on(made.settings, str(output))
    require_whole(output, made)


def test_a_disk_that_is_full_when_a_shard_is_committed(made: Run, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tar is there, and its index has no room."""
    grow(disk)
    output, publish, filler = disk / "gaze", shards.store.publish, disk / "filler"

    def publish_on_a_full_disk(data: bytes, url: str) -> None:
        if "/index/" in url:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as out:
                while True:
                    out.write(bytes(4096))
        publish(data, url)

    with monkeypatch.context() as patch:
        patch.setattr(shards.store, "publish", publish_on_a_full_disk)
        full = runs.plainly("preprocess", *made.settings, f"output={output}")
    assert full.returncode == 2 and "no space left on the device" in full.stderr and full.stderr.count("\n") == 1
    assert [path.name for path in output.glob("shards/*")] == ["000000.tar"] and not list(output.glob("index/*"))
    filler.unlink()
    done = runs.plainly("preprocess", *made.settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    require_whole(output, made)


def test_a_spool_without_room_for_what_goes_to_a_store(
    raw: Run, s3_server: s3_servers.Rclone, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    full = runs.plainly("preprocess", *raw.settings, f"output={PLACE}")
    assert full.returncode == 2 and f"{disk}/autogaze-spool-" in full.stderr and full.stderr.count("\n") == 1
    assert "no space left on the device" in full.stderr and not list(disk.glob("autogaze-spool-*/*"))
    grow(disk)
    done = runs.plainly("preprocess", *raw.settings, f"output={PLACE}")
    assert done.returncode == 0, done.stderr
    assert stored(s3_server, "gaze") == raw.files and not list(disk.glob("autogaze-spool-*/*"))
    assert s3.uploads(PLACE) == ([], None)


def test_the_proxy_of_a_store_refuses_a_part_for_good(
    raw: Run, s3_proxy: s3_servers.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denied in the middle of an upload: one line, and the upload is taken back at once."""

    def denied(request: s3_servers.Request) -> bool:
        return "partNumber=2" in request.path and request.refuse(403, "AccessDenied")

    s3_proxy.fault = denied
    refused = runs.plainly("preprocess", *raw.settings, f"output={PLACE}")
    assert refused.returncode == 2 and "permission denied" in refused.stderr and refused.stderr.count("\n") == 1
    assert s3.uploads(PLACE) == ([], None)
