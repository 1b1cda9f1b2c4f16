"""Kinds of video that real collections are full of and that once came out wrong; each stands for its kind."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.scan import probe_object
from pipelines.storage.location import Entry, Location
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, probe
from pipelines.video.isolated import IsolatedDecoder
from tests.support import differential
from tests.support.differential import ffmpeg
from tests.support.plans import planned

DATA = Path(__file__).parent / "data"
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x48:d=2:r=25")
SMALL = DecodeConfig(size=32)


def stride(path: Path, fps: float) -> int:
    """What clip.fps makes of a video."""
    with IsolatedDecoder(SMALL) as decoder:
        entry = Entry(Location(str(path)), path.stat().st_size, "1")
        [row] = probe_object(entry, decoder)
    plan = planned(pd.DataFrame([row]), str(path.parent), ClipConfig(fps=fps), 8)
    return int(plan["stride"].iloc[0])


def outcomes(path: Path, frames: int, length: int = 16) -> list[str]:
    clips = [[min(start + j, frames - 1) for j in range(length)] for start in range(0, frames, length)]
    found = dict(decode_clips(Source(str(path)), clips, SMALL))
    return [str(found[i]) if isinstance(found[i], VideoError) else "ok" for i in range(len(clips))]


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "ts", "m2ts"])
def test_two_fields_are_one_frame(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"a.{container}"
    if container == "mp4":
        shutil.copy(DATA / "field_coded_paff.mp4", path)
    else:
        ffmpeg("-i", DATA / "field_coded_paff.mp4", "-c", "copy", path)
    info = probe(Source(str(path)))
    assert (info.frames, round(info.fps, 3)) == (40, 25)
    assert outcomes(path, 40) == ["ok"] * 3
    differential.check(path, alone=10)


def test_a_field_without_its_other_half_is_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(DATA / "field_coded_paff.mp4")) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and n not in (21, 79):  # a second field within, and the last one
                packet.stream = copy
                out.mux(packet)
    expected, _ = differential.sequential(path)
    assert probe(Source(str(path))).frames == len(expected) == 38


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("pal8.avi", "rawvideo", "pal8"),
        ("pal8.mov", "rawvideo", "pal8"),
        ("gray.avi", "rawvideo", "gray"),
        ("gray.mov", "qtrle", "gray"),
        ("pal8.nut", "rawvideo", "pal8"),
    ],
)
def test_a_palette_reaches_every_frame(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = tmp_path / name
    ffmpeg(*PICTURES, "-frames:v", "20", "-c:v", codec, "-pix_fmt", pix_fmt, path)
    differential.check(path)
    for n in (0, 7, 19):
        [(_, frames)] = decode_clips(Source(str(path)), [[n]], SMALL)
        assert isinstance(frames, np.ndarray) and frames.std() > 20  # a picture, not black


MATRICES = {
    "as it is": (1, 0, 0, 1),
    "clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "anticlockwise": (0, -1, 1, 0),
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "transpose": (0, 1, 1, 0),
    "antitranspose": (0, -1, -1, 0),
}
BY_HAND = {
    "as it is": lambda p: p,
    "clockwise": lambda p: np.rot90(p, -1),
    "upside down": lambda p: p[::-1, ::-1],
    "anticlockwise": np.rot90,
    "hflip": lambda p: p[:, ::-1],
    "vflip": lambda p: p[::-1],
    "transpose": lambda p: p.swapaxes(0, 1),
    "antitranspose": lambda p: p[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_display_matrix_is_applied(tmp_path: Path, name: str) -> None:
    if not hasattr(av.video.stream.VideoStream, "set_display_matrix"):
        pytest.skip("this PyAV cannot write a display matrix")
    a, b, c, d = (number << 16 for number in MATRICES[name])
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgb24"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        picture = np.random.default_rng(1).integers(0, 256, (16, 32, 3), np.uint8)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    upright = BY_HAND[name](picture)
    info = probe(Source(str(path)))
    assert info.mirrored == (name in ("hflip", "vflip", "transpose", "antitranspose"))
    turned = upright.shape[:2] != picture.shape[:2]
    assert (info.rotation % 180 == 90) == turned
    [(_, frames)] = decode_clips(Source(str(path)), [[0]], SMALL, native=upright.shape[:2])
    np.testing.assert_array_equal(frames[0], upright)
    if shutil.which("ffmpeg"):
        ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", tmp_path / "raw")
        np.testing.assert_array_equal(np.fromfile(tmp_path / "raw", np.uint8).reshape(upright.shape), upright)


@pytest.mark.parametrize("name", ["hevc_sei_mastering_too_short.mp4", "hevc_sei_no_trailing_bits.mp4"])
def test_a_broken_message_touches_no_picture(name: str) -> None:
    assert outcomes(DATA / name, 20) == ["ok"] * 2
    differential.check(DATA / name)


@pytest.mark.parametrize("annexb", [False, True])
@pytest.mark.parametrize("message", [b"\x04\x20abc", b"\x89\x02ab", b"\x06", b"\xff\xff\xff", b"\x05\x10" + b"x" * 16])
def test_any_broken_message_touches_no_picture(tmp_path: Path, message: bytes, annexb: bool) -> None:
    """T.35 longer than the unit, mastering too short, an empty recovery point, an endless type, no stop bit."""
    with av.open(str(DATA / "hevc_sei_no_trailing_bits.mp4")) as source:
        packets = [(p.pts, bytes(p), p.is_keyframe) for p in source.demux(video=0) if p.size]
        path = tmp_path / ("a.ts" if annexb else "a.mkv")
        with av.open(str(path), "w") as out:
            copy = out.add_stream_from_template(source.streams.video[0])
            for pts, data, key in packets:
                for kind in (39, 40):  # before the picture, and after it
                    unit = bytes([kind << 1, 1]) + message
                    framed = len(unit).to_bytes(4, "big") + unit
                    data = framed + data if kind == 39 else data + framed
                packet = av.Packet(data)
                packet.pts = packet.dts = pts
                packet.time_base = source.streams.video[0].time_base
                packet.is_keyframe = key
                packet.stream = copy
                out.mux(packet)
    assert probe(Source(str(path))).frames == 20
    assert outcomes(path, 20) == ["ok"] * 2


def test_rates_are_those_of_the_time_stamps(tmp_path: Path) -> None:
    screen = DATA / "rate_vfr_screen_recording.webm"
    info = probe(Source(str(screen)))
    assert (info.frames, round(info.fps, 2), info.fps_source) == (130, 21.62, "timestamps")
    assert (info.duration, info.duration_source) == (pytest.approx(6.0), "timestamps")
    assert stride(screen, 5) == 4

    path = tmp_path / "last_frame_long.mp4"
    written(path, [*range(74), 74, 74 + 1500])
    assert (probe(Source(str(path))).frames, stride(path, 5)) == (75, 5)


def written(path: Path, ticks: list[int], codec: str = "libx264", rate: int = 25) -> Path:
    """A video whose frames are shown at these ticks; the last tick is its end."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={"bf": "0", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        packets = []
        for n, tick in enumerate(ticks[:-1]):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), n * 3 % 256, np.uint8), "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode()
        packets[-1].duration = ticks[-1] - ticks[-2]
        for packet in packets:
            out.mux(packet)
    return path


