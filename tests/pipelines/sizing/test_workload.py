"""What a job has to do is what the planner plans."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.planning import Planner
from pipelines.sizing import workload
from pipelines.sizing.workload import frames_of, of_alike, of_manifest


def manifest(frames: list[int], remote: bool = True) -> pa.Table:
    """Videos of so many frames; one of 0 could not be read."""
    rows = []
    for number, count in enumerate(frames):
        uri = f"{'s3://bucket' if remote else '/videos'}/{number:04d}.mp4"
        status = {"status": "ok"} if count else {"status": "failed", "reason": "unreadable", "detail": "no"}
        rows.append(
            {
                "uri": uri,
                "object": uri,
                "offset": 0,
                "bytes": 1000 + number,
                "version": "",
                "fingerprint": f"{number:x}",
            }
            | {"container": "mov", "codec": ("h264", "vp9")[number % 2], "width": 640, "height": 360, "rotation": 0}
            | {"fps": 25.0, "frames": count, "duration": count / 25}
            | status
        )
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


@pytest.mark.parametrize("clip", [ClipConfig(), ClipConfig(per_video=3), ClipConfig(frames=4, stride=3)])
def test_a_small_job_is_looked_at_whole(clip: ClipConfig) -> None:
    table = manifest([100, 0, 300, 16, 5000, 77])
    job = of_manifest([table], "s3://bucket", clip, 32)
    outline = Planner("s3://bucket", clip, 32).part(table).outline()
    assert job.whole and (job.videos, job.shards) == (6, len(outline.clips))
    assert (job.clips + job.refused, job.refused) == (int(outline.clips.sum()), 1)
    (run,) = job.sample
    assert [shard.clips + shard.refused for shard in run] == outline.clips.tolist()
    assert job.bytes == sum(range(1000, 1006))
    for shard in run:
        for piece in shard.pieces:
            number = piece.fetched - 1000  # the bytes that the manifest above gives it
            assert {row["video"] for row in piece.rows} == {f"s3://bucket/{number:04d}.mp4"}
            assert piece.codec == ("h264", "vp9")[number % 2]


def test_videos_on_a_disk_are_not_fetched() -> None:
    job = of_manifest([manifest([100, 100], remote=False)], "/videos", ClipConfig(), 32)
    assert {piece.fetched for shard in job.sample[0] for piece in shard.pieces} == {0}


def test_runs_of_neighbours_stand_for_a_large_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "_CLIPS", 200)
    job = of_manifest([manifest([160] * 400)], "s3://bucket", ClipConfig(), 20)
    assert (job.shards, job.clips, job.whole) == (200, 4000, False)
    assert 100 <= sum(shard.clips for run in job.sample for shard in run) <= 200
    assert all(len(run) > 1 for run in job.sample)


def test_a_described_corpus_is_planned_as_so_many_equal_videos() -> None:
    job = of_alike(1000, 6, (640, 360), "h264", 25.0, 8.0, ClipConfig(), 960)
    clips = -(-6 * 60 * 25 // 16)
    assert (job.videos, job.clips) == (10_000, 10_000 * clips)
    assert job.bytes == pytest.approx(1000 * 3600 * 8e6 / 8)
    assert job.seconds == pytest.approx(1000 * 3600)
    assert job.shards == job.videos  # 563 clips each: no two of them fit into 960


@pytest.mark.parametrize(
    ("starts", "stride", "decoded"),
    [
        ([0, 16, 32], 1, 48),  # one after another: every frame once
        ([0, 48], 3, 94),  # the frames between are decoded too
        ([16, 32], 1, 48),  # a few frames at the beginning are nearer than a keyframe
        ([0, 1000], 1, 16 + 26 + 15),  # far apart: from a keyframe on, half of 50 frames before on the average
        ([0, 0, 16], 1, 32),  # tiles of the same frames
    ],
)
def test_frames_that_must_be_decoded(starts: list[int], stride: int, decoded: int) -> None:
    fixed = {"frames": 16, "stride": stride, "video_frames": 2000, "fps": 25.0}
    assert frames_of([fixed | {"start": start} for start in starts]) == (16 * len(np.unique(starts)), decoded)
