"""The line of progress a training run shows in a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressDisplay:
    """Progress: one line that moves on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, every: float) -> None:
        self.console, self.every, self._said = console, every, -math.inf
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("waiting for the first step", total=None)
            self._progress.start()

    def step(self, step: int, steps: int, epoch: int, row: Mapping[str, float], seconds: float) -> None:
        of = f"/{steps}" if steps else ""
        loss = f"  loss {short_number(row['loss'])}" if "loss" in row else ""
        rate = f"  {row['samples_per_s']:.1f} clips/s  data wait {row['wait']:.1%}" if "wait" in row else ""
        left = f"  {_clock((steps - step) * seconds)} left" if steps else ""
        text = f"step {step}{of}  epoch {epoch}{loss}{rate}{left}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, total=steps or None, description=text)
        elif time.monotonic() - self._said >= self.every or step == steps:
            self._said = time.monotonic()
            self.say(text)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def short_number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