def test_the_rate_of_fields_is_not_the_rate_of_frames(tmp_path: Path) -> None:
    path = written(tmp_path / "fields.avi", list(range(0, 122, 2)), "mpeg4", 60)
    assert (probe(Source(str(path))).frames, stride(path, 5)) == (60, 6)


def test_a_container_that_states_no_rate_has_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ogv"
    noise = ("-vf", "noise=alls=20:allf=t")  # Theora stores nothing for a picture that is like the one before
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:d=2:r=30", *noise, "-c:v", "libtheora", path)
    info = probe(Source(str(path)))
    assert (info.fps, info.fps_source) == (pytest.approx(30), "timestamps")
    assert stride(path, 5) == 6


def test_durations_that_lie_are_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", list(range(101)))
    data = bytearray(path.read_bytes())
    for box in (b"mdhd", b"mvhd", b"tkhd"):
        at = data.index(box) + 4
        assert data[at] == 0  # version 0: 32-bit times
        begin = at + (20 if box == b"tkhd" else 16)
        data[begin : begin + 4] = bytes(4) if box != b"mdhd" else (40).to_bytes(4, "big")
    path.write_bytes(data)
    assert probe(Source(str(path))).duration == pytest.approx(4)

    stream = tmp_path / "a.ts"
    ffmpeg("-i", path, "-c", "copy", stream)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(stream.read_bytes() * 2)
    info = probe(Source(str(joined)))
    assert (info.frames, info.duration) == (200, pytest.approx(8))
    differential.check(joined)


