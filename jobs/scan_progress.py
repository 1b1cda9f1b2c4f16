"""How a scan is shown: a bar on a terminal, a line now and then elsewhere, and what it passed over."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.corpus.passed import PassedOver

_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


class ScanProgress(AbstractContextManager["ScanProgress"]):
    """The progress of a scan. When it is interrupted, it says that the next one goes on from there."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.done = self.total = self.before = 0
        self.began = self.printed = time.monotonic()
        self.bar: Progress | None = None

    def update(self, done: int, total: int) -> None:
        """So many objects of all are done. The first call says how many were before."""
        if not self.total:
            self.before, self.began = done, time.monotonic()
            if done < total:
                self._begin(done, total)
        self.done, self.total = done, total
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif time.monotonic() - self.printed >= _PLAIN_SECONDS:
            self.printed = time.monotonic()
            rate = (done - self.before) / max(self.printed - self.began, 1e-9)
            eta = f"  eta {(total - done) / rate:.0f} s" if rate else ""
            self._say(f"scanned {done:,} of {total:,} files  {rate:.1f} files/s{eta}")

    def _begin(self, done: int, total: int) -> None:
        known = f" ({done:,} are known from an earlier scan)" if done else ""
        self._say(f"scanning {total - done:,} of {total:,} files{known}")
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn())
            self.bar = Progress(TextColumn("[bold]files"), *columns, console=self.console)
            self.task = self.bar.add_task("files", total=total, completed=done)
            self.bar.start()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if kind is not None and self.done > self.before:
            self._say(f"scanned {self.done:,} of {self.total:,} files; the same command goes on from there")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_passed(console: Console, passed: PassedOver) -> None:
    """Print what was passed over, by reason; nothing where there is nothing."""
    if passed.total:
        console.print(f"passed over: {passed.total:,}", highlight=False)
    for line in passed.lines():
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
