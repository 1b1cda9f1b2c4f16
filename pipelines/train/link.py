"""Between the driver and the ranks that Ray Train starts: a wish to stop goes there, rank 0's lines come back."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console

_NAME = "autogaze-stop"
_WAIT_S = 5.0  # for an actor that is just being restarted


class _StopAndLines:
    """The actor that both sides talk to."""

    def __init__(self) -> None:
        self._stop = False
        self._lines: list[str] = []

    def set(self) -> None:
        self._stop = True

    def is_set(self) -> bool:
        return self._stop

    def say(self, line: str) -> None:
        self._lines.append(line)

    def take_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def linked(stopping: Callable[[], bool], console: Console | None) -> Iterator[None]:
    """The driver's side: about once a second `stopping` is asked and passed on, and rank 0's lines are printed."""
    import ray

    # Restarted when it is killed, or its node is lost.
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(_StopAndLines).options(name=_NAME).remote()
    over = threading.Event()

    def work() -> None:
        while not over.wait(1.0):
            if stopping():
                actor.set.remote()  # every second, since a restarted actor has forgotten it
            _print(actor, console)
        _print(actor, console)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        ray.kill(actor)


def _print(actor: Any, console: Console | None) -> None:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    if console is None:
        return
    try:
        lines = ray.get(actor.take_lines.remote(), timeout=_WAIT_S)
    except (RayActorError, GetTimeoutError):  # it is being restarted: its lines are lost, events.jsonl has them
        return
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


class RankLink:
    """A rank's side."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.get_actor(_NAME)
        self._pending: list[Any] = []  # at most one question, so that no step waits for an answer

    def stopping(self) -> bool:
        """Whether the driver wishes to stop, as far as is known here."""
        import ray
        from ray.exceptions import RayActorError

        if not self._pending:
            self._pending.append(self._actor.is_set.remote())
        ready, _ = ray.wait(self._pending, timeout=0)
        if not ready:
            return False
        try:
            return bool(ray.get(self._pending.pop()))
        except RayActorError:  # the actor is restarting; the next question may reach it
            return False

    def console(self) -> Console:
        """A console whose lines the driver prints."""
        return Console(file=cast(IO[str], _Lines(self._actor)), width=10_000, force_terminal=False, color_system=None)


class _Lines(io.TextIOBase):
    """A text file that sends each line to the actor."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor, self._begun = actor, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._actor.say.remote(line.rstrip())
        return len(text)
