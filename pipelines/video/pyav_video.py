"""An open container and its video stream: demux, seek, decode. Here libav's errors become VideoErrors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, TypeAlias, cast, get_args

import av
from av.error import FFmpegError
from av.packet import PacketSideData, PktSideDataT
from av.stream import Disposition

from pipelines.video.base import Source, VideoError
from pipelines.video.frame_index import Header
from pipelines.video.messages import without_messages
from pipelines.video.pictures import length_size

# Only formats that hold their own frames: a playlist (hls, concat, ...) would open files and addresses that untrusted
# bytes name. Network protocols are switched off for the same reason.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,rm,gif,apng,ivf,obu,"
    "h264,hevc,vvc,av1,m4v,vc1,h263,h261,dv,wtv,yuv4mpegpipe,swf,dirac,mjpeg,jpeg_pipe"
)
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file,subfile"}

# By default these decoders neither report nor conceal a damaged slice: the rest of the picture is then whatever its
# buffer held before. With err_detect=explode they fail on it.
_SILENT = ("hevc", "vvc")

# AV_CODEC_PROP_INTRA_ONLY and AV_CODEC_PROP_REORDER; PyAV's own flags do not take the bits that it does not name.
_INTRA_ONLY, _REORDER = 1, 8

_SAID_ONCE = ("new_extradata", "palette")

Packet: TypeAlias = "av.Packet[av.VideoStream]"


@dataclass(frozen=True)
class DecodedPacket:
    """The frames, or the error, that one packet gave. place=None: those at the end of the stream.

    The pts of a frame is the place of its packet, whatever the container says.
    """

    place: int | None
    frames: Sequence[av.VideoFrame]
    error: str | None


class Video:
    """An open container and its video stream. Raises VideoError for what libav cannot open."""

    def __init__(self, source: Source, threads: int = 1):
        path, start, end, whole = source.window()
        self._url = f"file:{path}" if whole else f"subfile,,start,{start},end,{end},,:{path}"
        self.source = source
        self._threads = threads
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(self._url, container_options=_OPTIONS, metadata_errors="replace")
        except FFmpegError as error:
            raise VideoError("unreadable", error_text(error)) from None
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            self.close()
            raise VideoError("no_video_stream", "the container holds no video stream")
        best = self.container.streams.best("video")
        self.stream = best if best in streams else streams[0]
        if "enc_key_id" in self.stream.metadata:  # so does Matroska name the key of an encrypted track
            self.close()
            raise encrypted(0)
        context = self.stream.codec_context
        if context is None:
            self.close()
            raise VideoError("unsupported_codec", "libavcodec has no decoder for the video stream")
        self.format: str = self.container.format.name.split(",")[0]
        self.codec: str = context.codec.canonical_name
        self.extradata = bytes(context.extradata or b"")
        properties: Any = context.codec.properties
        self.reorders = bool(properties & _REORDER)
        self.intra_only = bool(properties & _INTRA_ONLY)
        # Slices, not frames: with frame threads an error surfaces some packets after the packet it belongs to.
        self.stream.thread_type = "SLICE"
        context.thread_count = self._threads
        self._length_size = length_size(self.codec, self.extradata)
        if self.codec in _SILENT:
            context.options = {"err_detect": "explode"}
        self.fresh = True  # nothing has been demuxed or sought
        self._seen = 0
        self._errors: list[str] = []

    @property
    def time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, av.time_base)

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def rewind(self) -> None:
        """Back to the first packet, by opening anew: the one way that is right for every container."""
        if not self.fresh:
            self.close()
            self._open()

    def seek(self, where: int, by_bytes: bool = False) -> bool:
        """Seek to the keyframe at or before a time, or to a byte. Where it really is shows in the next packets."""
        self.fresh = False
        try:
            self.container.seek(where, stream=self.stream, unsupported_byte_offset=by_bytes)
        except FFmpegError as error:
            error_text(error)
            return False
        return True

    def packets(self) -> Iterator[Packet]:
        """The packets from here on. Data that cannot be demuxed ends the stream, as it does for ffmpeg."""
        self.fresh = False
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:  # an empty one is how PyAV ends a stream; sent on, it would end the decoder
                    self._seen += 1
                    yield packet
        except FFmpegError as error:
            self._errors.append(error_text(error))

    def decode(self, packet: Packet | None, place: int, headers: Sequence[Header] = ()) -> DecodedPacket:
        """Decode the packet at a place. None: drain the decoder. An error costs the packet; decoding may go on.

        headers: what was said before the packet and holds for it.
        """
        if packet is None:
            return self._decoded(None, None)
        for header in headers:
            if header.kind == "in_band":
                packet = _with_data(packet, header.data + bytes(packet))
            else:
                _say(packet, header)
        if self.codec in _SILENT:
            data = without_messages(memoryview(packet), self.codec, self._length_size)
            if data == b"":
                return DecodedPacket(place, (), None)
            if data is not None:
                packet = _with_data(packet, data)
        # Time stamps may be missing, wrong, or the same twice; decoders only hand them on.
        packet.pts = packet.dts = place
        return self._decoded(packet, place)

    def _decoded(self, packet: Packet | None, place: int | None) -> DecodedPacket:
        try:
            return DecodedPacket(place, self.stream.decode(packet), None)
        except FFmpegError as error:
            self._errors.append(error_text(error))
            return DecodedPacket(place, (), error_text(error))

    def play(self) -> Iterator[DecodedPacket]:
        """Decode everything, from a fresh start."""
        self.rewind()
        for place, packet in enumerate(self.packets()):
            yield self.decode(packet, place)
        yield self.decode(None, 0)

    def without_frame(self) -> VideoError:
        """Why a decode from start to end gave no frame at all."""
        if self._errors and self._seen:
            return VideoError("decode_error", f"no frame can be decoded: {self._errors[0]}")
        if self.stream.frames:
            return VideoError("truncated", "the data ends before the first frame")
        return VideoError("no_frames", "the stream delivers no frame")


def said_once(packet: Packet, place: int) -> list[Header]:
    """What a packet brings that holds until another says otherwise."""
    return [
        Header(place, kind, bytes(side)) for side in packet.iter_sidedata() if (kind := side.data_type) in _SAID_ONCE
    ]


def _say(packet: Any, header: Header) -> None:
    """Add a header to a packet that has none of its kind. (PyAV's stubs leave PacketSideData's constructor out.)"""
    if not packet.has_sidedata(header.kind):
        make: Any = PacketSideData
        said = make(get_args(PktSideDataT).index(header.kind), len(header.data))
        said.update(header.data)
        said.to_packet(packet)


def is_encrypted(packet: Packet) -> bool:
    return packet.has_sidedata("encryption_info")


def flags_tell(video: Video) -> bool:
    """Whether a packet that libav flags corrupt is. In program streams the flag is of a block, which holds several."""
    return video.format != "mpeg"


def encrypted(place: int) -> VideoError:
    return VideoError("encrypted", f"encrypted from packet {place} on (DRM), and there is no key")


def _with_data(packet: Packet, data: bytes) -> Packet:
    """A packet like another, of other bytes. That its frame is to be discarded cannot be said: the index knows it."""
    made: Any = av.Packet(data)
    made.is_keyframe = packet.is_keyframe
    made.is_corrupt = packet.is_corrupt
    for side in packet.iter_sidedata():
        side.to_packet(made)
    return cast(Packet, made)


def error_text(error: FFmpegError) -> str:
    """libav's message for an error, without the file's name. Raises MemoryError, which is no fact of the video."""
    if isinstance(error, MemoryError):
        raise error
    return error.strerror or type(error).__name__
