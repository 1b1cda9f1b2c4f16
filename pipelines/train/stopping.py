"""When a run stops before its end: at once where steps are short, and within a step where they are long.

What was begun of a step is dropped, and the next attempt does it again: the ledger records a step once it is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pipelines.train.ranks import Ranks

_ASK_S = 1.0  # within a step, how often it is asked whether to stop


class StopRequested(Exception):
    """This rank was asked to stop while it prepared or learned from a step; nothing of the step is kept."""


class Stopping:
    """Asks whether to stop. All ranks answer alike, except to `asked_here`, which is for one rank's own waiting.

    wanted: asked on each rank; one yes stops all.
    """

    def __init__(self, ranks: Ranks, wanted: Callable[[], bool]) -> None:
        self._ranks, self._wanted = ranks, wanted
        self._asked_at = time.monotonic()
        self._step_s = math.inf  # of the last step, the same on all ranks

    def now(self) -> bool:
        """Whether this rank is asked to stop: for the collective at the beginning of a step."""
        self._asked_at = time.monotonic()
        return self._wanted()

    def stepped(self, seconds: float) -> None:
        """Note how long a step took on the slowest rank."""
        self._step_s = seconds

    def asked_here(self) -> bool:
        """Whether this rank is asked to stop, looked at once a second at most."""
        return time.monotonic() - self._asked_at > _ASK_S and self.now()

    def within_step(self) -> bool:
        """Whether to stop before the next part of a step. A collective; only where steps take long, since it waits."""
        if self._ranks.world == 1:
            return self.asked_here()
        return self._step_s > _ASK_S and self.agreed(self.now())

    def agreed(self, here: bool) -> bool:
        """Whether any rank says yes. A collective."""
        return bool(self._ranks.sum([float(here)])[0])


def never() -> bool:
    """No."""
    return False
