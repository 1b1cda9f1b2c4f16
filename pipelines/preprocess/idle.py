"""Which decoder takes the next piece of a video."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from pipelines.preprocess.videos import ShardVideo

D = TypeVar("D")


class IdleDecoders(Generic[D]):
    """Decoders that wait. One that had an earlier piece of the same video is preferred: it may still have it open
    (DecodeConfig.keep_open) and goes on from there.
    """

    def __init__(self, decoders: Sequence[D]) -> None:
        self._idle: list[tuple[D, ShardVideo | None, int]] = [(decoder, None, -1) for decoder in decoders]
        self._changed = threading.Condition()

    def take(self, video: ShardVideo, number: int) -> D:
        """A decoder for the `number`-th piece of a video; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle)
            near = [before if last is video and before < number else -1 for _, last, before in self._idle]
            return self._idle.pop(near.index(max(near)))[0]

    def give(self, decoder: D, video: ShardVideo, number: int) -> None:
        """Back, after that piece."""
        with self._changed:
            self._idle.append((decoder, video, number))
            self._changed.notify()
