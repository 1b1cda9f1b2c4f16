"""Holds pipelines.video.decode to a plain sequential decode with PyAV: count, order, single reads, times."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.video.base import DecodeConfig, Source
from pipelines.video.decode import decode_clips, probe
from pipelines.video.orientation import Orientation

SIZE = 32
_EXACT = 0x2 | 0x40000 | 0x80000  # bilinear, accurate rounding, bit exact


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program; skip the test where it, or an encoder, is missing."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the ffmpeg program: apt-get install ffmpeg")
    command = [program, "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Unknown encoder" in done.stderr:
        pytest.skip(f"this ffmpeg cannot encode it: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def sequential(path: Path) -> tuple[np.ndarray, list[float | None]]:
    """All frames, uint8 [frames, SIZE, SIZE, 3], upright, and their times: PyAV's own loop over the whole file."""
    frames, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                matrix = frame.side_data.get("DISPLAYMATRIX")
                upright = Orientation() if matrix is None else Orientation.of_matrix(bytes(matrix))
                frames.append(upright.apply(frame.reformat(SIZE, SIZE, "rgb24", interpolation=_EXACT).to_ndarray()))
                times.append(frame.time)
    return np.stack(frames), times


def check(path: Path, cut: bool = False, alone: int = 6) -> None:
    """Assert that a video's frames are those of a sequential decode, read in a row and each of some alone.

    cut: the file ends inside a picture, which may be missing or not.
    """
    source, config = Source(str(path)), DecodeConfig(size=SIZE)
    expected, times = sequential(path)
    info = probe(source)
    assert info.frames == len(expected) or (cut and info.frames == len(expected) - 1)

    row = dict(decode_clips(source, [[n] for n in range(info.frames)], config))
    got = np.stack([_frames(row[n])[0] for n in range(info.frames)])
    if info.frames < len(expected):  # the cut picture may be shown before others
        gone = next((n for n in range(info.frames) if not np.array_equal(got[n], expected[n])), info.frames)
        assert gone >= info.frames - 4
        expected = np.delete(expected, gone, 0)
    differing = [n for n in range(info.frames) if not np.array_equal(got[n], expected[n])]
    assert not differing, f"frames {differing[:5]} differ"

    numbers = random.Random(path.name).sample(range(info.frames), k=min(alone, info.frames))
    for n in {*numbers, info.frames - 1}:
        [(_, frames)] = decode_clips(source, [[n]], config)
        np.testing.assert_array_equal(_frames(frames)[0], expected[n], err_msg=f"frame {n} alone")

    stamps = [time for time in times if time is not None]
    if len(stamps) == len(times) > 2 and not cut and stamps == sorted(stamps):
        assert info.fps == pytest.approx((len(stamps) - 1) / (stamps[-1] - stamps[0]), rel=1e-3)
        assert info.fps_source == "timestamps"


def _frames(outcome: object) -> np.ndarray:
    assert isinstance(outcome, np.ndarray), outcome
    return outcome
