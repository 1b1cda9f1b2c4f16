"""What happens in the decoder's child process stays there, and leaves no trace in the frames."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, probe
from pipelines.video.isolated import IsolatedDecoder
from tests.support import places

ROOT = places.ROOT
SIZE = 32
CLIPS = [[start, start + 1, start + 2] for start in range(0, 117, 3)]


def write(path: Path, frames: int, side: int, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"g": "24"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for n in range(frames):
            picture = np.full((side, side, 3), n * 2 % 256, np.uint8)
            picture[n % side] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(str(write(tmp_path_factory.mktemp("videos") / "video.mp4", 120, 320)))


@pytest.fixture(scope="module")
def frames(video: Source) -> dict[int, np.ndarray]:
    return {i: f for i, f in decode_clips(video, CLIPS, DecodeConfig(size=SIZE)) if isinstance(f, np.ndarray)}


@pytest.fixture
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(DecodeConfig(size=SIZE, timeout_s=20)) as decoder:
        yield decoder


def child_of(decoder: IsolatedDecoder) -> int:
    assert decoder._child is not None
    return decoder._child._process.pid


def gone(pid: int, within: float = 30) -> bool:
    """Whether a process that is not our child ends in time (a zombie has ended)."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def reasons(outcomes: Iterator[tuple[int, np.ndarray | VideoError]]) -> dict[int, str]:
    return {i: outcome.reason if isinstance(outcome, VideoError) else "ok" for i, outcome in outcomes}


def test_the_same_frames_facts_and_failures_as_in_process(
    decoder: IsolatedDecoder, video: Source, frames: dict[int, np.ndarray], tmp_path: Path
) -> None:
    assert decoder.probe(video) == probe(video)
    for i, decoded in decoder.decode_clips(video, CLIPS):
        np.testing.assert_array_equal(decoded, frames[i])
    assert [i for i, _ in decoder.decode_clips(video, [[9], [3], [6]])] == [1, 2, 0]

    (tmp_path / "text.mp4").write_text("no video")
    nothing = Source(str(tmp_path / "text.mp4"))
    with pytest.raises(VideoError) as here:
        probe(nothing)
    with pytest.raises(VideoError) as there:
        decoder.probe(nothing)
    assert str(there.value) == str(here.value)
    assert reasons(decoder.decode_clips(nothing, [[0], [1]])) == {0: "unreadable", 1: "unreadable"}
    assert reasons(decoder.decode_clips(video, [[0], [999]])) == {0: "ok", 1: "too_short"}
    assert list(decoder.decode_clips(video, [])) == []
    assert decoder.restarts == 0


def test_a_relative_path_means_the_callers_folder(
    decoder: IsolatedDecoder, video: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(video.path).parent)
    assert decoder.probe(Source("video.mp4")).frames == 120


def test_frames_outlive_the_call_and_the_decoder(video: Source, frames: dict[int, np.ndarray]) -> None:
    with IsolatedDecoder(DecodeConfig(size=SIZE)) as decoder:
        kept = dict(decoder.decode_clips(video, CLIPS))
        dict(decoder.decode_clips(video, CLIPS[::-1]))  # another call writes elsewhere
    gc.collect()
    for i, decoded in kept.items():
        np.testing.assert_array_equal(decoded, frames[i])
        decoded[...] = 0  # and they are the caller's to write to


def test_frames_go_where_the_caller_wants_them(
    decoder: IsolatedDecoder, video: Source, frames: dict[int, np.ndarray]
) -> None:
    out = np.full((len(CLIPS) + 1, 3, SIZE, SIZE, 3), 7, np.uint8)
    for i, decoded in decoder.decode_clips(video, [*CLIPS, [1, 2, 999]], out):
        assert isinstance(decoded, VideoError) or np.shares_memory(decoded, out[i])
    np.testing.assert_array_equal(out[:-1], np.stack([frames[i] for i in range(len(CLIPS))]))
    assert (out[-1] == 7).all()
    with pytest.raises(ValueError, match=r"out\[0\] is uint8 \(2, 32, 32, 3\): must be uint8 \(3, 32, 32, 3\)"):
        list(decoder.decode_clips(video, CLIPS[:1], out[:, :2]))


