"""What every decoder shares: source, settings, failures and their reasons, facts of a video, and checks.

Only numpy and the standard library are imported here: a decoder child must start in a fraction of a second.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

REASONS: dict[str, str] = {
    "missing": "there is no file at the video's place",
    "source_changed": "the object is not the one that was scanned",
    "bad_name": "the file's name is not valid UTF-8: rename it and scan again",
    "empty_file": "the file has no bytes",
    "unreadable": "the file cannot be opened, or its bytes are no video container",
    "no_video_stream": "the container holds no video stream (audio only, or only a cover picture)",
    "encrypted": "the video is encrypted (DRM), and the decoder has no key",
    "unsupported_codec": "the installed decoder does not know the codec of the video stream",
    "no_frames": "the video stream holds no frame at all",
    "too_short": "the video has fewer frames than were asked for",
    "too_large": "the tiles of one clip's frames are more than may be in memory at once (2 GiB)",
    "size_changed": "a frame is not of the size that the tiles were planned for",
    "unsupported_picture": "the decoder cannot convert the picture's colours, or its shape, to RGB",
    "truncated": "the data ends before the frames the clip asks for, though the header promises them",
    "decode_error": "the data the clip depends on is damaged",
    "decoder_crashed": "the decoder died twice in a row on this video",
    "decoder_timeout": "the decoder finished no clip within the time limit, twice in a row",
    "decoder_out_of_memory": "decoding needs more memory than the decoder may take",
    "no_label": "the label files that the gaze was imported from say nothing of the clip (filtered, not failed)",
}

DecoderName: TypeAlias = Literal["pyav", "decord", "torchcodec", "torchcodec-cuda"]
DECODERS: tuple[str, ...] = get_args(DecoderName)
ON_GPU = ("torchcodec-cuda",)
"""Decoders that need a GPU."""
SECOND = "sequential"
"""A back end that is no choice for a dataset: the others are checked by it (pipelines.video.sequential)."""

Buffer: TypeAlias = Callable[[int], np.ndarray]
"""buffer(i) is where a back end writes the frames of clip i: uint8 [len(clips[i]), *frame_shape(config, native)]."""

Native: TypeAlias = tuple[int, int]
"""Height and width, as displayed, of frames that are wanted unscaled. A frame of another size fails as size_changed."""


class VideoError(Exception):
    """A video, or one clip of it, cannot be decoded. That is a fact about the bytes: recorded, never retried.

    reason: a key of REASONS. detail: one line for a person; the same bytes give the same line, on any machine (no
    paths, process ids or addresses), because it becomes part of the output.
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}: name it in REASONS first")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class LeftToPyAV(Exception):
    """A back end leaves a video to PyAV, since it could not show it as PyAV does. The text says why, in few words."""


@dataclass(frozen=True)
class Source:
    """A local file, or the window [offset, offset + size) of one: a video inside a tar. size=None: up to the end."""

    path: str
    offset: int = 0
    size: int | None = None

    def window(self) -> tuple[str, int, int, bool]:
        """Absolute path, first byte, end byte, and whether that is the whole file. Raises VideoError."""
        path = os.path.abspath(self.path)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise VideoError("unreadable", "not a regular file")
            with open(path, "rb"):
                pass
        except (FileNotFoundError, NotADirectoryError):
            raise VideoError("missing", "no such file") from None
        except PermissionError:
            raise VideoError("unreadable", "no permission to read the file") from None
        end = status.st_size if self.size is None else self.offset + self.size
        if self.size == 0 or (status.st_size == 0 and self.offset == 0):
            raise VideoError("empty_file", "0 bytes")
        if not 0 <= self.offset < end <= status.st_size:
            raise VideoError("truncated", f"bytes {self.offset} to {end} of a file of {status.st_size} bytes")
        return path, self.offset, end, self.offset == 0 and end == status.st_size

    def read(self) -> bytes:
        """All bytes of the window, for decoders that cannot open a window themselves. Raises VideoError."""
        path, start, end, _ = self.window()
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclass(frozen=True)
class VideoInfo:
    """What a scan records of a video that can be decoded."""

    container: str  # libavformat's first name for it: mov (also mp4), matroska (also webm), avi, mpegts, ...
    codec: str  # h264, hevc, vp9, av1, ...
    pix_fmt: str  # libavutil's name, for example yuv420p10le
    width: int  # coded size in pixels: before rotation, pixels taken as square
    height: int
    rotation: int  # degrees clockwise the picture must be turned for display: 0, 90, 180 or 270
    fps: float  # mean over the whole video; 0 where nothing says
    frames: int  # what a sequential decode delivers; of a truncated file, what its header promises
    duration: float  # seconds
    mirrored: bool = False  # whether it must be mirrored left to right for display, before it is turned
    fps_source: str = ""  # what says so: timestamps (of the frames), header (where there are none), "" (nothing)
    duration_source: str = ""


@dataclass
class DecodeConfig:
    """How frames are decoded. Frames come out as uint8 RGB, size x size, squashed to the square the model sees."""

    decoder: str = "pyav"  # pyav | decord | torchcodec | torchcodec-cuda
    size: int = 224  # pixels, height and width of the frames
    threads: int = 1  # decoding threads; more than 1 only helps a machine that decodes few videos at once
    timeout_s: float = 60.0  # IsolatedDecoder: the longest time without a finished clip
    index_dir: str = ""  # pyav: a folder of this node that keeps frame indexes (pipelines.video.kept_index); "": none
    keep_open: bool = False  # pyav: keep the last video open, for a call that goes on where this one ends
    memory_mb: int = 2048  # IsolatedDecoder: what the child may allocate, in MiB, beyond what it needs to start

    def __post_init__(self) -> None:
        if self.decoder not in (*DECODERS, SECOND):
            raise ValueError(f"decoder={self.decoder!r}: must be one of {', '.join(DECODERS)}")
        for name in ("size", "threads", "timeout_s", "memory_mb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be more than 0")


def schedule(clips: Sequence[Sequence[int]]) -> list[int]:
    """The order in which clips are decoded and delivered: by first frame, then by place.

    Raises ValueError for a clip without frames or with a negative one.
    """
    for i, clip in enumerate(clips):
        if len(clip) == 0:
            raise ValueError(f"clip {i} asks for no frame")
        if min(clip) < 0:
            raise ValueError(f"clip {i} asks for frame {min(clip)}: frames count from 0")
    return sorted(range(len(clips)), key=lambda i: (min(clips[i]), i))


def frame_shape(config: DecodeConfig, native: Native | None) -> tuple[int, int, int]:
    """Shape of a decoded frame."""
    return (config.size, config.size, 3) if native is None else (*native, 3)


def require_size(frame: int, height: int, width: int, native: Native) -> None:
    """Raise VideoError for a frame of another size than was planned."""
    if (height, width) != native:
        raise VideoError("size_changed", f"frame {frame} is {width}x{height}, planned as {native[1]}x{native[0]}")


def too_short(frame: int, frames: int) -> VideoError:
    return VideoError("too_short", f"frame {frame} of a video of {frames} frames")


def out_of_memory() -> VideoError:
    return VideoError("decoder_out_of_memory", "an allocation was refused")
