"""The child process of IsolatedDecoder: it reads requests, decodes, and writes frames into shared memory.

Started by pipelines.video.isolated as `python -m pipelines.video.child CONFIG LIFELINE`, with a socket to the
parent as its standard input. One JSON object per line each way; the memory for frames arrives beside a request, as a
file descriptor. Nothing is pickled.

    request  {"probe": SOURCE}                                   answer   {"info": VIDEOINFO} or FAILURE, {"end": true}
    request  {"source": SOURCE, "native": [HEIGHT, WIDTH] or null, "clips": [[at, FRAMES], ...]}
             at: where clip i starts in the memory, in frames;   answers  {"clip": i} or {"clip": i, **FAILURE} for each
             null: decode it, its frames are not needed                   clip, by ascending first frame; {"end": true};
                                                                          first {"fallback": WHY} if PyAV decodes it
    FAILURE = {"reason": ..., "detail": ...}; a bug of ours comes back as {"bug": TRACEBACK}
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.video.backends import Backend, outcomes, ready_backend
from pipelines.video.base import ON_GPU, DecodeConfig, Source, VideoError, frame_shape


def main() -> None:
    config = DecodeConfig(**json.loads(sys.argv[1]))
    _die_with_parent(int(sys.argv[2]))
    wire = socket.socket(fileno=0)
    try:
        decoder = ready_backend(config.decoder)
        _limit_memory(None if config.decoder in ON_GPU else config.memory_mb)
    except ImportError as error:
        _send(wire, {"refused": str(error)})
        return
    # From here on only libraries write to stderr, and their logs must not fill the parent's disk.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    _send(wire, {"ready": True})
    for request, memory in _requests(wire):
        try:
            for answer in _answers(decoder, config, request, memory):
                _send(wire, answer)
        except Exception:  # noqa: BLE001 - the parent raises it again, with this traceback
            _send(wire, {"bug": traceback.format_exc()})
        _send(wire, {"end": True})


def _answers(
    decoder: Backend, config: DecodeConfig, request: dict[str, Any], memory: mmap.mmap | None
) -> Iterator[dict[str, Any]]:
    if "probe" in request:
        from pipelines.video import pyav  # whichever back end decodes; loaded only where a scan asks

        try:
            yield {"info": asdict(pyav.probe(Source(**request["probe"]), config.index_dir))}
        except VideoError as failure:
            yield {"reason": failure.reason, "detail": failure.detail}
        return

    assert memory is not None
    native = None if request["native"] is None else (request["native"][0], request["native"][1])
    frames = np.frombuffer(memory, np.uint8).reshape(-1, *frame_shape(config, native))
    starts = [at for at, _ in request["clips"]]
    clips = [clip for _, clip in request["clips"]]

    def buffer(i: int) -> np.ndarray:
        if starts[i] is None:
            return np.empty((len(clips[i]), *frames.shape[1:]), np.uint8)
        return frames[starts[i] : starts[i] + len(clips[i])]

    fallbacks: list[str] = []
    for i, error in outcomes(
        decoder, Source(**request["source"]), clips, config, buffer, native, on_fallback=fallbacks.append
    ):
        while fallbacks:
            yield {"fallback": fallbacks.pop()}
        yield {"clip": i} | ({} if error is None else {"reason": error.reason, "detail": error.detail})


def _requests(wire: socket.socket) -> Iterator[tuple[dict[str, Any], mmap.mmap | None]]:
    """Requests with the memory sent beside them, until the parent closes the socket."""
    received = b""
    memory: mmap.mmap | None = None
    while True:
        data, descriptors, _, _ = socket.recv_fds(wire, 1 << 16, 1)
        if not data:
            return
        for descriptor in descriptors:
            memory = mmap.mmap(descriptor, 0)
            os.close(descriptor)
        received += data
        while b"\n" in received:
            line, received = received.split(b"\n", 1)
            sent, memory = memory, None
            yield json.loads(line), sent


def _send(wire: socket.socket, message: dict[str, Any]) -> None:
    wire.sendall(json.dumps(message).encode() + b"\n")


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the parent's end of the pipe closes, however the parent ended.

    Reading the pipe in a thread would not do: a decoder that hangs in C may hold the interpreter lock. PR_SET_PDEATHSIG
    would not do either: it fires when the *thread* that started the child ends.
    """
    if hasattr(fcntl, "F_SETSIG"):  # Linux; elsewhere the signal is SIGIO, whose default action kills as well
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):  # it closed before the signal was armed
        if os.read(lifeline, 1) == b"":
            os.kill(os.getpid(), signal.SIGKILL)


def _limit_memory(memory_mb: int | None) -> None:
    """Limit what may be allocated from now on, and be the first to be killed if the machine runs out of memory.

    None: no limit. CUDA maps more than any limit that would mean something.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an outcome here, not a file of gigabytes
    if memory_mb is None:
        return
    status = Path("/proc/self/status")
    if status.exists():
        # RLIMIT_DATA and not RLIMIT_AS: libraries and the shared frames are mapped too, and need no limit.
        used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line[:7] == "VmData:")
        limit = used + (memory_mb << 20)
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most == resource.RLIM_INFINITY or limit < most:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
