"""pipelines.corpus.plan: manifest + config -> plan, a pure function."""

from __future__ import annotations

import hashlib
import re

import pandas as pd
import pytest

from pipelines.corpus import manifest as manifests
from pipelines.corpus import names
from pipelines.corpus.names import video_name
from pipelines.corpus.plan import ClipConfig, clip_starts, frame_numbers
from pipelines.errors import PipelineError
from tests.support.plans import planned


def manifest(**videos: tuple[int, float]) -> pd.DataFrame:
    rows = []
    for name, (frames, fps) in videos.items():
        uri = f"/videos/{name}.mp4"
        rows.append(
            {
                "uri": uri,
                "object": uri,
                "offset": 0,
                "bytes": 1000,
                "version": "1",
                "fingerprint": "f",
                "container": "mp4",
                "codec": "h264",
                "width": 64,
                "height": 64,
                "rotation": 0,
                "fps": fps,
                "frames": max(frames, 0),
                "duration": 1.0,
                "status": "ok" if frames >= 0 else "failed",
                "reason": None if frames >= 0 else "unreadable",
                "detail": None,
                "passed_over": None,
            }
        )
    return pd.DataFrame(rows, columns=manifests.MANIFEST_SCHEMA.names)


@pytest.mark.parametrize("frames", range(1, 70))
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_consecutive_clips_cover_a_whole_video_once(frames: int, stride: int) -> None:
    taken: list[int] = []
    for start in clip_starts(frames, 16, stride, 0):
        numbers = frame_numbers(int(start), stride, 16, frames)
        real = [n for i, n in enumerate(numbers) if start + i * stride < frames]
        assert len(numbers) == 16 and numbers.max() < frames
        taken += real
    assert taken == sorted(set(taken))
    if stride == 1:
        assert taken == list(range(frames))


@pytest.mark.parametrize("frames", [1, 5, 16, 17, 40, 1000])
@pytest.mark.parametrize("wanted", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 3])
def test_clips_per_video_are_distinct_whole_and_spread(frames: int, wanted: int, stride: int) -> None:
    starts = clip_starts(frames, 16, stride, wanted)
    assert 1 <= len(starts) <= wanted and len(set(starts)) == len(starts) and starts[0] == 0
    span = 15 * stride + 1
    if frames >= span:
        assert starts.max() + span <= frames, "no clip runs past the end of a video that holds a whole one"
        assert len(starts) == min(wanted, frames - span + 1)
        if wanted > 1:
            assert starts[-1] == frames - span


def test_a_short_video_repeats_its_last_frame_and_says_so() -> None:
    plan = planned(manifest(a=(10, 25.0)), "/videos", ClipConfig(frames=16), 4)
    assert plan["padded"].tolist() == [6]
    assert frame_numbers(0, 1, 16, 10).tolist() == [*range(10), *[9] * 6]


def test_every_video_has_a_row_also_one_that_could_not_be_opened() -> None:
    plan = planned(manifest(bad=(-1, 0.0), good=(20, 25.0), tiny=(3, 25.0)), "/videos", ClipConfig(min_frames=5), 4)
    assert dict(zip(plan["video"], plan["reason"].fillna(""), strict=True)) == {
        "/videos/bad.mp4": "unreadable",
        "/videos/good.mp4": "",
        "/videos/tiny.mp4": "too_short",
    }


