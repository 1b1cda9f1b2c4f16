"""How videos are cut into clips, and what a plan says of each clip.

A plan is a pure function of manifest and config: the same ones give the same clips, in the same shards, on any machine,
so a shard can be made by any worker, twice, or after a crash, and come out the same. It is kept as a row per video
(pipelines.corpus.plan_part); the clips of a shard are computed from these when they are needed.

With clip.tiles=native each chunk of frames gives one clip per tile of the picture. All tiles of a chunk lie in one
shard, one after another, so that a frame is decoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from autogaze.tiling import TileGrid
from pipelines.errors import PipelineError
from pipelines.schema import check, setting

PLAN_SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),  # unique, readable, stable: names the clip everywhere
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # row number inside the shard
        pa.field("video", pa.string(), nullable=False),  # manifest uri
        pa.field("object", pa.string(), nullable=False),  # URL of the object that holds the video's bytes
        pa.field("offset", pa.int64(), nullable=False),  # where they start in it (tar members), else 0
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # first frame number in the video
        pa.field("stride", pa.int32(), nullable=False),  # frames from one sampled frame to the next
        pa.field("frames", pa.int32(), nullable=False),  # frames of the clip, repeated ones included
        pa.field("padded", pa.int32(), nullable=False),  # how many of them repeat the video's last frame
        pa.field("video_frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the whole picture, turned as for display
        pa.field("height", pa.int32(), nullable=False),
        pa.field("tile", pa.string(), nullable=False),  # "" = the whole picture; else a name of TileGrid(height, width)
        pa.field("reason", pa.string()),  # why this row has already failed; null = to be done
        pa.field("detail", pa.string()),
    ]
)

CHUNK_LIMIT = 2 << 30  # frames that are decoded together are in memory together: those of a clip, or of all its tiles
LONGEST_STRIDE = 2**31 - 1


@dataclass
class ClipConfig:
    """How videos are cut into clips."""

    frames: int = setting(16, "frames per clip", at_least=1)
    stride: int = setting(1, "take every stride-th frame of the video", at_least=1, at_most=LONGEST_STRIDE)
    fps: float = setting(0.0, "sample at this rate instead of stride (0 = use stride)", at_least=0)
    per_video: int = setting(0, "clips per video, evenly spread (0 = the whole video)", at_least=0)
    min_frames: int = setting(1, "videos with fewer frames fail as too_short", at_least=1)
    tiles: Literal["whole", "native"] = setting(
        "whole", "whole: the picture squashed to 224x224; native: a clip for each 224x224 tile of it"
    )


def check_clip_config(clip: ClipConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(clip, "clip.")
    if clip.fps and clip.stride != 1:
        raise PipelineError("clip.fps and clip.stride both set: give one of them")
    if clip_bytes(clip.frames) >= CHUNK_LIMIT:
        raise PipelineError(
            f"clip.frames={clip.frames}: the frames of a clip are in memory together, at most 2 GiB of them; use "
            f"{(CHUNK_LIMIT - 1) // clip_bytes(1)} or fewer"
        )


def clip_bytes(frames: int) -> int:
    """Bytes of one clip's decoded frames."""
    return frames * TileGrid.size**2 * 3


def clip_starts(frames: int, clip_frames: int, stride: int, per_video: int) -> np.ndarray:
    """First frame numbers [clips] int64 of a video's clips, ascending.

    per_video=0: consecutive clips that cover every sampled frame; the last one may run past the end.
    per_video=N: up to N distinct starts spread evenly over the starts at which a whole clip fits.
    """
    span = clip_frames * stride
    if per_video == 0:
        return np.arange(0, max(frames, 1), span, dtype=np.int64)
    last = max(frames - (span - stride + 1), 0)
    return np.unique(np.linspace(0, last, min(per_video, last + 1)).round().astype(np.int64))


def frame_numbers(start: int, stride: int, frames: int, video_frames: int) -> np.ndarray:
    """Frame numbers [frames] int64 of a clip; past the end the last frame repeats."""
    return np.minimum(start + np.arange(frames, dtype=np.int64) * stride, max(video_frames - 1, 0))
