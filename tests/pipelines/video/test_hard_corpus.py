"""What becomes of every broken or unusual file of the hard corpus, and that ordinary files read at random are exact.

The corpus does not belong to the repository; without it these tests are skipped.
"""

from __future__ import annotations

import csv
import random
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, probe
from pipelines.video.isolated import IsolatedDecoder
from tests.support import places

CORPUS = places.CORPUS
pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"needs the video corpus at {CORPUS}")
CONFIG = DecodeConfig(size=32)
EXACT = 0x2 | 0x40000 | 0x80000  # bilinear, accurate rounding, bit exact

# Files that are no video at all: the reason a scan records.
UNUSABLE = {
    "audio_only.mp4": "no_video_stream",
    "lying_stsz.mp4": "unreadable",
    "moov_missing.mp4": "unreadable",
    "text_renamed.mp4": "unreadable",
    "zero_byte.mp4": "empty_file",
}

# Files of which a part can be used: frames the header promises, and what becomes of each clip of 16 in a row.
# The keyframes of corrupt_middle lie at 0, 12, 130 (and later), the damage begins in packet 116.
DAMAGED = {
    "corrupt_middle.mp4": (250, ["ok"] * 7 + ["decode_error"] * 2 + ["ok"] * 7),
    "decord_corrupted.mp4": (50, ["ok"] + ["decode_error"] * 3),
    "truncated_faststart.mp4": (250, ["ok"] * 8 + ["truncated"] * 8),
}

# Files that are only unusual, and decode in full: (frames, width, height, rotation, pixel format).
UNUSUAL = {
    "anamorphic_sar.mp4": (90, 480, 480, 0, "yuv420p"),
    "decord_unordered.mov": (4, 50, 50, 0, "yuv420p"),
    "discard_first_keyframe.mp4": (25, 64, 64, 0, "yuv420p"),
    "hevc_10bit.mp4": (90, 640, 360, 0, "yuv420p10le"),
    "huge_gop.mp4": (400, 512, 384, 0, "yuv420p"),
    "interlaced_mpeg2.mpg": (100, 720, 576, 0, "yuv420p"),
    "name with spaces ünïcödé 视频.mp4": (38, 768, 432, 0, "yuv420p"),
    "nasa_hdr_10bit.mp4": (325, 320, 180, 0, "yuv420p10le"),
    "non_zero_start.mp4": (12, 200, 112, 0, "yuv420p"),
    "odd_17x31.mp4": (50, 17, 31, 0, "yuv444p"),
    "odd_vp9_10bit.mp4": (25, 321, 241, 0, "yuv420p10le"),
    "one_frame.mp4": (1, 640, 360, 0, "yuv420p"),
    "phone_rot270.mov": (3, 568, 320, 270, "yuv420p"),
    "phone_rot90.mov": (3, 568, 320, 90, "yuv420p"),
    "rotate90_meta.mp4": (96, 640, 360, 270, "yuv420p"),
    "slow_1frame_per_10s.mp4": (4, 640, 480, 0, "yuv420p"),
    "tiny_1x1.mp4": (5, 1, 1, 0, "yuv444p"),
    "variable_resolution.webm": (150, 640, 360, 0, "yuv420p"),
    "vfr_jitter.mp4": (74, 640, 360, 0, "yuv420p"),
}


def hard(name: str) -> Source:
    return Source(str(CORPUS / "hard" / name))


def in_a_row(frames: int, length: int = 16) -> list[list[int]]:
    """A video as consecutive clips, the last one repeating the last frame."""
    return [[min(start + j, frames - 1) for j in range(length)] for start in range(0, frames, length)]


