"""Shards of several hundred clips pass through in pieces: neither bytes nor outcomes depend on how, nor does memory."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.corpus.plan import ClipConfig, clip_bytes
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.corpus.scan import probe_object
from pipelines.dataset.shards import open_dataset
from pipelines.inspection.verify import verify
from pipelines.preprocess import decoding
from pipelines.preprocess import videos as preprocess_videos
from pipelines.preprocess.decoding import ClipDecoders, Decoding
from pipelines.preprocess.rows import DecodedClip, Effort
from pipelines.preprocess.streams import clip_array, in_order
from pipelines.preprocess.window import Room
from pipelines.storage import s3, store
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder
from tests.support import runs, s3_servers
from tests.support.plans import plan_of
from tests.support.videos import write_video
from tests.support.waiting import wait_until

CLIP = ClipConfig(frames=2)
PIECE = 5 * clip_bytes(2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of 150 clips, two of 10, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("long")
    for name, frames in (("a", 300), ("b", 20), ("d", 20)):
        write_video(folder / f"{name}.mp4", frames=frames, size=(64, 48), seed=ord(name))
    (folder / "c.mp4").write_bytes(b"this is no video" * 100)
    return folder


@pytest.fixture(scope="module")
def plan(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetPlan:
    """All of them in one shard."""
    with IsolatedDecoder(DecodeConfig()) as decoder:
        rows = [row for entry in store.list_objects(str(videos)) for row in probe_object(entry, decoder)]
    return plan_of(tmp_path_factory.mktemp("plan"), pd.DataFrame(rows), str(videos), CLIP, 1000)


def outcome(clip: DecodedClip) -> tuple[int, str, str]:
    frames = b"" if clip.frames is None else clip.frames.tobytes()
    return int(clip.row["position"]), hashlib.sha256(frames).hexdigest(), clip.failure.reason if clip.failure else ""


def outcomes(plan: DatasetPlan, decoders: int) -> list[tuple[int, str, str]]:
    with ClipDecoders(plan, Decoding(DecodeConfig(), decoders=decoders)) as stage:
        return [outcome(clip) for clip in stage.clips(0, Effort())]


def test_pieces_and_children_change_no_clip(plan: DatasetPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcomes(plan, 1)
    assert [position for position, _, _ in whole] == list(range(171))
    assert [reason for _, _, reason in whole if reason] == ["unreadable"]
    monkeypatch.setattr(decoding, "PIECE_BYTES", PIECE)
    fetched, copy = list[str](), preprocess_videos.local_copy
    monkeypatch.setattr(
        preprocess_videos, "local_copy", lambda url, *rest: (fetched.append(Path(url).name), copy(url, *rest))[1]
    )
    assert outcomes(plan, 3) == whole
    assert sorted(fetched) == ["a.mp4", "b.mp4", "d.mp4"], "each once, however many pieces it has"


def test_a_video_that_costs_a_child_fails_from_there_on_however_it_is_cut(
    plan: DatasetPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one call for the whole video: what comes after is not tried, or is not taken though it was decoded."""

    def dies_at_40(
        decoder: IsolatedDecoder, source: Any, clips: list[list[int]], native: object = None
    ) -> Iterator[tuple[int, np.ndarray | VideoError]]:
        lost = source.path.endswith("a.mp4") and any(40 in clip for clip in clips)
        for place, clip in enumerate(clips):
            dead = lost and clip[0] >= 40
            yield place, VideoError("decoder_crashed", "x") if dead else np.zeros((2, 224, 224, 3), np.uint8)

    monkeypatch.setattr(IsolatedDecoder, "decode_clips", dies_at_40)
    expected = [""] * 20 + ["decoder_crashed"] * 130 + [""] * 10 + ["unreadable"] + [""] * 10
    for piece, decoders in ((1000 * PIECE, 1), (PIECE, 1), (PIECE, 4)):
        monkeypatch.setattr(decoding, "PIECE_BYTES", piece)
        assert [reason for _, _, reason in outcomes(plan, decoders)] == expected


