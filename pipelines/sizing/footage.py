"""Test videos of a described corpus: so many pixels, such a codec, so many bits a second.

Drawn here, or another video's pictures again. Drawn pictures cost about what real ones do to decode, since that goes by
pixels and bits; how many patches a gaze takes of them says little, so real footage is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from pipelines.errors import PipelineError

CODECS = {
    "h264": ("libx264", {"preset": "veryfast"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "12"}),
}
"""Encoder and its options, by the names that manifests have for codecs."""
_SHIFT, _SCENE = 3, 100  # pixels that a drawn picture moves in a frame, and frames of a scene


def write_footage(
    target: Path, size: tuple[int, int], codec: str, fps: float, mbit: float, frames: int, like: str = ""
) -> None:
    """Write a video of `frames` frames, with a keyframe every two seconds. size: width and height.

    like: a video whose pictures are taken, from its beginning, and again from there if it is shorter; '' = drawn ones.
    Raises PipelineError: `like` cannot be read, or this machine's PyAV cannot encode that codec.
    """
    encoder, options = CODECS[codec]
    try:
        with av.open(str(target), "w") as new:
            stream = cast(
                VideoStream,
                new.add_stream(encoder, rate=round(fps), options={**options, "g": str(round(2 * fps))}),
            )
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", round(mbit * 1e6)
            for picture, _ in zip(_pictures(size, like), range(frames), strict=False):
                picture.pts = None
                new.mux(stream.encode(picture))
            new.mux(stream.encode())
    except (FFmpegError, ValueError) as error:
        raise PipelineError(
            f"codec={codec}: no test video of {size[0]}x{size[1]} could be encoded with {encoder} here "
            f"({' '.join(str(error).split())}); give input= a manifest of videos, or rates= of another machine"
        ) from error


def _pictures(size: tuple[int, int], like: str) -> Iterator[av.VideoFrame]:
    if not like:
        yield from _drawn(size)
        return
    while True:
        shown = 0
        try:
            with av.open(like) as old:
                for frame in old.decode(video=0):
                    shown += 1
                    yield frame.reformat(*size, format="yuv420p")
        except (FFmpegError, OSError, IndexError) as error:
            if not shown:
                raise PipelineError(f"footage={like}: is no video that can be read ({error})") from error
        if not shown:
            raise PipelineError(f"footage={like}: has no frames")


def _drawn(size: tuple[int, int]) -> Iterator[av.VideoFrame]:
    """Blocks of many sizes that move, noise that changes, and another scene every few seconds."""
    width, height = size
    random = np.random.default_rng(20260)
    noise = random.integers(0, 12, (4, height, width, 1), np.uint8)
    while True:
        scene = np.zeros((height, 2 * width, 3), np.uint8)
        for block in (8, 32, 128):
            colours = random.integers(0, 80, (height // block + 1, 2 * width // block + 1, 3), np.uint8)
            scene += colours.repeat(block, 0).repeat(block, 1)[:height, : 2 * width]
        for number in range(_SCENE):
            begin = number * _SHIFT % width
            picture = scene[:, begin : begin + width] + noise[number % len(noise)]  # at most 3 x 79 + 11
            yield av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