def test_a_raw_stream_has_the_headers_rate_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    ffmpeg(*PICTURES, "-c:v", "libx264", "-bf", "2", path)
    info = probe(Source(str(path)))
    assert (info.frames, info.fps_source, info.duration, info.duration_source) == (50, "header", 2.0, "header")


def test_an_intra_refresh_stream_joined_late_begins_where_it_is_whole() -> None:
    path = DATA / "intra_refresh_joined_late.ts"
    assert probe(Source(str(path))).frames == 40
    assert outcomes(path, 40) == ["ok"] * 3
    differential.check(path)


def test_what_was_cut_inside_its_last_picture_is_shorter(tmp_path: Path) -> None:
    path = DATA / "cut_in_last_picture.ts"
    assert probe(Source(str(path))).frames == 24
    assert outcomes(path, 24) == ["ok"] * 2
    differential.check(path, cut=True)
    [(_, error)] = decode_clips(Source(str(path)), [[24]], SMALL)
    assert isinstance(error, VideoError) and error.reason == "too_short"

    whole = tmp_path / "whole.avi"
    ffmpeg(*PICTURES, "-c:v", "msmpeg4v3", "-g", "12", whole)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    differential.check(cut, cut=True)
    assert set(outcomes(cut, probe(Source(str(cut))).frames)) == {"ok"}


def test_a_size_that_changes_is_no_damage_wherever_reading_begins() -> None:
    path = DATA / "size_changes.flv"
    assert probe(Source(str(path))).frames == 100
    expected, _ = differential.sequential(path)
    for n in range(0, 100, 9):
        [(_, frames)] = decode_clips(Source(str(path)), [[n]], SMALL)
        np.testing.assert_array_equal(frames[0], expected[n], err_msg=f"frame {n} alone")
    both = dict(decode_clips(Source(str(path)), [[30], [90]], SMALL))
    np.testing.assert_array_equal(both[1][0], expected[90])


@pytest.mark.parametrize("scheme", [b"cenc", b"cbcs"])
def test_encrypted_video_is_named_as_such(tmp_path: Path, scheme: bytes) -> None:
    path = tmp_path / "a.mp4"
    key = ("-encryption_key", "0" * 31 + "1", "-encryption_kid", "0" * 31 + "2")
    ffmpeg(*PICTURES, "-c:v", "libx264", "-encryption_scheme", "cenc-aes-ctr", *key, path)
    path.write_bytes(path.read_bytes().replace(b"cenc\0\1\0\0", scheme + b"\0\1\0\0"))
    with pytest.raises(VideoError) as caught:
        probe(Source(str(path)))
    assert caught.value.reason == "encrypted"
    [(_, error)] = decode_clips(Source(str(path)), [[3]], SMALL)
    assert str(error) == str(caught.value)
