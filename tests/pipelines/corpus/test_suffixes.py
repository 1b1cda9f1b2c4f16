"""pipelines.corpus.suffixes: each suffix is one whose files the decoder opens, by its bytes alone."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.corpus.suffixes import VIDEO_SUFFIXES, compression_of, is_archive, is_hidden, is_list, is_tar, is_video
from pipelines.video.base import Source
from pipelines.video.decode import probe

# Container and codec that libav writes, and the suffixes that files of this kind have.
KINDS = {
    ("h264", "libx264"): ".h264 .264 .avc",
    ("hevc", "libx265"): ".hevc .h265 .265",
    ("mp4", "libx264"): ".mp4 .m4v .insv .lrv .mp4v .mpg4",
    ("mov", "libx264"): ".mov .qt",
    ("mov", "jpeg2000"): ".mj2",
    ("3gp", "mpeg4"): ".3gp",
    ("3g2", "mpeg4"): ".3g2",
    ("f4v", "libx264"): ".f4v",
    ("ismv", "libx264"): ".ismv",
    ("matroska", "libx264"): ".mkv .mk3d",
    ("webm", "libvpx"): ".webm",
    ("avi", "mpeg4"): ".avi .divx .xvid",
    ("asf", "wmv2"): ".asf .wmv .wm .dvr-ms",
    ("mpeg", "mpeg1video"): ".mpg .mpeg .mpe .mpv",
    ("vob", "mpeg2video"): ".vob .m2p .vro .evo",
    ("mpeg1video", "mpeg1video"): ".m1v",
    ("mpeg2video", "mpeg2video"): ".m2v",
    ("mpegts", "mpeg2video"): ".ts .m2ts .mts .m2t .tod .trp",
    ("rm", "rv20"): ".rm .rmvb",
    ("dv", "dvvideo"): ".dv .dif",
    ("ogg", "libvpx"): ".ogg .ogv .ogm",
    ("ivf", "libvpx"): ".ivf",
    ("obu", "libsvtav1"): ".obu",
    ("flv", "flv1"): ".flv",
    ("gif", "gif"): ".gif",
    ("mjpeg", "mjpeg"): ".mjpeg .mjpg",
    ("h263", "h263"): ".h263",
    ("mxf", "mpeg2video"): ".mxf",
    ("nut", "mpeg4"): ".nut",
    ("wtv", "mpeg2video"): ".wtv",
    ("yuv4mpegpipe", "wrapped_avframe"): ".y4m",
}
SIZES = {"dvvideo": (720, 576), "h263": (128, 96)}
FORMATS = {"jpeg2000": "rgb24", "mjpeg": "yuvj420p", "gif": "rgb8"}


@pytest.mark.parametrize(("container", "codec"), KINDS, ids="-".join)
def test_the_decoder_opens_it_whatever_the_file_is_called(tmp_path: Path, container: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    width, height = SIZES.get(codec, (64, 48))
    with av.open(str(tmp_path / "bare"), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, FORMATS.get(codec, "yuv420p")
        for number in range(8):
            picture = np.full((height, width, 3), number * 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    info = probe(Source(str(tmp_path / "bare")))
    assert (info.frames, info.width, info.height) == (8, width, height)


def test_every_suffix_is_of_such_a_kind() -> None:
    assert {suffix for suffixes in KINDS.values() for suffix in suffixes.split()} == VIDEO_SUFFIXES


def test_what_a_name_says() -> None:
    assert is_video("a/b.MP4") and is_video("x.Dvr-ms") and not is_video("mp4") and not is_video("a.mp4.part")
    assert is_tar("a.TAR") and not is_tar("a.tar.gz") and not is_tar("tar")
    assert all(map(is_archive, ("a.tar.gz", "a.tgz", "b.tar.ZST", "c.zip", "d.mp4.gz"))) and not is_archive("a.tar")
    assert all(map(is_list, ("a.txt", "a.CSV", "a.tsv", "a.parquet"))) and not is_list("a.json")
    assert all(map(is_hidden, (".a", "a/.b/c", "x/__MACOSX/c"))) and not any(map(is_hidden, ("a/../b", "./a", "a.b")))
    assert (compression_of(b"\x1f\x8b\x08"), compression_of(b"a.mp4")) == ("gzip", "")
