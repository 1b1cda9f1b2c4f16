"""Codec by container by what happens to real files: each is held to a plain sequential decode (tests/support)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import differential
from tests.support.differential import ffmpeg

X264 = ("-c:v", "libx264", "-g", "12", "-bf", "3")
CODECS: dict[str, tuple[tuple[str, ...], str]] = {
    "h264": (X264, "mp4 mov mkv ts m2ts mpg flv avi nut"),
    "one_key": (("-c:v", "libx264", "-g", "999", "-bf", "2"), "mp4 mkv ts avi"),
    "hevc": (("-c:v", "libx265", "-x265-params", "log-level=none:pools=1", "-g", "12"), "mp4 mkv ts"),
    "mpeg2": (("-c:v", "mpeg2video", "-g", "12", "-bf", "2"), "ts mpg mkv avi m2ts mxf"),
    "mpeg4": (("-c:v", "mpeg4", "-g", "12", "-bf", "2"), "avi mkv mp4"),
    "vp9": (("-c:v", "libvpx-vp9", "-cpu-used", "8", "-g", "12"), "webm mp4 ivf"),
    "av1": (("-c:v", "libaom-av1", "-cpu-used", "8", "-g", "12"), "mkv"),
    "msmpeg4": (("-c:v", "msmpeg4v3", "-g", "12"), "avi asf"),
    "wmv2": (("-c:v", "wmv2", "-g", "12"), "wmv"),
    "theora": (("-c:v", "libtheora"), "ogv"),
    "mjpeg": (("-c:v", "mjpeg"), "avi mov mjpeg"),
    "pal8": (("-c:v", "rawvideo", "-pix_fmt", "pal8"), "avi mov nut"),
    "qtrle": (("-c:v", "qtrle", "-pix_fmt", "gray"), "mov"),
    "cinepak": (("-c:v", "cinepak"), "avi"),
}
CUTS = ("whole", "tail", "head", "joined", "edit")
CUT_TAIL = ("ts", "m2ts", "mpg", "avi", "mkv", "flv", "webm", "nut", "wmv", "ogv", "ivf")
QUICK = {
    "mjpeg-mjpeg-whole",
    "h264-ts-whole",
    "h264-mov-edit",
    "h264-mkv-tail",
    "mpeg2-mpg-joined",
    "h264-avi-whole",
    "pal8-nut-whole",
}


def cases() -> list[object]:
    found = []
    for codec, (_, containers) in CODECS.items():
        for container in containers.split():
            for cut in CUTS:
                possible = {
                    "whole": True,
                    # With one keyframe nothing is left after the head, nor of so small an AVI but half a packet.
                    "tail": container in CUT_TAIL and (codec, container) != ("one_key", "avi"),
                    "head": container in ("ts", "m2ts", "mpg") and codec != "one_key",
                    "joined": container in ("ts", "mpg"),
                    "edit": container in ("mp4", "mov") and codec == "h264",
                }
                if possible[cut]:
                    name = f"{codec}-{container}-{cut}"
                    marks = () if name in QUICK else pytest.mark.slow
                    found.append(pytest.param(codec, container, cut, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("codec", "container", "cut"), cases())
def test_every_read_equals_a_sequential_decode(tmp_path: Path, codec: str, container: str, cut: str) -> None:
    path = tmp_path / f"a.{container}"
    pix_fmt = () if "-pix_fmt" in CODECS[codec][0] or codec == "cinepak" else ("-pix_fmt", "yuv420p")
    picture = ("-f", "lavfi", "-i", "testsrc2=s=64x48:d=2:r=25")
    ffmpeg(*picture, *CODECS[codec][0], *pix_fmt, path)
    data = path.read_bytes()
    if cut == "tail":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif cut == "head":
        path.write_bytes(data[len(data) // 3 :])
    elif cut == "joined":
        path.write_bytes(data * 2)
    elif cut == "edit":
        edited = tmp_path / f"edited.{container}"
        ffmpeg("-ss", "0.7", "-i", path, "-c", "copy", edited)
        path = edited
    differential.check(path, cut=cut == "tail", alone=4)