@cache
def sequential(path: Path) -> np.ndarray:
    """uint8 [frames, 32, 32, 3]: PyAV's own loop; damaged packets are passed over."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            try:
                frames += [f.reformat(32, 32, "rgb24", interpolation=EXACT).to_ndarray() for f in packet.decode()]
            except av.error.FFmpegError:
                continue
    return np.stack(frames)


def test_the_table_names_every_file() -> None:
    with (CORPUS / "manifest.csv").open() as rows:
        listed = {row["file"].removeprefix("hard/") for row in csv.DictReader(rows) if row["file"].startswith("hard/")}
    assert listed == UNUSABLE.keys() | DAMAGED.keys() | UNUSUAL.keys()


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_video_says_so(name: str) -> None:
    with pytest.raises(VideoError) as caught:
        probe(hard(name))
    assert caught.value.reason == UNUSABLE[name]
    assert [(i, str(e)) for i, e in decode_clips(hard(name), [[0, 1]], CONFIG)] == [(0, str(caught.value))]


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_keeps_what_is_whole(name: str) -> None:
    frames, expected = DAMAGED[name]
    assert probe(hard(name)).frames == frames
    clips = in_a_row(frames)
    outcomes = dict(decode_clips(hard(name), clips, CONFIG))
    assert [o.reason if isinstance(o, VideoError) else "ok" for _, o in sorted(outcomes.items())] == expected

    first_bad = next(i for i, reason in enumerate(expected) if reason != "ok")
    for i in range(first_bad):
        np.testing.assert_array_equal(outcomes[i], sequential(CORPUS / "hard" / name)[clips[i]])
    for i, clip in enumerate(clips):  # and each alone fares as it does in company
        [(_, alone)] = decode_clips(hard(name), [clip], CONFIG)
        if expected[i] == "ok":
            np.testing.assert_array_equal(alone, outcomes[i])
        else:
            assert str(alone) == str(outcomes[i])


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_only_unusual_decodes_in_full(name: str) -> None:
    info = probe(hard(name))
    assert (info.frames, info.width, info.height, info.rotation, info.pix_fmt) == UNUSUAL[name]
    frames = np.rot90(sequential(CORPUS / "hard" / name), -info.rotation // 90, (1, 2))
    assert len(frames) == info.frames
    for i, decoded in decode_clips(hard(name), clips := in_a_row(info.frames), CONFIG):
        assert isinstance(decoded, np.ndarray), decoded
        np.testing.assert_array_equal(decoded, frames[clips[i]])
    for n in random.Random(name).sample(range(info.frames), k=min(6, info.frames)):
        [(_, decoded)] = decode_clips(hard(name), [[n]], CONFIG)
        np.testing.assert_array_equal(decoded, frames[[n]], err_msg=f"frame {n} alone")


def some_of_the_ordinary() -> list[Any]:
    """Every AVI and MOV, and a spread of the other containers, small files first; a third of them in make test."""
    files = sorted((p for p in (CORPUS / "train").glob("*.*")), key=lambda path: (path.stat().st_size, path.name))
    rare = [p for p in files if p.suffix in (".avi", ".mov")]
    names = sorted(p.name for p in {*rare, *files[: len(files) * 3 // 4 : 5]})
    return [pytest.param(name, marks=[pytest.mark.slow] if number % 3 else []) for number, name in enumerate(names)]


@pytest.mark.parametrize("name", some_of_the_ordinary() if CORPUS.is_dir() else [])
def test_ordinary_files_read_at_random_are_exact(name: str) -> None:
    path = CORPUS / "train" / name
    info = probe(Source(str(path)))
    frames = np.rot90(sequential(path), -info.rotation // 90, (1, 2))
    assert info.frames == len(frames)
    rng = random.Random(name)
    clips = [[min(start + 2 * j, len(frames) - 1) for j in range(8)] for start in rng.choices(range(len(frames)), k=5)]
    for asked in (clips, clips[:1]):
        for i, decoded in decode_clips(Source(str(path)), asked, CONFIG):
            assert isinstance(decoded, np.ndarray), decoded
            np.testing.assert_array_equal(decoded, frames[asked[i]])
    sequential.cache_clear()


@pytest.mark.slow
def test_no_file_changes_anothers_frames() -> None:
    """One child decodes the whole corpus in two different orders: every outcome is the same, and it never dies."""
    names = [*UNUSABLE, *DAMAGED, *UNUSUAL]
    seen: list[dict[str, list[object]]] = []
    with IsolatedDecoder(CONFIG) as decoder:
        for order in (names, names[::-1]):
            outcomes: dict[str, list[object]] = {}
            for name in order:
                frames = {**DAMAGED, **UNUSUAL}.get(name, (1,))[0]
                clips = in_a_row(frames)[::4]
                outcomes[name] = [
                    str(outcome) if isinstance(outcome, VideoError) else outcome.tobytes()
                    for _, outcome in decoder.decode_clips(hard(name), clips)
                ]
            seen.append(outcomes)
        assert decoder.restarts == 0
    assert seen[0] == seen[1]
