"""IsolatedDecoder: decoding in a warm child process, so that no input can hurt the process that uses it.

A child that dies, falls silent or runs out of memory is replaced, and the clips it had not delivered are requested once
more. Two such losses with no clip between them are the video's fault: its undelivered clips fail, and decoding goes on
with the next video.

- Why a second try: a child may be lost for reasons outside the video (an operator, the kernel short of memory, a stall
  of the machine). These leave no trace in the output, which stays a function of the input's bytes.
- Why delivered clips count: clips are delivered in a fixed order, each as soon as it is complete, and none depends on
  the others. So the clip at which a decoder dies again and again is a fact about the bytes too.
- Why the clips after it fail untried: each would cost two more children, or twice the time limit, for a file that
  kills decoders.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipelines.video.base import DecodeConfig, Native, Source, VideoError, VideoInfo, frame_shape, schedule

_START_S = 60.0  # importing torch from a cold network file system takes a while
_STARTS = 3  # a child may be killed while it starts, like any process
_CPU_CLOCK = (
    2  # Linux's number for a process's CPU clock: clock_getcpuclockid(3), which Python lacks, gives ~pid << 3 | 2
)
_ROOT = Path(__file__).resolve().parents[2]  # the folder `pipelines` is imported from


def index_folder() -> str:
    """Where this node keeps frame indexes: for DecodeConfig.index_dir."""
    return os.path.join(tempfile.gettempdir(), f"autogaze-indexes-{os.getuid()}")


class _Lost(Exception):
    """The child can no longer be used. `failure` is what its clips fail with, if they do."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.failure = VideoError(reason, detail)


class IsolatedDecoder:
    """pipelines.video.decode's `probe` and `decode_clips` in a child process. Use as a context manager, or close() it.

    One thread and one call at a time: finish or close a `decode_clips` iterator before the next call. The child starts
    with the first call and never outlives this process.
    """

    def __init__(self, config: DecodeConfig | None = None):
        self.config = config or DecodeConfig()
        self.restarts = 0  # children replaced since they died, fell silent or ran out of memory
        self.fallbacks: Counter[str] = Counter()  # videos that PyAV decoded in place of the back end, by reason
        self._child: _Child | None = None
        self._busy = False

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def cpu_seconds(self) -> float | None:
        """CPU seconds that the child has used so far; None without a child, and where the system does not tell."""
        return None if self._child is None else self._child.cpu_seconds()

    def close(self) -> None:
        """End the child. A later call starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def probe(self, source: Source) -> VideoInfo:
        """As pipelines.video.decode.probe. VideoError also if a decoder crashes, hangs or runs out of memory."""
        try:
            answers = list(self._converse(lambda: {"probe": _request_source(source)}))
        except _Lost as lost:
            raise lost.failure from None
        if len(answers) != 1:
            raise RuntimeError(f"a decoder child gave {len(answers)} answers to a probe")
        answer = answers[0]
        if "reason" in answer:
            raise VideoError(answer["reason"], answer["detail"])
        return VideoInfo(**answer["info"])

    def decode_clips(
        self,
        source: Source,
        clips: Sequence[Sequence[int]],
        out: np.ndarray | Sequence[np.ndarray] | None = None,
        native: Native | None = None,
    ) -> Iterator[tuple[int, np.ndarray | VideoError]]:
        """As pipelines.video.decode.decode_clips, by this decoder's config; `native` as there.

        The frames are views of the memory the child wrote them to: no copy is made. All clips of a call share one
        mapping, which lives as long as any of them, so ask for some clips at a time, not for a film's. With `out`
        (uint8 [clips, T, *frame], or one array per clip) the frames of clip i are copied to out[i], which is
        yielded; out[i] is left as it was if the clip fails.
        """
        order = schedule(clips)
        shape = frame_shape(self.config, native)
        starts = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])]).astype(int).tolist()
        for i, clip in enumerate(clips):
            if out is not None and (out[i].shape != (len(clip), *shape) or out[i].dtype != np.uint8):
                raise ValueError(f"out[{i}] is {out[i].dtype} {out[i].shape}: must be uint8 {(len(clip), *shape)}")
        if not order:
            return
        waiting = dict.fromkeys(order)

        def request() -> dict[str, Any]:
            # All clips, also after a loss: what damaged data decodes to may depend on what was decoded before it. The
            # frames of delivered clips belong to the caller, so they are not written again.
            places = [starts[i] if i in waiting else None for i in range(len(clips))]
            wanted = [[at, [int(n) for n in clip]] for at, clip in zip(places, clips, strict=True)]
            return {"source": _request_source(source), "native": native, "clips": wanted}

        descriptor = _anonymous_file(starts[-1] * math.prod(shape))
        try:
            frames = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8).reshape(-1, *shape)
            for answer in self._converse(request, descriptor):
                if "fallback" in answer:
                    self.fallbacks[answer["fallback"]] += 1
                    continue
                i = answer["clip"]
                del waiting[i]
                if "reason" in answer:
                    yield i, VideoError(answer["reason"], answer["detail"])
                elif out is None:
                    yield i, frames[starts[i] : starts[i + 1]]
                else:
                    out[i][...] = frames[starts[i] : starts[i + 1]]
                    yield i, out[i]
        except _Lost as lost:
            for i in waiting:
                yield i, lost.failure
        finally:
            os.close(descriptor)

    def _converse(self, request: Callable[[], dict[str, Any]], memory: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield each answer once; after a loss, from a new child. Raises _Lost for two with no answer between."""
        if self._busy:
            raise RuntimeError("IsolatedDecoder: finish or close the last decode_clips iterator before the next call")
        self._busy = True
        try:
            losses = 0
            answered: set[int | None] = set()
            while True:
                child = self._warm_child()
                try:
                    child.send(request(), memory)
                    while "end" not in (answer := child.receive(self.config.timeout_s)):
                        if "bug" in answer:
                            raise RuntimeError(f"the decoder child failed:\n{answer['bug']}")
                        if answer.get("reason") == "decoder_out_of_memory":
                            raise _Lost(answer["reason"], answer["detail"])  # earlier videos may have used it up
                        if answer.get("clip") not in answered:
                            losses = 0
                            answered.add(answer.get("clip"))
                            yield answer
                    break
                except _Lost:
                    self.close()
                    self.restarts += 1
                    losses += 1
                    if losses == 2:
                        raise
        except BaseException:
            self.close()  # the rest of its answer would be taken for the next one
            raise
        finally:
            self._busy = False

    def _warm_child(self) -> _Child:
        if self._child is not None and not self._child.alive():  # killed while it had nothing to do
            self.close()
            self.restarts += 1
        for attempt in range(1, _STARTS + 1):
            if self._child is not None:
                break
            try:
                self._child = _Child(self.config)
            except RuntimeError:
                if attempt == _STARTS:
                    raise  # no accident: this machine cannot start one
                self.restarts += 1
        assert self._child is not None
        return self._child


