"""The same job from s3:// to s3://, against a real HTTP server that speaks S3."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.scan import probe_object
from pipelines.dataset.shards import open_dataset
from pipelines.preprocess.decoding import Decoding
from pipelines.storage import s3, store
from pipelines.video.base import DecodeConfig
from pipelines.video.isolated import IsolatedDecoder
from tests.support import runs, s3_servers
from tests.support.decoding import decode
from tests.support.plans import plan_of
from tests.support.runs import Run
from tests.support.s3_servers import Rclone
from tests.support.waiting import wait_until


def samples(output: Path) -> dict[str, dict[str, bytes]]:
    """What is in each shard, but for the .json files, which name the place of the videos."""
    found = {}
    for shard in output.glob("shards/*.tar"):
        with tarfile.open(shard) as archive:
            wanted = [member for member in archive if not member.name.endswith(".json")]
            found[shard.name] = {member.name: archive.extractfile(member).read() for member in wanted}
    return found


@pytest.mark.slow
def test_s3_to_s3_makes_what_local_to_local_makes(bucket: str, undisturbed: Run, store_of_videos: Path) -> None:
    for path in store_of_videos.rglob("*.mp4"):
        store.publish(path.read_bytes(), f"{bucket}/videos/{path.relative_to(store_of_videos)}")
    arguments = [f"input={bucket}/videos", f"output={bucket}/gaze", "shard.clips=2", "ray.cpus=2"]
    done = runs.autogaze("preprocess", *arguments)
    assert done.returncode == 0, done.stderr
    index = open_dataset(f"{bucket}/gaze").index()
    local = pd.read_parquet(undisturbed.output / "index")
    same = ["clip", "shard", "position", "start", "outcome", "reason", "tokens", "ratio", "loss", "met"]
    pd.testing.assert_frame_equal(
        index.sort_values("clip")[same].reset_index(drop=True), local.sort_values("clip")[same].reset_index(drop=True)
    )
    checked = runs.autogaze("verify", f"{bucket}/gaze")
    assert checked.returncode == 0 and "all good" in checked.stdout
    store.remove(f"{bucket}/gaze/index/000001.parquet")
    again = runs.autogaze("preprocess", *arguments)
    assert again.returncode == 0 and "2 clips in 1 shard (9 of 10 shards done before)" in again.stdout
    everything = b"".join(store.read(entry.url) for entry in store.list_objects(f"{bucket}/gaze"))
    assert b"must-not-leak" not in everything and "must-not-leak" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "setting, long, short", [("cache_mb=100", 1, 1), pytest.param("cache_mb=0", 5, 2, marks=pytest.mark.slow)]
)
def test_a_video_is_fetched_once_for_all_of_its_shards(
    s3_server: Rclone,
    make_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    long: int,
    short: int,
) -> None:
    served = s3_server.folder / s3_servers.BUCKET
    make_video(served / "videos" / "long.mp4", frames=16 * 9)
    make_video(served / "videos" / "short.mp4", frames=30, seed=1)
    proxy, fetched = s3_servers.Proxy(s3_server.url), Counter[str]()

    def count(request: s3_servers.Request) -> bool:
        fetched[request.command + " " + request.path.split("?")[0].rsplit("/", 1)[-1]] += 1
        return False

    proxy.fault = count
    s3_servers.use(monkeypatch, proxy.url)
    place = f"s3://{s3_servers.BUCKET}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = runs.plainly("preprocess", f"input={place}/videos", f"output={place}/gaze", setting, "shard.clips=2")
    assert done.returncode == 0, done.stderr
    left = tmp_path / f"autogaze-videos-{os.getuid()}"
    assert not [path for path in left.glob("*") if path.is_file()], "no copy outlives the job"
    assert len(list(served.glob("gaze/index/*.parquet"))) == 6, "five hold clips of the one, two of the other"
    assert (fetched["GET long.mp4"], fetched["GET short.mp4"]) == (1 + long, 1 + short), "by the scan, and for shards"
    proxy.close()


def test_a_kept_copy_of_other_bytes_is_dropped(
    bucket: str, make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    good = make_video(tmp_path / "good.mp4", frames=16 * 4).read_bytes()
    url = f"{bucket}/changed/video.mp4"
    store.publish(good, url)
    with IsolatedDecoder(DecodeConfig()) as decoder:
        [entry] = store.list_objects(url)
        rows = pd.DataFrame(probe_object(entry, decoder))
    plan = plan_of(tmp_path, rows, f"{bucket}/changed", ClipConfig(), 2)
    copies = tmp_path / f"autogaze-videos-{os.getuid()}"

    def outcome(shard: int) -> tuple[list[bool], int]:
        ok = decode(plan, shard, Decoding(DecodeConfig(), cache_mb=10)).ok
        return ok, len([path for path in copies.iterdir() if path.is_file()])

    store.publish(good[::-1], url)
    assert outcome(0) == ([False, False], 0), "not what was planned: failed as such, and not kept"
    store.publish(good, url)
    assert outcome(0) == ([True, True], 1)
    store.remove(url)
    assert outcome(1) == ([True, True], 1), "from the copy"


@pytest.mark.slow
def test_a_tar_of_videos_on_s3_is_read_by_ranges(bucket: str, store_of_videos: Path, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for path in sorted(store_of_videos.glob("clip*.mp4")):
            archive.add(path, f"part/{path.name}")
    store.publish(sink.getvalue(), f"{bucket}/tars/000.tar")
    done = runs.autogaze("preprocess", f"input={bucket}/tars", f"output={tmp_path / 'gaze'}", "ray.cpus=2")
    assert done.returncode == 0, done.stderr
    index = pd.read_parquet(tmp_path / "gaze" / "index")
    assert set(index["outcome"]) == {"ok"}
    assert set(index["video"]) == {f"{bucket}/tars/000.tar#part/clip{n}.mp4" for n in range(5)}


def test_a_missing_bucket_is_one_clear_line(bucket: str, tmp_path: Path) -> None:
    for source, output in (
        (f"{bucket}-nothing/x", str(tmp_path / "out")),
        (f"{bucket}/nothing", str(tmp_path / "out")),
    ):
        done = runs.plainly("preprocess", f"input={source}", f"output={output}")
        assert done.returncode == 2 and "does not exist" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_missing_credentials_are_one_clear_line_at_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3.forget_client()  # which has credentials
    done = runs.plainly("preprocess", f"input={bucket}/videos", f"output={tmp_path / 'out'}")
    s3.forget_client()  # which has none
    assert done.returncode == 2 and "no credentials found" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_changes_no_sample(
    s3_server: Rclone, undisturbed: Run, store_of_videos: Path
) -> None:
    """Down for longer than a client's own attempts last, in the middle of reading and of writing, and slow after."""
    served = s3_server.folder / s3_servers.BUCKET
    shutil.copytree(store_of_videos, served / "videos")
    place = f"s3://{s3_servers.BUCKET}"

    def strike() -> None:
        wait_until(lambda: list(served.glob("gaze/index/*.parquet")))
        struck.append(len(list(served.glob("gaze/index/*.parquet"))))
        with s3_server.away(14):
            pass

    struck: list[int] = []
    striker = threading.Thread(target=strike)
    striker.start()
    done = runs.plainly("preprocess", f"input={place}/videos", f"output={place}/gaze", "shard.clips=2")
    striker.join()
    assert done.returncode == 0, done.stderr
    assert struck and 1 <= struck[0] < len(list(served.glob("gaze/index/*.parquet"))), "it was in the middle"
    assert samples(served / "gaze") == samples(undisturbed.output) != {}
    secret = s3_servers.SECRET.encode()
    assert not any(secret in path.read_bytes() for path in served.rglob("*") if path.is_file())
    assert s3_servers.SECRET not in done.stdout + done.stderr
