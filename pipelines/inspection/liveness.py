"""What tells how far a job is: when its objects last changed, whether it still works, and words for a time."""

from __future__ import annotations

from pipelines.storage import store
from pipelines.storage.location import Location

HEALTHY_STATES = ("starting", "running", "done")  # the others: interrupted, stopped, stalled
WINDOW = 50  # commits, or steps, that a rate is taken over
_PATIENCE = 5.0  # usual intervals without a sign of life after which a job is stalled, if that is more than asked for


def state_of(begun: bool, idle: float | None, stall_s: float, interval: float) -> str:
    """starting, running or stalled: of a job that has not ended.

    Args:
        begun: it has done some work.
        idle: seconds since its last sign of life; None: not known.
        stall_s: seconds without a sign of life after which it is stalled.
        interval: the usual seconds between two signs of life. A job that is slow by nature is given five of them.
    """
    if idle is not None and idle > max(stall_s, _PATIENCE * interval):
        return "stalled"
    return "running" if begun else "starting"


def change_times(url: Location) -> dict[str, float]:
    """When each object in a folder (or the one object at `url`) last changed, by file name: seconds since 1970.

    The times are the storage's own. An object of a store that keeps none is left out.
    """
    entries = store.list_objects(url)
    return {entry.url.name: entry.modified for entry in entries if entry.modified is not None}


def seconds_since_change(url: Location, now: float) -> float | None:
    """Seconds since an object last changed; None where the store does not say."""
    at = change_times(url).get(url.name)
    return None if at is None else max(now - at, 0.0)


def clock(seconds: float) -> str:
    """A time in words: 12 s, 4 min, 3 h 20 min, 2 d 5 h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