def test_a_child_killed_at_any_moment_leaves_no_trace(
    decoder: IsolatedDecoder, video: Source, frames: dict[int, np.ndarray]
) -> None:
    rng = random.Random(11)
    for _ in range(8):
        decoder.probe(video)
        killer = threading.Timer(rng.uniform(0, 0.06), os.kill, (child_of(decoder), signal.SIGKILL))
        killer.start()
        outcomes = dict(decoder.decode_clips(video, CLIPS))
        killer.join()
        assert sorted(outcomes) == sorted(frames)
        for i, decoded in outcomes.items():
            np.testing.assert_array_equal(decoded, frames[i])
    assert 1 <= decoder.restarts <= 8


def test_a_second_child_does_not_touch_what_the_first_delivered(
    decoder: IsolatedDecoder, video: Source, frames: dict[int, np.ndarray]
) -> None:
    for i, decoded in decoder.decode_clips(video, CLIPS):
        np.testing.assert_array_equal(decoded, frames[i])
        decoded[...] = 0
        if i == 10:
            os.kill(child_of(decoder), signal.SIGKILL)
            kept = decoded
    assert decoder.restarts == 1 and not kept.any()


def test_a_child_killed_while_idle_is_replaced(decoder: IsolatedDecoder, video: Source) -> None:
    decoder.probe(video)
    for restarts in (1, 2, 3):
        os.kill(child_of(decoder), signal.SIGKILL)
        assert decoder.probe(video).frames == 120
        assert decoder.restarts == restarts