def test_what_is_decoded_ahead_is_bounded_and_the_next_shard_waits_its_turn(
    plan: DatasetPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PIECE_BYTES", PIECE)
    held: list[int] = []
    take = Room.take

    def watched(room: Room, count: int, wait: bool, own: int = 0) -> bool:
        had = take(room, count, wait, own)
        held.append(room._used)
        return had

    monkeypatch.setattr(Room, "take", watched)
    settings = Decoding(DecodeConfig(), decoders=2)
    with ClipDecoders(plan, settings) as stage:
        first = stage.clips(0, Effort())
        next(first)
        time.sleep(0.5)
        assert max(held) == settings.memory == 4 * PIECE, "nobody takes the clips: no more are decoded"
        second: list[DecodedClip] = []
        other = threading.Thread(target=lambda: second.extend(stage.clips(0, Effort())))
        other.start()
        time.sleep(0.2)
        assert not second, "its turn comes when the first has handed out its last piece"
        assert len(list(first)) == 170
        other.join()
        assert len(second) == 171 and max(held) <= settings.memory
        third = stage.clips(0, Effort())
        next(third)
        third.close()  # as after an error of what takes them
        assert len(list(stage.clips(0, Effort()))) == 171, "what it held was given back"


def test_clips_side_by_side_are_one_array_without_a_copy() -> None:
    block = np.arange(5 * 2 * 4, dtype=np.uint8).reshape(5, 2, 2, 2, 1)
    joined = clip_array([block[1], block[2], block[3]])
    np.testing.assert_array_equal(joined, block[1:4])
    assert np.shares_memory(joined, block)
    apart = clip_array([block[0], block[2]])
    np.testing.assert_array_equal(apart, block[[0, 2]])
    assert not np.shares_memory(apart, block)
    np.testing.assert_array_equal(clip_array([block[0].copy(), block[1]]), block[:2])


def test_threads_give_results_in_order_and_no_more_than_some_ahead() -> None:
    from concurrent.futures import ThreadPoolExecutor

    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        found = in_order(pool, lambda number: (time.sleep(0.01 * (number % 3)), number)[1], items(), ahead=3)
        assert next(found) == 0 and len(asked) == 4
        assert list(found) == list(range(1, 20))


# -- the whole job -----------------------------------------------------------------------------------------------------

SETTINGS = ["clip.frames=2", "shard.clips=120", "threshold=0.1"]


@pytest.fixture(scope="module")
def made(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    output = tmp_path_factory.mktemp("made") / "gaze"
    settings = [f"input={videos}", *SETTINGS]
    done = runs.plainly("preprocess", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    return runs.Run(settings, output, runs.tree(output), done.stdout)


def test_a_video_longer_than_a_shard_and_small_pieces(
    made: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify(str(made.output)).problems == []
    sizes = [len(index) for _, index in pd.read_parquet(made.output / "index").groupby("shard")]
    assert sizes == [120, 51], "a video of 150 clips is cut, the others follow it"
    monkeypatch.setattr(decoding, "PIECE_BYTES", PIECE)
    workers = ["workers.decode=3", "workers.gaze=2"]
    done = runs.plainly("preprocess", *made.settings, f"output={tmp_path / 'gaze'}", *workers)
    assert done.returncode == 0 and runs.tree(tmp_path / "gaze") == made.files, done.stderr


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_spool_leaves_nothing_that_the_next_run_does_not_clear(
    made: runs.Run, tmp_path: Path
) -> None:
    output, left = tmp_path / "gaze", list[Path]()
    for most in (1, 200_000):
        job = runs.start_plainly("preprocess", *made.settings, f"output={output}")
        wait_until(
            lambda job=job, most=most: (
                any(path.stat().st_size > most for path in output.glob("shards/.tmp-*")) or job.poll() is not None
            ),
            every=0,
        )
        for pid in [job.pid, *runs.descendants(job.pid)]:
            runs.kill(pid)
        job.wait()
        left += output.glob("shards/.tmp-*")
    assert left, "it was in the middle"
    done = runs.plainly("preprocess", *made.settings, f"output={output}")
    assert done.returncode == 0 and runs.tree(output) == made.files, done.stderr


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_spool_is_one_line_and_leaves_nothing(made: runs.Run, small_disk: Path) -> None:
    output = small_disk / "gaze"
    full = runs.plainly("preprocess", *made.settings, f"output={output}")
    assert full.returncode == 2 and "no space left on the device" in full.stderr and full.stderr.count("\n") == 1
    assert not list(output.glob("*/.tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    again = runs.plainly("preprocess", *made.settings, f"output={output}")
    assert again.returncode == 0 and runs.tree(output) == made.files


def test_a_dataset_keeps_its_own_shard_clips_and_a_new_one_has_large_shards(
    made: runs.Run, videos: Path, tmp_path: Path
) -> None:
    done = runs.plainly("preprocess", *[word for word in made.settings if "shard" not in word], f"output={made.output}")
    assert done.returncode == 0 and "nothing to do: all 2 shards" in done.stdout, done.stderr
    told = runs.plainly("preprocess", *made.settings, "shard.clips=7", f"output={made.output}")
    assert told.returncode == 2 and "shard.clips is 120 there, 7 here" in told.stderr
    for storage, clips in (("jpeg", 7680), ("raw", 928)):
        place = tmp_path / storage
        words = [f"input={videos}", "clip.frames=2", f"frames={storage}", f"output={place}", "part=plan"]
        assert runs.plainly("preprocess", *words).returncode == 0
        assert open_dataset(str(place)).config["shard"] == {"clips": clips}


def test_progress_moves_within_a_shard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from jobs import shard_progress
    from pipelines.preprocess.totals import Totals

    monkeypatch.setattr(shard_progress, "_PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(shard_progress, "_LOOK_SECONDS", 0.01)
    totals, looks = Totals(), list[int]()
    with shard_progress.Bar(Console(), 1000, totals, lambda seen: looks.append(seen.making)):
        for done in (100, 400):
            totals.in_the_making(done)
            assert wait_until(lambda done=done: done in looks, seconds=5)
    shown = [line.split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(shown)) == ["100", "400"] and not list(itertools.filterfalse(str.isdigit, shown))


@pytest.mark.slow
def test_a_lost_node_and_killed_actors_change_no_byte(made: runs.Run, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    output = tmp_path / "gaze"
    try:
        node = cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
        settings = ["workers.decode=4", "workers.gaze=2", f"ray.address={cluster.address}"]
        job = runs.start("preprocess", *made.settings, f"output={output}", *settings)
        assert wait_until(lambda: any(output.glob("shards/.tmp-*")) or job.poll() is not None, every=0.05)
        assert job.poll() is None, "it ended before a node could be taken from it"
        cluster.remove_node(node, allow_graceful=False)
        assert job.wait() == 0
    finally:
        cluster.shutdown()
    assert runs.tree(output) == made.files


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_of_an_upload_in_parts(
    s3_server: s3_servers.Rclone, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    settings = [f"input={videos}", *SETTINGS, "frames=raw"]  # tars of 36 MB
    assert runs.plainly("preprocess", *settings, f"output={tmp_path / 'gaze'}").returncode == 0
    place, sent = f"s3://{s3_servers.BUCKET}/gaze", threading.Event()
    client, upload = s3.client(), s3.client().upload_part

    def noted(**of: Any) -> Any:
        sent.set()
        return upload(**of)

    monkeypatch.setattr(client, "upload_part", noted)

    def strike() -> None:
        sent.wait(60)
        with s3_server.away(14):
            pass

    striker = threading.Thread(target=strike)
    striker.start()
    done = runs.plainly("preprocess", *settings, f"output={place}")
    striker.join()
    assert done.returncode == 0 and sent.is_set(), done.stderr
    stored = runs.tree(s3_server.folder / s3_servers.BUCKET / "gaze")
    served = {name: mark for name, mark in stored.items() if ".rclone_" not in name}  # the killed server's own
    assert served == runs.tree(tmp_path / "gaze")
    assert not s3.uploads(place)[0]
