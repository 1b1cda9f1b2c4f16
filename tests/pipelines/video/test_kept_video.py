"""A video that is kept open: the next call goes on in its group of pictures, and gives what a new reader gives."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video import kept_video
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips
from pipelines.video.isolated import IsolatedDecoder
from pipelines.video.pyav_video import Video

PLAIN, KEEPING = DecodeConfig(size=32), DecodeConfig(size=32, keep_open=True)
CHUNKS = [list(range(start, start + 8)) for start in range(0, 96, 8)]
Outcome = bytes | tuple[str, str]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_video, "_kept", None)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A 1 for each packet that is decoded."""
    packets, once = list[int](), Video._decoded

    def counted(video: Video, packet: Any, place: int | None) -> Any:
        packets.append(1)
        return once(video, packet, place)

    monkeypatch.setattr(Video, "_decoded", counted)
    return packets


def write(path: Path, keyframes: int, seed: int = 0) -> Path:
    """96 frames with B-frames; the keyframes are so far apart."""
    chance = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        options = {"g": str(keyframes), "keyint_min": str(keyframes), "sc_threshold": "0", "bf": "3"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(96):
            picture = chance.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read(path: Path, chunks: Sequence[list[int]], config: DecodeConfig) -> list[Outcome]:
    """Each chunk by a call of its own."""
    outcomes: list[Outcome] = []
    for chunk in chunks:
        [(_, frames)] = decode_clips(Source(str(path)), [chunk], config)
        outcomes.append((frames.reason, frames.detail) if isinstance(frames, VideoError) else frames.tobytes())
    return outcomes


@pytest.mark.parametrize(("keyframes", "most"), [(96, 1.1), (24, 1.6)])
def test_chunks_that_follow_one_another_are_one_pass(
    tmp_path: Path, decoded: list[int], keyframes: int, most: float
) -> None:
    path = write(tmp_path / "v.mp4", keyframes)
    plain = read(path, CHUNKS, PLAIN)
    before = len(decoded)
    assert read(path, CHUNKS, KEEPING) == plain
    assert len(decoded) - before <= most * 96 < before


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("damage", ["none", "bytes", "cut"])
def test_any_order_and_damage_give_what_a_new_reader_gives(tmp_path: Path, suffix: str, damage: str) -> None:
    path = write(tmp_path / f"v.{suffix}", 40)
    data, chance = bytearray(path.read_bytes()), random.Random(suffix + damage)
    if damage == "bytes":
        for _ in range(4):
            data[chance.randrange(len(data) // 5, len(data))] ^= 0xFF
    elif damage == "cut":
        del data[len(data) * 3 // 4 :]
    path.write_bytes(data)
    order = CHUNKS + [chance.choice(CHUNKS) for _ in range(12)]
    assert read(path, order, KEEPING) == read(path, order, PLAIN)


def test_another_file_in_its_place_is_opened(tmp_path: Path) -> None:
    path, other = write(tmp_path / "v.mp4", 96), write(tmp_path / "other.mp4", 96, seed=1)
    first = read(path, CHUNKS[:2], KEEPING)
    os.replace(other, path)
    assert read(path, CHUNKS[2:3], KEEPING) == read(path, CHUNKS[2:3], PLAIN)
    assert first != read(path, CHUNKS[:2], PLAIN)


def test_a_call_that_is_given_up_keeps_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 96)
    calls: Any = decode_clips(Source(str(path)), CHUNKS[:2], KEEPING)
    next(calls)
    calls.close()
    assert kept_video._kept is None and read(path, CHUNKS[1:2], KEEPING) == read(path, CHUNKS[1:2], PLAIN)


def test_a_child_keeps_its_last_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    paths = [write(tmp_path / "v.mp4", 96), make_video(tmp_path / "w.mp4", frames=96)]
    plain = [read(path, CHUNKS[:3], PLAIN) for path in paths]
    with IsolatedDecoder(replace(KEEPING, timeout_s=60)) as decoder:
        for path, expected in zip(paths, plain, strict=True):
            found = [next(decoder.decode_clips(Source(str(path)), [chunk]))[1] for chunk in CHUNKS[:3]]
            assert [frames.tobytes() for frames in found if isinstance(frames, np.ndarray)] == expected
