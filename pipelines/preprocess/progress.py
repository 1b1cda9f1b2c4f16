"""How far the shards are that actors are making: what moves a job's progress between two commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SECONDS = 2.0  # between two reports of an actor, and between two looks at them


class Board:
    """Clips that are done, by shard, of the shards that are being made. An actor of Ray, one for a job."""

    def __init__(self) -> None:
        self._clips: dict[int, int] = {}

    def report(self, clips: dict[int, int]) -> None:
        self._clips |= clips

    def read(self, committed: list[int]) -> dict[int, int]:
        """The numbers, without those of shards that were committed since the last call."""
        for shard in committed:
            self._clips.pop(shard, None)
        return self._clips


class Reporter:
    """Tells a board now and then how far the shards of an actor are. It may be pickled.

    board: its handle; None: nobody is told.
    """

    def __init__(self, board: Any = None) -> None:
        self._board, self._told = board, 0.0
        self._clips: dict[int, int] = {}

    def __call__(self, shard: int, clips: int) -> None:
        if self._board is None:
            return
        self._clips[shard] = clips
        if time.monotonic() - self._told > _SECONDS:
            self._board.report.remote(self._clips)
            self._told, self._clips = time.monotonic(), {}


class Watch:
    """What the driver knows of the shards that are being made.

    Attributes:
        reporter: for the actors.
    """

    def __init__(self, on_progress: Callable[[int], None], board: Any) -> None:
        self.reporter, self._board, self._tell = Reporter(board), board, on_progress
        self._clips: dict[int, int] = {}
        self._committed, self._new, self._over = set[int](), list[int](), threading.Event()

    def committed(self, shard: int) -> None:
        """A shard is committed: its clips are counted elsewhere from now on."""
        self._committed.add(shard)
        self._new.append(shard)
        self._show()

    def run(self) -> None:
        import ray
        from ray.exceptions import RayError

        while not self._over.wait(_SECONDS):
            new, self._new = self._new, []
            try:
                self._clips = ray.get(self._board.read.remote(new))
            except RayError:  # lost with its node: progress then moves from commit to commit
                self._clips = {}
                return
            self._show()

    def _show(self) -> None:
        self._tell(sum(count for shard, count in self._clips.items() if shard not in self._committed))

    def end(self) -> None:
        self._over.set()


@contextmanager
def watching(on_progress: Callable[[int], None]) -> Iterator[Watch]:
    """Within the block `on_progress` is called every few seconds, from a thread, with the number of clips that are done
    in shards that are not committed yet. Without a running Ray it is not.
    """
    import ray

    if not ray.is_initialized():
        yield Watch(on_progress, None)
        return
    # It holds no CPU, and is started again on another node when it is lost.
    board: Any = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    watch = Watch(on_progress, board)
    thread = threading.Thread(target=watch.run, name="autogaze-progress", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        on_progress(0)
        with suppress(Exception):  # Ray may be gone by now
            ray.kill(board)
