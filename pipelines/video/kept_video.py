"""The video that this process decoded last, open where that call ended.

A call that wants the next frames of the same group of pictures goes on from there; a new reader would decode them again
from their keyframe. That matters where each call takes few frames, as with tiles of large pictures. What comes out is
the same: the kept decoder has been given the very packets that a new one would be given first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from pipelines.video.base import Source
from pipelines.video.pyav_readers import IndexedReader
from pipelines.video.pyav_video import Video

_Bytes: TypeAlias = tuple[Source, int, tuple[int, ...]]


@dataclass
class OpenVideo:
    """A video and what reads its frames; `reader` may be replaced, and then nothing is kept."""

    video: Video
    reader: IndexedReader


_kept: tuple[_Bytes, OpenVideo, IndexedReader] | None = None


@contextmanager
def opened(
    source: Source, threads: int, reader: Callable[[Video], IndexedReader], first: int, last: int, keep: bool
) -> Iterator[OpenVideo]:
    """A video for frames from `first` to `last`: the kept one if it goes on to them, else opened anew.

    reader: makes one for a video just opened. keep: keep it for the next call, unless the block fails.
    Raises VideoError.
    """
    global _kept
    before, _kept = _kept, None
    there = None
    if before is not None:
        bytes_, open_, own = before
        if bytes_ == _bytes(source, threads) and own.goes_on(first, last):
            there = open_
        else:
            open_.video.close()
    if there is None:
        video = Video(source, threads)
        try:
            there = OpenVideo(video, reader(video))
        except BaseException:
            video.close()
            raise
    own, whole = there.reader, False
    try:
        yield there
        whole = keep and there.reader is own
    finally:
        if whole:
            _kept = _bytes(source, threads), there, own
        else:
            there.video.close()


def _bytes(source: Source, threads: int) -> _Bytes:
    """What is decoded, and how: another file may have been put in the place of a video."""
    try:
        status = os.stat(source.path)
    except OSError:
        return source, threads, ()
    return source, threads, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
