"""A video is demuxed once: its index is kept, found again, and not believed where it is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.video import pyav
from pipelines.video.base import DecodeConfig, Source
from pipelines.video.decode import decode_clips
from pipelines.video.frame_index import FrameIndex, Header, Packets, Timing
from pipelines.video.isolated import IsolatedDecoder
from pipelines.video.kept_index import dump, kept, load

CLIPS = [[0, 1], [30, 31], [59], [12, 3]]


@pytest.fixture
def video(tmp_path: Path, make_video: Callable[..., Path]) -> Source:
    """AVI with B-frames: only decoding tells the order, so its index is always worth keeping."""
    return Source(str(make_video(tmp_path / "a.avi", frames=60, size=(64, 48))))


@pytest.fixture
def config(tmp_path: Path) -> DecodeConfig:
    return DecodeConfig(size=32, index_dir=str(tmp_path / "indexes"))


def entries(config: DecodeConfig) -> list[Path]:
    return [path for path in Path(config.index_dir).iterdir() if path.is_file()]


def same(one: FrameIndex, other: FrameIndex) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_an_index_comes_back_as_it_was(tmp_path: Path) -> None:
    packets = Packets.of([0, 2, 1], key=[True, False, False])
    made = FrameIndex.build(packets, np.array([0, 2, 1]))
    made = dataclasses.replace(
        made, headers=(Header(0, "palette", b"\0\1"),), timing=Timing(25.0, "header", 0.1, "header"), cut=True
    )
    path = tmp_path / "index"
    path.write_bytes(dump(made))
    assert same(load(str(path)), made)
    for end in (0, 20, len(dump(made)) - 64):
        path.write_bytes(dump(made)[:end])
        with pytest.raises(ValueError):
            load(str(path))


def test_a_video_is_demuxed_once(video: Source, config: DecodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dict(decode_clips(video, CLIPS, dataclasses.replace(config, index_dir="")))
    with IsolatedDecoder(config) as decoder:
        decoder.probe(video)  # a scan keeps it
    assert len(entries(config)) == 1

    def never(video: object) -> FrameIndex:
        raise AssertionError("made again")

    monkeypatch.setattr(pyav, "make_index", never)
    for clip in (CLIPS, CLIPS[1:2]):
        for i, frames in decode_clips(video, clip, config):
            np.testing.assert_array_equal(frames, plain[CLIPS.index(clip[i])])


def test_a_short_video_with_time_stamps_is_not_worth_a_file(
    tmp_path: Path, make_video: Callable[..., Path], config: DecodeConfig
) -> None:
    source = Source(str(make_video(tmp_path / "a.mkv", frames=30, size=(64, 48))))
    assert len(dict(decode_clips(source, [[0], [29]], config))) == 2
    assert entries(config) == []


def test_what_is_kept_is_not_believed_where_it_is_wrong(video: Source, config: DecodeConfig) -> None:
    plain = dict(decode_clips(video, CLIPS, config))
    [entry] = entries(config)
    right = load(str(entry))
    wrong = dump(dataclasses.replace(right, point_size=right.point_size + 1))
    for data in (b"no index", dump(right)[:100], wrong):
        entry.unlink(missing_ok=True)
        entry.write_bytes(data)
        for i, frames in decode_clips(video, CLIPS, config):
            np.testing.assert_array_equal(frames, plain[i])


def test_a_changed_video_has_another_index(video: Source, config: DecodeConfig) -> None:
    indexes = [FrameIndex.build(Packets.of(range(n), key=[True] * n), np.arange(n)) for n in (1100, 1200)]
    assert len(kept(config.index_dir, video, lambda: indexes[0])) == 1100
    assert len(kept(config.index_dir, video, lambda: indexes[1])) == 1100
    with open(video.path, "ab") as file:
        file.write(b"more")
    assert len(kept(config.index_dir, video, lambda: indexes[1])) == 1200


def test_a_day_takes_some_tens_of_megabytes() -> None:
    count = 24 * 3600 * 30 // 16  # of a day
    packets = Packets.of(range(count), key=[True] * count)  # keyframes only: the most there can be
    assert 16 * len(dump(FrameIndex.build(packets, np.arange(count)))) < 50e6
