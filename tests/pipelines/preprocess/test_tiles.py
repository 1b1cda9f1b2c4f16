"""clip.tiles=native: a picture is cut into tiles at its own resolution, and every frame is decoded once."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus import manifest as manifests
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.videos import video_fingerprint
from pipelines.dataset.shards import open_dataset
from pipelines.inspection.verify import verify
from pipelines.preprocess.decoding import ClipDecoders, Decoding
from pipelines.preprocess.rows import DecodedClip, Effort, Failure
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, probe
from pipelines.video.isolated import IsolatedDecoder
from tests.support import runs
from tests.support.plans import plan_of, planned

SIDE = 224
EXACT = 0x2 | 0x40000 | 0x80000  # bilinear, accurate rounding, bit exact
NATIVE = ClipConfig(frames=4, tiles="native")


def row_of(uri: str, width: int, height: int, frames: int, rotation: int = 0) -> dict[str, object]:
    facts = {"container": "mp4", "codec": "h264", "fps": 25.0, "duration": 1.0, "status": "ok"}
    place = {"uri": uri, "object": uri, "offset": 0, "bytes": 1, "version": "1", "fingerprint": "f"}
    size = {"width": width, "height": height, "rotation": rotation, "frames": frames}
    return {**place, **facts, **size, "reason": None, "detail": None}


def manifest(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=manifests.MANIFEST_SCHEMA.names)


def tile_of(frames: np.ndarray, name: str) -> np.ndarray:
    """The pixels [T, 224, 224, 3] a tile's name stands for: the picture, its last row and column repeated, cropped."""
    row, column = int(name[1:3]), int(name[4:6])
    wide = np.pad(frames, ((0, 0), (0, -frames.shape[1] % SIDE), (0, -frames.shape[2] % SIDE), (0, 0)), "edge")
    return wide[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def whole_frames(path: Path) -> np.ndarray:
    """uint8 [frames, height, width, 3]: a plain decode from start to end, not scaled."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "SLICE"
        frames = [f.reformat(f.width, f.height, "rgb24", interpolation=EXACT) for f in container.decode(video=0)]
    return np.stack([frame.to_ndarray() for frame in frames])


videos = st.lists(
    st.tuples(st.integers(1, 1200), st.integers(1, 900), st.integers(1, 30), st.sampled_from([0, 90, 180, 270])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(videos, st.integers(1, 12), st.integers(0, 2))
def test_all_tiles_of_a_chunk_lie_in_one_shard_each_once(
    sizes: list[tuple[int, int, int, int]], room: int, per_video: int
) -> None:
    rows = [row_of(f"/v/{i}.mp4", *size) for i, size in enumerate(sizes)]
    plan = planned(manifest(rows), "/v", ClipConfig(frames=4, per_video=per_video, tiles="native"), room)
    assert plan["clip"].is_unique and (plan["tile"] != "").all()
    assert all(clip.endswith(f"-{tile}") for clip, tile in zip(plan["clip"], plan["tile"], strict=True))
    for i, (width, height, _, rotation) in enumerate(sizes):
        shown = (height, width) if rotation % 180 else (width, height)
        columns, lines = (-(-side // SIDE) for side in shown)
        expected = [f"r{r:02d}c{c:02d}" for r in range(lines) for c in range(columns)]
        mine = plan[plan["video"] == f"/v/{i}.mp4"]
        assert (mine["width"] == shown[0]).all() and (mine["height"] == shown[1]).all()
        for _, chunk in mine.groupby("start"):
            assert chunk["tile"].tolist() == expected
            assert chunk["shard"].nunique() == 1 and (np.diff(chunk["position"]) == 1).all()
    for _, shard in plan.groupby("shard"):
        assert shard["position"].tolist() == list(range(len(shard)))
        assert len(shard) <= room or shard[["video", "start"]].drop_duplicates().shape[0] == 1
    ends = plan.groupby("shard")["video"].agg(["size", "first", "last"]).to_dict("records")
    for shard, following in itertools.pairwise(ends):
        within = shard["last"] == following["first"]
        whole = plan[plan["video"] == following["first"]]
        waiting = len(whole) // whole["start"].nunique() if within else len(whole)
        assert shard["size"] + waiting > room, "a shard ends only where the next video, or chunk of it, is too big"


def test_whole_pictures_have_no_tile() -> None:
    rows = [row_of(f"/v/{i}.mp4", 3840, 2160, 50) for i in range(3)]
    plan = planned(manifest(rows), "/v", ClipConfig(frames=4), 5)
    assert (plan["tile"] == "").all() and plan["shard"].tolist() == [
        3 * i + j // 5 for i in range(3) for j in range(13)
    ]


def test_a_picture_whose_tiles_exceed_one_row_fails_alone() -> None:
    rows = [row_of("/v/a.mp4", 30_000, 20_000, 100), row_of("/v/b.mp4", 3840, 2160, 16)]
    plan = planned(manifest(rows), "/v", ClipConfig(tiles="native"), 32)
    assert plan["reason"].fillna("").tolist() == ["too_large"] + [""] * 180
    assert plan["tile"].tolist()[:2] == ["", "r00c00"] and plan["shard"].tolist() == [0] + [1] * 180


def stage_over(
    folder: Path, video: Path, clip: ClipConfig, room: int = 8, decoder: str = "pyav", **changed: int
) -> ClipDecoders:
    info = probe(Source(str(video)))
    row = row_of(str(video), info.width, info.height, info.frames, info.rotation)
    row |= {"bytes": video.stat().st_size, "fingerprint": video_fingerprint(str(video))}
    plan = plan_of(folder, manifest([row | changed]), str(video.parent), clip, room)
    return ClipDecoders(plan, Decoding(DecodeConfig(decoder=decoder)))


def frames_of(clip: DecodedClip) -> np.ndarray:
    assert clip.frames is not None, clip.failure
    return clip.frames


def decoded_by(stage: ClipDecoders, shard: int) -> list[DecodedClip]:
    return list(stage.clips(shard, Effort()))


def test_a_tile_is_the_crop_of_the_frame_and_frames_are_decoded_once(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=11, size=(300, 250))
    frames = whole_frames(video)
    stage = stage_over(tmp_path / "out", video, NATIVE)
    asked: list[list[int]] = []
    [decoder] = stage.decoders
    decode = decoder.decode_clips
    decoder.decode_clips = lambda source, clips, native: (
        asked.extend(clips),
        decode(source, clips, None, native),
    )[1]  # type: ignore[assignment,method-assign,misc]
    seen = 0
    with stage:
        for shard in range(2):
            decoded, planned = decoded_by(stage, shard), stage.plan.clips_of(shard)
            for got, want in zip(map(frames_of, decoded), planned.itertuples(), strict=True):
                assert got.shape == (4, SIDE, SIDE, 3)
                numbers = np.minimum(np.arange(want.start, want.start + 4), 10)
                np.testing.assert_array_equal(got, tile_of(frames[numbers], want.tile))
                seen += 1
    assert seen == 12 and asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 10]]


@pytest.mark.parametrize("decoder", ["decord", pytest.param("torchcodec", marks=pytest.mark.slow)])
def test_other_decoders_deliver_the_same_picture_unscaled(
    tmp_path: Path, make_video: Callable[..., Path], decoder: str
) -> None:
    source = Source(str(make_video(tmp_path / "v.mp4", frames=20, size=(300, 250))))
    clips = [[0, 5, 10], [19, 19], [20]]
    ours = dict(decode_clips(source, clips, DecodeConfig(), (250, 300)))
    with IsolatedDecoder(DecodeConfig(decoder=decoder)) as child:
        try:
            theirs = dict(child.decode_clips(source, clips, native=(250, 300)))
        except ImportError as error:
            pytest.skip(str(error))
        assert [str(failure.reason) for _, failure in child.decode_clips(source, [[3]], native=(64, 64))] == [
            "size_changed"
        ]
    assert theirs[2].reason == ours[2].reason == "too_short"
    for i in range(2):
        assert theirs[i].shape == ours[i].shape == (len(clips[i]), 250, 300, 3)
        off = np.abs(theirs[i].astype(int) - ours[i])  # each has its own way with colours at hard edges
        assert np.median(off) <= 2 and off.mean() < 10 < np.abs(theirs[i].astype(int) - ours[i][..., ::-1]).mean()


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_tiles_are_cut_from_the_picture_as_displayed(
    tmp_path: Path, make_video: Callable[..., Path], degrees: int, turns: int
) -> None:
    plain, video = make_video(tmp_path / "plain.mp4", frames=4, size=(300, 200)), tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(video), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(-degrees)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    stage = stage_over(tmp_path / "out", video, NATIVE)
    with stage:
        decoded, planned = decoded_by(stage, 0), stage.plan.clips_of(0)
    upright = np.rot90(whole_frames(plain), -turns, (1, 2))
    for got, want in zip(map(frames_of, decoded), planned["tile"], strict=True):
        np.testing.assert_array_equal(got, tile_of(upright, want))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_frame_of_another_size_than_planned_fails_all_its_tiles(
    tmp_path: Path, make_video: Callable[..., Path], decoder: str
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=4, size=(300, 250))
    stage = stage_over(tmp_path / "out", video, NATIVE, decoder=decoder, width=310)
    with stage:
        decoded = decoded_by(stage, 0)
    failure = Failure("size_changed", "frame 0 is 300x250, planned as 310x250")
    assert [(clip.frames, clip.failure) for clip in decoded] == [(None, failure)] * 4


@pytest.mark.slow
def test_a_large_picture_passes_the_decoder_in_bounded_memory(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """The child's limit holds its own working memory, not the frames, which lie in memory shared with it."""
    source = Source(str(make_video(tmp_path / "v.mp4", frames=16, size=(3840, 2160))))
    with IsolatedDecoder(DecodeConfig(memory_mb=300)) as child:  # the clip alone has 398 MB
        [(_, decoded)] = child.decode_clips(source, [list(range(16))], native=(2160, 3840))
        assert not isinstance(decoded, VideoError), decoded
        assert decoded.shape == (16, 2160, 3840, 3)


def test_tiles_end_to_end_and_resumed_with_the_same_bytes(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    videos, output = tmp_path / "videos", tmp_path / "gaze"
    make_video(videos / "wide.mp4", frames=10, size=(300, 250))
    make_video(videos / "small.mp4", frames=5, size=(96, 64), seed=1)
    arguments = [f"input={videos}", f"output={output}", "clip.tiles=native", "clip.frames=4", "frames=raw"]
    done = runs.plainly("preprocess", *arguments, "shard.clips=5")
    assert done.returncode == 0, done.stderr
    assert verify(str(output)).problems == []
    dataset, files = open_dataset(str(output)), runs.tree(output)
    index = dataset.index()
    assert (index["outcome"] == "ok").all() and len(index) == 3 * 4 + 2
    frames = {name: whole_frames(videos / f"{name}.mp4") for name in ("wide", "small")}
    for row in index.to_dict("records"):
        members, name = dataset.read_clip(row), Path(row["video"]).stem
        numbers = np.minimum(np.arange(row["start"], row["start"] + 4), len(frames[name]) - 1)
        stored = np.load(io.BytesIO(members["frames.npy"]))
        np.testing.assert_array_equal(stored, tile_of(frames[name][numbers], row["tile"]))
        about = json.loads(members["json"])
        assert (about["height"], about["width"], about["tile"]) == (*frames[name].shape[1:3], row["tile"])
    for shard in (0, 2):
        (output / "index" / f"{shard:06d}.parquet").unlink()
    (output / "shards" / "000002.tar").unlink()
    again = runs.plainly("preprocess", *arguments, "shard.clips=5")
    assert again.returncode == 0 and runs.tree(output) == files, again.stderr
    other = runs.plainly("preprocess", *arguments[:2], "clip.frames=4", "frames=raw", "shard.clips=5")
    assert other.returncode == 2 and "clip.tiles is 'native' there, 'whole' here" in other.stderr
