"""PyAV, the default decoder: frame-accurate random access from an index of the packets' time stamps.

The index comes from demuxing the stream once (5 us a packet; nothing is decoded). A frame is reached by seeking to its
keyframe and decoding on; clips share one pass, so no frame is decoded twice for clips that overlap. Where the time
stamps do not order the frames (some AVI), frames are counted in a decode from the start: slow, and always right.

Colours are converted as each frame's metadata says (matrix, range); unspecified means BT.601, limited range, as in
ffmpeg. HDR is not tone-mapped, interlaced frames are not deinterlaced, a mirrored display matrix is not mirrored back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from pipelines.video.base import (
    Buffer,
    DecodeConfig,
    Native,
    Source,
    VideoError,
    VideoInfo,
    out_of_memory,
    require_size,
)
from pipelines.video.pyav_readers import CountingReader, IndexedReader, NotAsIndexed
from pipelines.video.pyav_video import Video

# SWS_BILINEAR | SWS_ACCURATE_RND | SWS_BITEXACT: the same pixels whatever SIMD the CPU has, at no cost that could be
# measured. As a number, because PyAV 17 takes these flags but does not name them.
SCALING = 0x2 | 0x40000 | 0x80000

# Packets to look at for pictures shown before the first keyframe: more than any codec reorders.
_HEAD = 32


def fingerprint() -> str:
    versions = av.library_versions
    codec, scale = (".".join(map(str, versions[name])) for name in ("libavcodec", "libswscale"))
    return f"pyav-{av.__version__}/libavcodec-{codec}/libswscale-{scale}"


def probe(source: Source) -> VideoInfo:
    """See pipelines.video.decode.probe."""
    try:
        with Video(source) as video:
            return _facts(video)
    except MemoryError:
        raise out_of_memory() from None


def _facts(video: Video) -> VideoInfo:
    frames = _count(video)
    video.rewind()
    first = next(chain.from_iterable(step.frames for step in video.play()), None)
    if first is None:
        raise video.without_frame()
    if frames == 0:
        raise VideoError("no_frames", "no packet of the stream is shown")
    rate = video.stream.average_rate
    return VideoInfo(
        container=video.container.format.name.split(",")[0],
        codec=video.codec,
        pix_fmt=first.format.name,
        width=first.width,
        height=first.height,
        rotation=90 * _quarter_turns(first),
        fps=float(rate) if rate else 0.0,
        frames=frames,
        duration=video.duration(frames),
    )


def _count(video: Video) -> int:
    """How many frames a decode of the whole (untruncated) stream delivers, as cheaply as the stream allows."""
    frames = video.frames_promised()
    if frames is not None:
        head = [packet.pts for packet in islice(video.packets(), _HEAD) if not packet.is_discard]
        if not any(pts is not None and head[0] is not None and pts < head[0] for pts in head):
            return frames
        video.rewind()
    index = video.index()
    if index is not None:
        return index.promised
    video.rewind()
    return sum(len(step.frames) for step in video.play())


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.base.backend. One pass over the frames any clip needs, each decoded and scaled once."""
    uses: dict[int, list[tuple[int, int]]] = {}  # frame -> the (clip, slot) it fills
    for i, clip in enumerate(clips):
        for slot, n in enumerate(clip):
            uses.setdefault(n, []).append((i, slot))
    failed: dict[int, VideoError] = {}
    delivered = 0  # how many of `order`

    with Video(source, config.threads) as video:
        index = video.index()
        reader: IndexedReader | CountingReader
        reader = CountingReader(video) if index is None else IndexedReader(video, index)
        scaler = VideoReformatter()
        for n in sorted(uses):
            users = [(i, slot) for i, slot in uses[n] if i not in failed]
            if users:
                try:
                    try:
                        frame = reader.read(n)
                    except NotAsIndexed:
                        reader = CountingReader(video)
                        frame = reader.read(n)
                    pixels = _pixels(scaler, frame, n, config.size, native)
                except VideoError as error:
                    failed.update((i, error) for i, _ in users)
                else:
                    for i, slot in users:
                        buffer(i)[slot] = pixels
            while delivered < len(order) and (order[delivered] in failed or max(clips[order[delivered]]) <= n):
                yield order[delivered], failed.get(order[delivered])
                delivered += 1


def _pixels(
    scaler: VideoReformatter, frame: av.VideoFrame, number: int, size: int, native: Native | None
) -> np.ndarray:
    """uint8 [height, width, 3], a view into a new frame: any format to RGB and scaled in one pass, then upright."""
    turns = _quarter_turns(frame)
    height, width = (size, size) if native is None else (frame.height, frame.width)
    if native is not None:
        require_size(number, *((width, height) if turns % 2 else (height, width)), native)
    try:
        scaled = scaler.reformat(frame, width, height, "rgb24", interpolation=SCALING, threads=1)
    except MemoryError:  # one of libav's errors too, but no fact of the picture
        raise
    except FFmpegError:
        picture = f"{frame.width}x{frame.height} {frame.format.name}, colour matrix {int(frame.colorspace)}"
        raise VideoError("unsupported_picture", f"libswscale makes no RGB of frame {number}: {picture}") from None
    plane = scaled.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return np.rot90(rows[:height, : width * 3].reshape(height, width, 3), -turns)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Clockwise quarter turns for display, 0..3 (PyAV gives degrees anticlockwise)."""
    return round(-frame.rotation / 90) % 4
