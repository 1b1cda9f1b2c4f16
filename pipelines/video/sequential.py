"""The plainest decode there is, to check the others by: a video from its first packet on, frames counted as they come.

No index, no seek, no state kept for later: what ffmpeg itself does. It shares with pyav how a picture becomes RGB, and
nothing of how a frame is found. `autogaze verify deep=true` compares stored frames with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipelines.video import pyav
from pipelines.video.base import Buffer, DecodeConfig, Native, Source, VideoError, too_short
from pipelines.video.pyav_video import CONTAINERS


def fingerprint() -> str:
    return f"sequential-{pyav.fingerprint()}"


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.backends.Backend. Decodes up to the last frame that a clip needs; damage is passed over."""
    uses: dict[int, list[tuple[int, int]]] = {}
    for i, clip in enumerate(clips):
        for slot, n in enumerate(clip):
            uses.setdefault(n, []).append((i, slot))
    waiting = list(order)
    scaler = VideoReformatter()
    n = -1
    for n, frame in enumerate(_frames(source, config.threads)):
        if n in uses:
            pixels = pyav.pixels(scaler, frame, n, config.size, native)
            for i, slot in uses[n]:
                buffer(i)[slot] = pixels
        while waiting and max(clips[waiting[0]]) <= n:
            yield waiting.pop(0), None
        if not waiting:
            return
    for i in waiting:
        yield i, too_short(max(clips[i]), n + 1)


def _frames(source: Source, threads: int) -> Iterator[av.VideoFrame]:
    path, start, end, whole = source.window()
    url = f"file:{path}" if whole else f"subfile,,start,{start},end,{end},,:{path}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file,subfile"}
    try:
        container = av.open(url, container_options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise VideoError("unreadable", error.strerror or type(error).__name__) from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError("no_video_stream", "the container holds no video stream")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = threads
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except MemoryError:
                raise
            except FFmpegError:
                continue
            yield from frames