@pytest.mark.parametrize(
    ("blow", "reason"),
    [
        (signal.SIGSEGV, "decoder_crashed"),
        (signal.SIGKILL, "decoder_out_of_memory"),
        pytest.param(signal.SIGSTOP, "decoder_timeout", marks=pytest.mark.slow),
    ],
)
def test_a_video_that_always_kills_costs_its_remaining_clips_and_nothing_else(
    video: Source, frames: dict[int, np.ndarray], blow: signal.Signals, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IsolatedDecoder(DecodeConfig(size=SIZE, timeout_s=2)) as decoder:
        outcomes = {}
        for i, outcome in decoder.decode_clips(video, CLIPS):
            outcomes[i] = outcome
            if i == 4:  # every child from now on is struck before it can answer
                start = decoder._warm_child

                def struck(start=start):  # type: ignore[no-untyped-def]
                    child = start()
                    os.kill(child._process.pid, blow)
                    time.sleep(0.05)
                    return child

                os.kill(child_of(decoder), signal.SIGKILL)
                monkeypatch.setattr(decoder, "_warm_child", struck)
        monkeypatch.undo()
        done = [i for i, outcome in outcomes.items() if isinstance(outcome, np.ndarray)]
        assert done[:5] == [0, 1, 2, 3, 4] and done == list(range(len(done)))
        failed = {str(outcome) for outcome in outcomes.values() if isinstance(outcome, VideoError)}
        assert len(failed) <= 1 and all(text.startswith(reason + ": ") for text in failed)
        assert sorted(outcomes) == list(range(len(CLIPS)))

        dead = decoder.restarts
        for i, decoded in decoder.decode_clips(video, CLIPS):  # the next video is fine
            np.testing.assert_array_equal(decoded, frames[i])
        assert decoder.restarts == dead


def test_a_hang_ends_at_the_time_limit(video: Source) -> None:
    with IsolatedDecoder(DecodeConfig(size=SIZE, timeout_s=1)) as decoder:
        decoder.probe(video)
        os.kill(child_of(decoder), signal.SIGSTOP)
        start = time.monotonic()
        assert decoder.probe(video).frames == 120  # by the child that took its place
        assert time.monotonic() - start > 1
        assert decoder.restarts == 1


def test_the_time_limit_is_per_clip_not_per_video(video: Source) -> None:
    """A slow consumer, or a video of many clips, is no hang."""
    with IsolatedDecoder(DecodeConfig(size=SIZE, timeout_s=1)) as decoder:
        for _, outcome in decoder.decode_clips(video, CLIPS[:8]):
            assert isinstance(outcome, np.ndarray)
            time.sleep(0.2)
        assert decoder.restarts == 0


def test_a_giant_hits_the_memory_limit_and_the_machine_does_not_notice(tmp_path: Path, video: Source) -> None:
    giant = Source(str(write(tmp_path / "giant.mp4", 2, 4096)))
    with IsolatedDecoder(DecodeConfig(size=SIZE, memory_mb=40)) as decoder:
        with pytest.raises(VideoError, match="decoder_out_of_memory"):
            decoder.probe(giant)
        assert reasons(decoder.decode_clips(giant, [[0], [1]])) == {
            0: "decoder_out_of_memory",
            1: "decoder_out_of_memory",
        }
        assert decoder.probe(video).frames == 120
        assert set(reasons(decoder.decode_clips(video, CLIPS)).values()) == {"ok"}
        status = Path(f"/proc/{child_of(decoder)}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < 250 << 10
    with IsolatedDecoder(DecodeConfig(size=SIZE)) as decoder:
        assert decoder.probe(giant).width == 4096


PARENT = """
import os, signal, sys, time
from pipelines.video.base import DecodeConfig, Source
from pipelines.video.isolated import IsolatedDecoder
decoder = IsolatedDecoder(DecodeConfig(size=32))
decoder.probe(Source(sys.argv[1]))
pid = decoder._child._process.pid
if sys.argv[2] == "hanging":
    os.kill(pid, signal.SIGSTOP)
print(pid, flush=True)
if sys.argv[2] == "exit":
    sys.exit()
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["killed", "hanging", "exit"])
def test_the_child_never_outlives_its_parent(video: Source, how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, video.path, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if how != "exit":
        assert not gone(child, within=0.2)
        parent.kill()
    parent.communicate()
    assert gone(child)


def test_the_child_survives_the_thread_that_started_it(decoder: IsolatedDecoder, video: Source) -> None:
    thread = threading.Thread(target=decoder.probe, args=(video,))
    thread.start()
    thread.join()
    assert decoder.probe(video).frames == 120
    assert decoder.restarts == 0


def test_interrupts_from_the_terminal_are_the_parents_alone(video: Source) -> None:
    program = PARENT.replace("time.sleep(60)", "decoder.probe(Source(sys.argv[1])); os.kill(0, signal.SIGINT)")
    program = program.replace("import os", "import signal; signal.signal(signal.SIGINT, lambda *_: None)\nimport os", 1)
    program += "time.sleep(1); decoder.probe(Source(sys.argv[1])); print(decoder.restarts)"
    done = subprocess.run(
        [sys.executable, "-c", program, video.path, ""],
        capture_output=True,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert (done.stdout.split()[-1], done.stderr) == ("0", "")


def open_files() -> list[str]:
    links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if link.is_symlink())


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.slow
def test_nothing_leaks(video: Source, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    before = open_files(), children()
    for _ in range(3):
        with IsolatedDecoder(DecodeConfig(size=SIZE)) as decoder:
            decoder.probe(video)
            os.kill(child_of(decoder), signal.SIGKILL)
            assert set(reasons(decoder.decode_clips(video, CLIPS)).values()) == {"ok"}
            reasons(decoder.decode_clips(Source(str(tmp_path / "text.mp4")), [[0]]))
            next(decoder.decode_clips(video, CLIPS))  # and given up
            decoder.probe(video)
        decoder.close()  # twice does no harm
    gc.collect()
    assert (open_files(), children()) == before


def test_one_call_at_a_time(decoder: IsolatedDecoder, video: Source) -> None:
    outcomes = decoder.decode_clips(video, CLIPS)
    next(outcomes)
    with pytest.raises(RuntimeError, match="finish or close the last decode_clips iterator"):
        decoder.probe(video)
    outcomes.close()  # type: ignore[attr-defined]
    assert decoder.probe(video).frames == 120
    assert decoder.restarts == 0  # given up by the caller: nobody's failure


def test_a_bug_is_not_a_bad_video(decoder: IsolatedDecoder, video: Source) -> None:
    """A failure of our own code surfaces as itself, with the child's traceback."""
    with pytest.raises(RuntimeError, match=r"the decoder child failed:\nTraceback(?s:.*)TypeError"):
        decoder.probe(Source(video.path, "zero"))  # type: ignore[arg-type]
    assert decoder.probe(video).frames == 120


def test_a_child_that_cannot_start_says_why(video: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(RuntimeError, match=r"the decoder child did not start \(exit status 1\): (?s:.*)/nowhere"):
        IsolatedDecoder().probe(video)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(FileNotFoundError):
        IsolatedDecoder().probe(video)


def test_a_child_starts_fast_and_light(video: Source) -> None:
    program = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from pipelines.video import child\nfrom pipelines.video.backends import backend\n"
        "backend('pyav')\nassert not {'torch', 'ray', 'fsspec', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\nprint(use.ru_utime + use.ru_stime)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    seconds, kilobytes = done.stdout.split()
    assert float(seconds) < 2 and int(kilobytes) < 200_000  # 0.3 s and 60 MB here