def test_shards_are_filled_in_order_and_positions_count_from_zero() -> None:
    plan = planned(manifest(a=(100, 25.0), b=(50, 25.0)), "/videos", ClipConfig(), 4)
    assert plan["shard"].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert plan["position"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert plan["clip"].is_unique


def test_it_is_a_pure_function_of_manifest_and_config() -> None:
    rows = manifest(**{f"v{i}": (17 * i + 1, 25.0) for i in range(20)})
    first = planned(rows, "/videos", ClipConfig(), 8)
    for seed in range(3):
        shuffled = rows.sample(frac=1, random_state=seed)
        pd.testing.assert_frame_equal(planned(shuffled, "/videos", ClipConfig(), 8), first)


def test_a_target_rate_sets_the_stride_of_each_video() -> None:
    plan = planned(manifest(a=(400, 50.0), b=(400, 25.0), c=(400, 5.0)), "/videos", ClipConfig(fps=10), 100)
    assert plan.groupby("video")["stride"].first().tolist() == [5, 2, 1]


@pytest.mark.parametrize("fps", [0.5, 1e-320])
def test_a_rate_that_no_video_has_gives_a_stride_that_ends_with_the_video(fps: float) -> None:
    plan = planned(manifest(a=(40, 2147483647.0)), "/videos", ClipConfig(fps=fps), 4)
    [row] = plan.to_dict("records")
    assert (row["stride"], row["padded"]) == (2**31 - 1, 15)
    assert frame_numbers(row["start"], row["stride"], row["frames"], row["video_frames"]).tolist() == [0] + [39] * 15


def test_more_clips_than_there_are_starts_are_all_the_starts() -> None:
    assert clip_starts(20, 16, 1, 10**12).tolist() == [0, 1, 2, 3, 4]


def test_names_are_readable_stable_and_travel_with_the_store() -> None:
    key = video_name("/data/videos/a/My clip (1).mp4", "/data/videos", "f")
    assert re.fullmatch("My_clip_1-[0-9a-f]{16}", key)
    assert key == video_name("s3://bucket/x/a/My clip (1).mp4", "s3://bucket/x", "f")
    assert key != video_name("/data/videos/b/My clip (1).mp4", "/data/videos", "f")
    for hostile in (
        "/v/" + "x" * 300 + ".mp4",
        "/v/<script>.mp4",
        "/v/..mp4",
        "/v/视频.mp4",
        "/v/t.tar#../../etc/passwd.mp4",
    ):
        name = video_name(hostile, "/v", "f")
        assert name.isascii() and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert len(name) <= 57


@pytest.mark.parametrize(
    "uris",
    [
        ("/v/1437976/video.mp4", "/v/1975162/video.mp4"),  # the first 40 bits of their hashes are the same
        ("s3://b/v/a.mp4", "s3://b/v//a.mp4", "s3://b/v///a.mp4"),
        ("/v/a.tar#x.mp4", "/v/a.tar/x.mp4", "/v/a.tar#/x.mp4"),
        ("/v/a.mp4", "/va.mp4", "/a.mp4"),
        ("/v/a.mp4", "/v/a.MP4", "/v/a.mp4 "),
    ],
)
def test_paths_that_nearly_agree_have_names_of_their_own(uris: tuple[str, ...]) -> None:
    for root in ("/v", "s3://b/v", "", "/v/a.mp4"):
        assert len({video_name(uri, root, "f") for uri in uris}) == len(uris)


def test_two_videos_of_one_name_in_two_stores_have_names_of_their_own() -> None:
    assert video_name("/x/0001.mp4", "/x", "f") != video_name("/y/0001.mp4", "/y", "g")


def test_a_collision_is_resolved_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_HASH", 1)
    monkeypatch.setattr(names.hashlib, "sha256", lambda _: hashlib.md5(b""))
    rows = manifest(**{f"{folder}/v": (20, 25.0) for folder in "cabd"})
    plan = planned(rows, "/videos", ClipConfig(), 4)
    assert plan["clip"].is_unique and plan["video"].is_monotonic_increasing
    expected = [f"v-d{number}-{start}" for number in ("", "-2", "-3", "-4") for start in ("000000", "000016")]
    assert plan["clip"].tolist() == expected
    pd.testing.assert_frame_equal(planned(rows[::-1], "/videos", ClipConfig(), 4), plan)


@pytest.mark.parametrize(
    "clip, shard, key",
    [
        (ClipConfig(frames=0), 4, "clip.frames=0"),
        (ClipConfig(stride=0), 4, "clip.stride=0"),
        (ClipConfig(stride=2**31), 4, "clip.stride=2147483648"),
        (ClipConfig(per_video=-1), 4, "clip.per_video=-1"),
        (ClipConfig(fps=-1), 4, "clip.fps=-1"),
        (ClipConfig(fps=5, stride=2), 4, "clip.fps and clip.stride"),
        (ClipConfig(), 0, "shard.clips=0"),
    ],
)
def test_values_out_of_range_are_named(clip: ClipConfig, shard: int, key: str) -> None:
    with pytest.raises(PipelineError, match=key.replace(".", r"\.")):
        planned(manifest(a=(20, 25.0)), "/videos", clip, shard)
