"""A container open in libav, and its video stream: open, demux, index, decode. libav's errors get reasons here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipelines.video.base import Source, VideoError
from pipelines.video.frame_index import FrameIndex, Packet

# Only formats that hold their own frames: playlist formats (hls, concat, ...) would open files and addresses named by
# the untrusted bytes. So do network protocols, which are switched off for the same reason.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,rm,gif,apng,ivf,obu,"
    "h264,hevc,vvc,av1,m4v,vc1,h263,h261,dv,wtv,yuv4mpegpipe,swf,dirac,mjpeg"
)
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file,subfile"}

# An MPEG-4 packet this small says "show the last picture again" and delivers no frame.
_MPEG4_EMPTY = 8


# These decoders neither report nor conceal a damaged slice unless told to fail on it: the rest of the picture is then
# whatever its buffer held before.
_SILENT = ("hevc", "vvc")


@dataclass(frozen=True)
class DecodedPacket:
    """What the decoder made of one packet (None: of the end of the stream)."""

    packet: av.Packet[av.VideoStream] | None
    frames: Sequence[av.VideoFrame]
    error: str | None


class Video:
    """An open container and its video stream; every libav error gets its reason here."""

    def __init__(self, source: Source, threads: int = 1):
        path, start, end, whole = source.window()
        self._url = f"file:{path}" if whole else f"subfile,,start,{start},end,{end},,:{path}"
        self._source = source
        self._threads = threads
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(self._url, container_options=_OPTIONS, metadata_errors="replace")
        except FFmpegError as error:
            raise VideoError("unreadable", _text(error)) from None
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            self.close()
            raise VideoError("no_video_stream", "the container holds no video stream")
        best = self.container.streams.best("video")
        self.stream = best if best in streams else streams[0]
        if self.stream.codec_context is None:
            self.close()
            raise VideoError("unsupported_codec", "libavcodec has no decoder for the video stream")
        self.codec: str = self.stream.codec_context.codec.canonical_name
        # Slices, not frames: with frame threads an error surfaces some packets after the packet it belongs to.
        self.stream.thread_type = "SLICE"
        self.stream.codec_context.thread_count = self._threads
        if self.codec in _SILENT:
            self.stream.codec_context.options = {"err_detect": "explode"}
        self._seen = 0
        self._errors: list[str] = []

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def again(self) -> Video:
        """The same video, opened once more."""
        return Video(self._source, self._threads)

    def rewind(self) -> None:
        """Back to the first packet, by opening anew: the one way that is right for every container."""
        self.close()
        self._open()

    def seek(self, time: int) -> bool:
        """Ask for the keyframe at or before `time`; where the container really landed shows in the next packet."""
        try:
            self.container.seek(time, stream=self.stream, backward=True, any_frame=False)
        except FFmpegError as error:
            _text(error)
            return False
        return True

    def packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """The packets from here on. Data that cannot be demuxed ends the stream, as it does for ffmpeg."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:  # an empty one is how PyAV ends a stream; sent on, it would end the decoder
                    self._seen += 1
                    yield packet
        except FFmpegError as error:
            self._errors.append(_text(error))

    def decode(self, packet: av.Packet[av.VideoStream] | None) -> DecodedPacket:
        """None: drain the decoder. An error costs the packet; decoding may go on with the next one."""
        try:
            return DecodedPacket(packet, self.stream.decode(packet), None)
        except FFmpegError as error:
            self._errors.append(_text(error))
            return DecodedPacket(packet, [], _text(error))

    def play(self) -> Iterator[DecodedPacket]:
        """Decode everything from here on."""
        for packet in self.packets():
            yield self.decode(packet)
        yield self.decode(None)

    def frames_promised(self) -> int | None:
        """How many frames the sample table of mov and mp4 promises; None where only the packets can tell."""
        if not self.container.format.name.startswith("mov") or self.codec == "vp8":
            return None
        entries = self.stream.index_entries
        if len(entries) == 0 or len(entries) != self.stream.frames:  # fragmented files have a table per fragment
            return None
        smallest = _MPEG4_EMPTY if self.codec == "mpeg4" else 0
        shown = 0
        for entry in entries:
            if entry.size <= smallest:
                return None
            shown += not entry.is_discard
        return shown

    def index(self) -> FrameIndex | None:
        """Demux the whole stream, from a fresh start. None where its time stamps do not tell the frames apart."""
        if self.container.format.name == "avi" and self.stream.codec_context.has_b_frames:
            return None  # AVI has no presentation times, and libav's guess at them is wrong as often as not
        found: list[Packet] = []
        whole = 0  # packets up to the last undamaged one
        for packet in self.packets():
            shown = not packet.is_discard
            if self.codec == "vp8":
                shown = shown and bool(memoryview(packet)[0] & 0x10)  # show_frame, RFC 6386 section 9.1
            elif self.codec == "mpeg4" and packet.size <= _MPEG4_EMPTY:
                return None
            if packet.pts is None:
                return None
            found.append(Packet(packet.pts, packet.dts, packet.is_keyframe, shown))
            if not packet.is_corrupt:
                whole = len(found)
        found = found[:whole]  # half packets at the end are where the data was cut
        if found:
            found = self._without_lost_head(found)
        promised = self.frames_promised()
        lost_from = None
        if promised is not None and len(self.stream.index_entries) > len(found):
            lost_from = self.stream.index_entries[len(found)].timestamp
        return FrameIndex.build(found, promised, lost_from)

    def _without_lost_head(self, found: list[Packet]) -> list[Packet]:
        """Mark as not shown what a stream cut out of a longer one cannot show: pictures that miss what came before.

        Decoders differ in what they make of them, so the decoder is asked.
        """
        first = next((i for i, packet in enumerate(found) if packet.key), len(found) - 1)
        head = [packet.pts for packet in found if packet.shown and packet.pts < found[first].pts]
        if not head:
            return found
        self.rewind()
        delivered: set[int | None] = set()
        for step in self.play():
            delivered.update(frame.pts for frame in step.frames)
            if any(pts is not None and pts >= found[first].pts for pts in delivered):
                break
        lost = set(head) - delivered
        return [replace(packet, shown=packet.shown and packet.pts not in lost) for packet in found]

    def duration(self, frames: int) -> float:
        """Seconds, from the stream, else from the container, else from the frames."""
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        if self.container.duration is not None:
            return self.container.duration / av.time_base
        return float(frames / self.stream.average_rate) if self.stream.average_rate else 0.0

    def without_frame(self) -> VideoError:
        """Why a decode from start to end gave no frame at all."""
        if self._errors and self._seen:
            return VideoError("decode_error", f"no frame can be decoded: {self._errors[0]}")
        if self.stream.frames:
            return VideoError("truncated", "the data ends before the first frame")
        return VideoError("no_frames", "the stream delivers no frame")


def _text(error: FFmpegError) -> str:
    """libav's words for an error, without the file's name. To be out of memory is no fact of the video: raises it."""
    if isinstance(error, MemoryError):
        raise error
    return error.strerror or type(error).__name__
