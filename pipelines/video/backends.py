"""The back ends that decode, each a module of this package: what each offers, and what its failures mean for a clip.

A new one takes a module with the two functions of `Backend`, a branch in `backend` and its name in `base.DECODERS`;
tests/pipelines/video/test_decode.py then holds it to what pipelines.video.decode promises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pipelines.video.base import (
    SECOND,
    Buffer,
    DecodeConfig,
    LeftToPyAV,
    Native,
    Source,
    VideoError,
    out_of_memory,
    schedule,
)

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """A module that decodes: mypy compares each back end with this."""

    def fingerprint(self) -> str:
        """Its name and the versions that decide its pixels, for example "pyav-18.1.0/libavcodec-62.28.102"."""

    def decode_into(
        self,
        source: Source,
        clips: Sequence[Sequence[int]],
        order: Sequence[int],
        config: DecodeConfig,
        buffer: Buffer,
        native: Native | None,
    ) -> Iterator[tuple[int, VideoError | None]]:
        """Decode clips in the order given (places in `clips`) and write the frames of clip i to buffer(i).

        Frames are scaled to config.size, or with `native` not at all. Yields (i, None) for a clip that is complete and
        (i, VideoError) for one that failed; raises VideoError for all that are left. Raises LeftToPyAV, before the
        first clip, for a video that PyAV is to decode instead.
        """


def backend(name: str) -> Backend:
    """The back end of that name; only its own libraries are imported.

    Raises ImportError, one line that says what to install, if its libraries are missing.
    """
    if name == "decord":
        from pipelines.video import decord

        return decord
    if name == "torchcodec":
        from pipelines.video import torchcodec

        return torchcodec
    if name == "torchcodec-cuda":
        from pipelines.video import torchcodec_cuda

        return torchcodec_cuda
    if name == "pyav":
        from pipelines.video import pyav

        return pyav
    if name == SECOND:
        from pipelines.video import sequential

        return sequential
    raise ValueError(f"no back end is called {name!r}")


def ready_backend(name: str) -> Backend:
    """The back end of that name, to decode in this process.

    Raises ImportError, in one line, also where it needs a GPU and there is none: its fingerprint needs no GPU.
    """
    if name == "torchcodec-cuda":
        from pipelines.video import torchcodec_cuda

        torchcodec_cuda.require_device()
    return backend(name)


def _log_fallback(reason: str) -> None:
    _log.warning("a video is decoded by PyAV instead: %s", reason)


def outcomes(
    decoder: Backend,
    source: Source,
    clips: Sequence[Sequence[int]],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
    on_fallback: Callable[[str], None] = _log_fallback,
) -> Iterator[tuple[int, VideoError | None]]:
    """Every clip's outcome, exactly once, by ascending first frame: what a failure of the video means for each clip.

    on_fallback: told why, where PyAV decodes the video in place of `decoder`.
    """
    waiting = dict.fromkeys(schedule(clips))
    try:
        for i, error in _decoded(decoder, source, clips, list(waiting), config, buffer, native, on_fallback):
            del waiting[i]
            yield i, error
        if waiting:
            raise RuntimeError(f"decoder={config.decoder} gave no outcome for clips {list(waiting)}")
        return
    except VideoError as error:
        failure = error
    except MemoryError:
        failure = out_of_memory()
    for i in waiting:
        yield i, failure


def _decoded(
    decoder: Backend,
    source: Source,
    clips: Sequence[Sequence[int]],
    order: list[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
    on_fallback: Callable[[str], None],
) -> Iterator[tuple[int, VideoError | None]]:
    try:
        yield from decoder.decode_into(source, clips, order, config, buffer, native)
    except LeftToPyAV as left:
        on_fallback(str(left))
        yield from backend("pyav").decode_into(source, clips, order, config, buffer, native)