class _Child:
    """One child process and the socket to it."""

    def __init__(self, config: DecodeConfig):
        self._timeout_s = config.timeout_s
        self._received = b""
        self._wire, theirs = socket.socketpair()
        alive, self._lifeline = os.pipe()
        with tempfile.TemporaryFile() as errors:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pipelines.video.child", json.dumps(asdict(config)), str(alive)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,  # a file: nobody has to read it for the child to go on
                    pass_fds=[alive],
                    cwd=_ROOT,
                    # One decoder, one core: numpy and torch would each start a thread per core of the machine.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C in the terminal is for the parent to handle
                )
            except OSError:
                self._hang_up()
                raise
            finally:
                theirs.close()  # with our copies open, the child's death would not show
                os.close(alive)
            try:
                hello = self.receive(_START_S)
            except _Lost as lost:
                self.kill()
                errors.seek(0)
                message = errors.read()[-2000:].decode(errors="replace").strip()
                raise RuntimeError(f"the decoder child did not start ({lost.failure.detail}): {message}") from None
        if "refused" in hello:
            self.kill()
            raise ImportError(hello["refused"])

    def alive(self) -> bool:
        return self._process.poll() is None

    def cpu_seconds(self) -> float | None:
        """CPU seconds of all its threads so far; None where the system does not tell."""
        if not sys.platform.startswith("linux"):
            return None
        try:
            return time.clock_gettime(~self._process.pid << 3 | _CPU_CLOCK)
        except OSError:  # it has ended
            return None

    def send(self, request: dict[str, Any], memory: int | None) -> None:
        line = json.dumps(request).encode() + b"\n"
        self._wire.settimeout(self._timeout_s)
        try:
            sent = socket.send_fds(self._wire, [line[:1]], [] if memory is None else [memory])
            self._wire.sendall(line[sent:])
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            raise self._dead() from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises _Lost if the child dies or is silent for that long."""
        self._wire.settimeout(timeout_s)
        while b"\n" not in self._received:
            try:
                data = self._wire.recv(1 << 16)
            except TimeoutError:
                raise self._silent() from None
            except OSError:
                raise self._dead() from None
            if not data:
                raise self._dead()
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        self._wire.close()
        os.close(self._lifeline)

    def _silent(self) -> _Lost:
        return _Lost("decoder_timeout", "no clip finished within the time limit")

    def _dead(self) -> _Lost:
        """The socket has closed: the child is dead, or about to be."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return _Lost("decoder_crashed", "closed its socket")
        if code == -signal.SIGKILL:
            return _Lost("decoder_out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out")
        if code < 0:
            return _Lost("decoder_crashed", f"killed by {signal.Signals(-code).name}")
        return _Lost("decoder_crashed", f"exit status {code}")


def _request_source(source: Source) -> dict[str, Any]:
    """A source as the child takes it: with an absolute path, since the child runs in another folder."""
    return {**asdict(source), "path": os.path.abspath(source.path)}


def _anonymous_file(size: int) -> int:
    """A descriptor of memory that both processes can map, freed with its last user. Untouched pages take no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("decoded-frames", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
