"""checkpoints/best: which checkpoint of a run had the lowest of a validation's numbers, and how far that was looked at.

One line: `step-000260 val_loss 4.0712 1040`, the checkpoint's folder, the number's name and value, and the last step
that was validated. A validation that a kill left out is made up for when the run goes on, so a run that was killed ends
with the best checkpoint of one that was not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.storage import store
from pipelines.storage.location import Location

BEST = "best"
AVERAGED = "-ema"
"""What the folder of averaged weights is called in a checkpoint: policy-ema beside policy."""
_LINE = re.compile(r"step-(\d{6,}) (\S+) (\S+) (\d+)\s*")


@dataclass(frozen=True)
class BestCheckpoint:
    """step: of the best checkpoint. value: of the number `measure` there. validated: the last step looked at."""

    step: int
    measure: str
    value: float
    validated: int


def read_best(run: str) -> BestCheckpoint | None:
    """What a run's best checkpoint is; None where none is named yet, or the file is not ours."""
    try:
        match = _LINE.fullmatch(store.read(Location(run) / "checkpoints" / BEST).decode(errors="replace"))
    except FileNotFoundError:
        return None
    if match is None:
        return None
    step, measure, value, validated = match.groups()
    return BestCheckpoint(int(step), measure, float(value), int(validated))


def write_best(run: str, best: BestCheckpoint) -> None:
    """Name the best checkpoint, whose files are durable."""
    line = f"step-{best.step:06d} {best.measure} {best.value!r} {best.validated}\n"
    store.publish(line.encode(), Location(run) / "checkpoints" / BEST)
