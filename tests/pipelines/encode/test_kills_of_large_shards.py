"""Features in shards of several hundred clips, while everything dies in the middle of a spool or of an upload.

Afterwards the bytes are those of an undisturbed run, and nothing half written is left anywhere.
"""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest

from pipelines.inspection.verify import verify
from pipelines.storage import s3
from tests.support import runs, s3_servers
from tests.support.encoders import write_encoder
from tests.support.runs import Run
from tests.support.spools import kill_two_in_a_spool, spool_folder, spooled, stored
from tests.support.videos import write_video
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1700)]
CLIPS = ["clip.frames=2", "clip.per_video=1000", "shard.clips=320", "threshold=0.1", "frames=none"]
PLACE = f"s3://{s3_servers.BUCKET}/features"
MB = 1_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Features of a video of 719 clips, two of 119 and one that cannot be read, which are decoded anew; without Ray."""
    folder = tmp_path_factory.mktemp("large")
    videos, gaze, output = folder / "videos", folder / "gaze", folder / "features"
    videos.mkdir()
    for name, frames in (("a", 720), ("b", 120), ("c", 120)):
        write_video(videos / f"{name}.mp4", frames=frames, size=(64, 48), seed=ord(name))
    (videos / "d.mp4").write_bytes(b"this is no video" * 100)
    done = runs.plainly("preprocess", f"input={videos}", *CLIPS, f"output={gaze}")
    assert done.returncode == 0, done.stderr
    settings = [f"data={gaze}", f"encoder.checkpoint={write_encoder(folder / 'siglip')}", "pooled=both"]
    done = runs.plainly("encode", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(output / "index").groupby("shard").size().max() == 320
    return Run(settings, output, runs.tree(output), done.stdout)


def go_on(made: Run, output: str) -> None:
    done = runs.autogaze("encode", *made.settings, f"output={output}", "ray.cpus=2")
    assert done.returncode == 0, done.stderr


def require_whole(made: Run, output: Path) -> None:
    """Audit it; the tree has what is hidden, too."""
    assert runs.tree(output) == made.files
    assert verify(str(output)).problems == []


def test_the_driver_killed_again_and_again_in_the_middle_of_a_spool(made: Run, tmp_path: Path) -> None:
    output, chance, struck = tmp_path / "features", random.Random(6), 0
    most = max(path.stat().st_size for path in made.output.glob("shards/*"))
    for _ in range(4):
        job = runs.start("encode", *made.settings, f"output={output}", "ray.cpus=2")
        before, far = spooled(output), chance.uniform(0.05, 0.8) * most
        wait_until(
            lambda before=before, far=far, job=job: spooled(output) > before + far or job.poll() is not None, every=0.01
        )
        left = set(runs.descendants(job.pid))
        struck += job.poll() is None
        runs.kill(job.pid)
        job.wait()
        assert runs.all_gone(left), "a killed driver leaves no process behind"
    assert struck >= 2, "it was in the middle"
    go_on(made, str(output))
    require_whole(made, output)


@pytest.mark.parametrize("stage", ["EncodeStage", "pipelines.video.child"])
def test_an_actor_or_a_decoder_killed_in_the_middle_of_a_spool(made: Run, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "features"
    kill_two_in_a_spool("encode", made, output, stage, MB // 10)
    require_whole(made, output)


def test_killed_before_its_upload_and_its_store_away(
    made: Run, s3_server: s3_servers.Rclone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools = spool_folder(monkeypatch, tmp_path / "tmp")
    job = runs.start("encode", *made.settings, f"output={PLACE}", "ray.cpus=2")
    wait_until(lambda: any(spools.glob("*")) or job.poll() is not None, every=0.01)
    assert job.poll() is None, "it ended before it could be killed"
    for pid in [job.pid, *runs.descendants(job.pid)]:
        runs.kill(pid)
    job.wait()
    job = runs.start("encode", *made.settings, f"output={PLACE}", "ray.cpus=2")
    wait_until(lambda: any(spools.glob("*")) or job.poll() is not None, every=0.01)
    with s3_server.away(14):
        pass
    assert job.wait() == 0
    assert stored(s3_server, "features") == made.files and not list(spools.iterdir())
    assert s3.uploads(PLACE) == ([], None) and verify(PLACE).problems == []
