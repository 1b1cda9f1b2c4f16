"""The progress of a job that makes shards: live on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.errors import PipelineError
from pipelines.preprocess.totals import Totals

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
_LOOK_SECONDS = 2.0  # between two looks at how far shards are that are being made


class Bar:
    """Shows the clips that are done, also of shards that are not committed yet.

    Args:
        clips: that are to be made.
        totals: of what is done, which others change.
        on_look: called with them every few seconds from a thread, and after every commit.
    """

    def __init__(
        self, console: Console, clips: int, totals: Totals, on_look: Callable[[Totals], None] = lambda totals: None
    ) -> None:
        self.console, self.clips, self.totals, self.on_look = console, clips, totals, on_look
        self.began = self.printed = time.monotonic()
        self.lock, self.over = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._look, name="autogaze-bar", daemon=True)
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]clips"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]}"),
                console=console,
            )
            self.task = self.progress.add_task("clips", total=clips, rate="starting", failed="0 failed")

    def __enter__(self) -> Bar:
        if self.progress:
            self.progress.start()
        self.thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.over.set()
        self.thread.join()
        if self.progress:
            self.progress.stop()

    def update(self) -> None:
        """Show how far it is. To be called after every commit."""
        with self.lock:
            self._show()
            self.on_look(self.totals)

    def _look(self) -> None:
        shown = 0
        while not self.over.wait(_LOOK_SECONDS):
            with self.lock:
                if self._done() != shown:
                    shown = self._done()
                    self._show()
                with suppress(PipelineError):  # a store that fails fails the job's own writes, which say so
                    self.on_look(self.totals)

    def _done(self) -> int:
        return min(self.totals.clips + self.totals.making, self.clips)

    def _show(self) -> None:
        totals, done = self.totals, self._done()
        failed, now = totals.failed.total(), time.monotonic()
        span = totals.span if totals.clips == done else now - self.began
        rate = done / max(span, 1e-9)
        if self.progress:
            shown = f"[red]{failed} failed[/red]" if failed else "0 failed"
            self.progress.update(self.task, completed=done, rate=f"{rate:.1f} clips/s", failed=shown)
        elif now - self.printed >= _PLAIN_SECONDS or totals.clips == self.clips:
            self.printed = now
            eta = (self.clips - done) / rate if rate else float("inf")
            self.console.print(
                f"{done}/{self.clips} clips  {rate:.1f} clips/s  eta {eta:.0f} s  {failed} failed",
                highlight=False,
            )
