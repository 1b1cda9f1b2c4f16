"""What jobs say of themselves to Prometheus, through the Ray they run on.

Ray's agent on each node exports what its processes report, every few seconds, and Prometheus reads it there
(docs/operations.md). The agent needs the packages of `ray[default]`. A process without a running Ray exports nothing,
and nothing here ever waits. Ray puts `ray_` before every name, and `_total` behind a counter's.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Series:
    """A metric: counters only grow, gauges hold what was said last.

    Each has the tag `dataset` (of preprocess) or `run` (of training), and those named here.
    """

    kind: str
    name: str
    help: str
    tags: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


# Ray forgets a gauge that nobody set for two of its reports, 20 s: it is set again until the job ends.
_REFRESH_S = 5.0


class Exporter:
    """Some series of one job; silent where no Ray runs. It ends with `close`, or with Ray."""

    def __init__(self, series: tuple[Series, ...], tag: str, job: str) -> None:
        self._metrics: dict[str, Any] = {}
        self._gauges: dict[str, float] = {}
        self._over = threading.Event()
        ray = sys.modules.get("ray")  # importing it takes a second, and who runs on Ray has
        if ray is None or not ray.is_initialized():
            return
        from ray.util.metrics import Counter, Gauge

        for one in series:
            metric: Any = (Counter if one.kind == "counter" else Gauge)(one.name, one.help, (tag, *one.tags))
            metric.set_default_tags({tag: job})
            self._metrics[one.name] = metric
        threading.Thread(target=self._refresh, args=(ray,), name="prometheus", daemon=True).start()

    def add(self, name: str, value: float, **tags: str) -> None:
        if name in self._metrics and value > 0:
            self._metrics[name].inc(value, tags)

    def set(self, name: str, value: float) -> None:
        if name in self._metrics and math.isfinite(value):
            self._gauges[name] = value
            self._metrics[name].set(value)

    def close(self) -> None:
        self._over.set()

    def _refresh(self, ray: Any) -> None:
        while not self._over.wait(_REFRESH_S) and ray.is_initialized():
            for name, value in list(self._gauges.items()):
                self._metrics[name].set(value)


def series_name(url: str) -> str:
    """The last two parts of a URL: enough to tell jobs apart, and nothing that should not be shown."""
    parts = [part for part in url.split("/") if part and not part.endswith(":")]
    name = "/".join(parts[-2:]).rsplit("@", 1)[-1]
    # Ray refuses a tag that is not ASCII, and a dataset may be called anything.
    return name.encode("ascii", "backslashreplace").decode("ascii")
