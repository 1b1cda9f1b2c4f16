"""PyAV, the default decoder: frame-accurate random access through an index of the packets.

The index comes from demuxing the stream once (some microseconds a packet; pipelines.video.pyav_index). A frame is
reached by seeking to its keyframe and decoding on; clips share one pass, so no frame is decoded twice for clips that
overlap.

Colours are converted as each frame's metadata says (matrix, range); unspecified means BT.601, limited range, as in
ffmpeg. HDR is not tone-mapped, interlaced frames are not deinterlaced. Pictures are turned and mirrored for display.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
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
from pipelines.video.frame_index import FrameIndex, Timing
from pipelines.video.kept_video import opened
from pipelines.video.orientation import Orientation
from pipelines.video.pyav_index import count_by_table, make_index
from pipelines.video.pyav_readers import IndexedReader, NotAsIndexed
from pipelines.video.pyav_video import Video

# SWS_BILINEAR | SWS_ACCURATE_RND | SWS_BITEXACT: the same pixels whatever SIMD the CPU has, at no cost that could be
# measured. As a number, because PyAV 17 takes these flags but does not name them.
SCALING = 0x2 | 0x40000 | 0x80000


def fingerprint() -> str:
    versions = av.library_versions
    codec, scale = (".".join(map(str, versions[name])) for name in ("libavcodec", "libswscale"))
    return f"pyav-{av.__version__}/libavcodec-{codec}/libswscale-{scale}"


def probe(source: Source, index_dir: str = "") -> VideoInfo:
    """See pipelines.video.decode.probe. index_dir: as in DecodeConfig."""
    try:
        with Video(source) as video:
            return _facts(video, index_dir)
    except MemoryError:
        raise out_of_memory() from None


def _facts(video: Video, index_dir: str) -> VideoInfo:
    frames, timing = _count(video, index_dir)
    first = next(chain.from_iterable(step.frames for step in video.play()), None)
    if first is None:
        raise video.without_frame()
    if frames == 0:
        raise VideoError("no_frames", "no packet of the stream is shown")
    upright = _orientation(first)
    return VideoInfo(
        container=video.format,
        codec=video.codec,
        pix_fmt=first.format.name,
        width=first.width,
        height=first.height,
        rotation=90 * upright.turns,
        fps=timing.fps,
        frames=frames,
        duration=timing.duration,
        mirrored=upright.mirrored,
        fps_source=timing.fps_source,
        duration_source=timing.duration_source,
    )


def _count(video: Video, index_dir: str) -> tuple[int, Timing]:
    """How many frames a decode of the whole (untruncated) stream delivers, as cheaply as the stream allows."""
    counted = count_by_table(video)
    if counted is not None:
        return counted
    index = _index(video, index_dir, settled=True)
    return index.promised, index.timing


def _index(video: Video, index_dir: str, settled: bool = False) -> FrameIndex:
    """The video's index, kept or made. settled: it has been seen whether the last picture was cut."""

    def make() -> FrameIndex:
        video.rewind()
        index = make_index(video)
        if not settled or not index.cut or not len(index):
            return index
        reader = IndexedReader(video, index)
        reader.settle_end()
        return reader.index

    if not index_dir:
        return make()
    from pipelines.video.kept_index import kept

    index = kept(index_dir, video.source, make)
    if settled and index.cut and len(index):  # a decoder kept it, which had no need to know
        reader = IndexedReader(video, index)
        reader.settle_end()
        return reader.index
    return index


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.backends.Backend. One pass over the frames any clip needs, each decoded and scaled once."""
    uses: dict[int, list[tuple[int, int]]] = {}  # frame -> the (clip, slot) it fills
    for i, clip in enumerate(clips):
        for slot, n in enumerate(clip):
            uses.setdefault(n, []).append((i, slot))
    failed: dict[int, VideoError] = {}
    delivered = 0  # how many of `order`

    def reader(video: Video) -> IndexedReader:
        return IndexedReader(video, _index(video, config.index_dir))

    with opened(source, config.threads, reader, min(uses, default=0), max(uses, default=0), config.keep_open) as at:
        scaler = VideoReformatter()
        for n in sorted(uses):
            users = [(i, slot) for i, slot in uses[n] if i not in failed]
            if users:
                try:
                    try:
                        frame = at.reader.read(n)
                    except NotAsIndexed:
                        at.reader = _without_seeking(at.video)
                        frame = at.reader.read(n)
                    picture = pixels(scaler, frame, n, config.size, native)
                except VideoError as error:
                    failed.update((i, error) for i, _ in users)
                else:
                    for i, slot in users:
                        buffer(i)[slot] = picture
            while delivered < len(order) and (order[delivered] in failed or max(clips[order[delivered]]) <= n):
                yield order[delivered], failed.get(order[delivered])
                delivered += 1


def _without_seeking(video: Video) -> IndexedReader:
    """Another reader for a video whose packets are not those of its index: of a fresh one, from the first packet on."""
    video.rewind()
    try:
        return IndexedReader(video, make_index(video), seeks=False)
    except NotAsIndexed:
        raise VideoError("unreadable", "its packets differ from one reading to the next") from None


def pixels(scaler: VideoReformatter, frame: av.VideoFrame, number: int, size: int, native: Native | None) -> np.ndarray:
    """A frame as uint8 [height, width, 3]: any format to RGB and scaled in one pass, then a view of it, upright."""
    upright = _orientation(frame)
    height, width = (size, size) if native is None else (frame.height, frame.width)
    if native is not None:
        require_size(number, *((width, height) if upright.turns % 2 else (height, width)), native)
    try:
        scaled = scaler.reformat(frame, width, height, "rgb24", interpolation=SCALING, threads=1)
    except MemoryError:  # one of libav's errors too, but no fact of the picture
        raise
    except FFmpegError:
        picture = f"{frame.width}x{frame.height} {frame.format.name}, colour matrix {int(frame.colorspace)}"
        raise VideoError("unsupported_picture", f"libswscale makes no RGB of frame {number}: {picture}") from None
    plane = scaled.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return upright.apply(rows[:height, : width * 3].reshape(height, width, 3))


def _orientation(frame: av.VideoFrame) -> Orientation:
    # Not frame.side_data: the frame would hold what holds it, and its pixels would wait for a garbage collection.
    held: Any = SideDataContainer
    matrix = held(frame).get("DISPLAYMATRIX")
    return Orientation() if matrix is None else Orientation.of_matrix(bytes(matrix))
