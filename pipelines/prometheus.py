"""What jobs say of themselves to Prometheus, through the Ray they run on.

Ray's agent on each node exports what its processes report, every few seconds, and Prometheus reads it there
(docs/operations.md). The agent needs the packages of `ray[default]`. A process without a running Ray exports nothing,
and nothing here ever waits. Ray puts `ray_` before every name, and `_total` behind a counter's.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.preprocess import Totals


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


_PREPROCESS = (
    Series("counter", "autogaze_preprocess_shards", "shards committed"),
    Series("counter", "autogaze_preprocess_clips", "clips by outcome: ok or failed", ("outcome",)),
    Series("counter", "autogaze_preprocess_failures", "clips that failed, by reason", ("reason",)),
    Series("counter", "autogaze_preprocess_frames", "frames gazed"),
    Series("counter", "autogaze_preprocess_tokens", "patches gazed"),
    Series("counter", "autogaze_preprocess_bytes", "bytes committed, tars and indexes"),
    Series("counter", "autogaze_preprocess_stage_seconds", "seconds that actors were busy, by stage", ("stage",)),
    Series("counter", "autogaze_preprocess_decoder_restarts", "decoder children that died or hung and were replaced"),
    Series("gauge", "autogaze_preprocess_clips_left", "clips of this run not committed yet"),
)
# Fields of a step's event, and the gauges they become.
_STEP = {
    "step": Series("gauge", "autogaze_train_step", "optimizer steps done"),
    "steps": Series("gauge", "autogaze_train_steps", "optimizer steps of the whole run"),
    "epoch": Series("gauge", "autogaze_train_epoch", "epoch, from 0"),
    "loss": Series("gauge", "autogaze_train_loss", "loss of the last step, mean over the ranks"),
    "grad_norm": Series("gauge", "autogaze_train_grad_norm", "norm of the gradient before clipping"),
    "lr": Series("gauge", "autogaze_train_learning_rate", "learning rate"),
    "samples_per_s": Series("gauge", "autogaze_train_clips_per_second", "clips a second over the last 50 steps"),
    "wait": Series("gauge", "autogaze_train_wait_share", "share of the time spent waiting for data, last 50 steps"),
    "mfu": Series("gauge", "autogaze_train_mfu", "model FLOP utilisation over the last 50 steps"),
    "rss_mb": Series("gauge", "autogaze_train_memory_mb", "memory of the rank with most, MB"),
    "idle_rollout": Series("gauge", "autogaze_train_idle_rollout_share", "RL: share of the time that rollouts waited"),
    "idle_learner": Series(
        "gauge", "autogaze_train_idle_learner_share", "RL: share of the time that the learner waited"
    ),
}
_TRAIN = (
    *_STEP.values(),
    Series("counter", "autogaze_train_clips", "clips trained on, over all ranks"),
    Series("counter", "autogaze_train_skipped", "samples that could not be read"),
)
SERIES = _PREPROCESS + _TRAIN


# Ray forgets a gauge that nobody set for two of its reports, 20 s: it is set again until the job ends.
_REFRESH_S = 5.0


class _Exporter:
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


class PreprocessSeries:
    """The series of a run of preprocess, exported by its driver.

    Args:
        output: the dataset; the end of its URL is the tag `dataset`.
        clips: that the run is to make.
    """

    def __init__(self, output: str, clips: int) -> None:
        self._export = _Exporter(_PREPROCESS, "dataset", _name(output))
        self._clips = clips
        self._before: dict[tuple[str, str, str], float] = {}

    def update(self, totals: Totals) -> None:
        """Export what was added since the last call; to be called after every commit."""
        now = _numbers(totals)
        for key, value in now.items():
            name, tag, word = key
            self._export.add(name, value - self._before.get(key, 0.0), **({tag: word} if tag else {}))
        self._export.add("autogaze_preprocess_shards", 1)
        self._export.set("autogaze_preprocess_clips_left", self._clips - totals.clips)
        self._before = now

    def close(self) -> None:
        """The run is over."""
        self._export.close()


def _numbers(totals: Totals) -> dict[tuple[str, str, str], float]:
    """What counters stand at, by name, tag and its value."""
    found = {
        ("clips", "outcome", "ok"): totals.ok,
        ("clips", "outcome", "failed"): sum(totals.failed.values()),
        ("frames", "", ""): totals.frames,
        ("tokens", "", ""): totals.tokens,
        ("bytes", "", ""): totals.bytes,
        ("decoder_restarts", "", ""): totals.restarts,
        **{("failures", "reason", reason): count for reason, count in totals.failed.items()},
        **{("stage_seconds", "stage", stage): spent for stage, spent in totals.seconds.items()},
    }
    return {(f"autogaze_preprocess_{name}", tag, word): float(value) for (name, tag, word), value in found.items()}


class TrainSeries:
    """The series of a training run, exported by rank 0. The end of `run_url` is the tag `run`."""

    def __init__(self, run_url: str) -> None:
        self._export = _Exporter(_TRAIN, "run", _name(run_url))

    def update(self, row: Mapping[str, float]) -> None:
        """Export a step: the fields of its event."""
        for field, series in _STEP.items():
            if field in row:
                self._export.set(series.name, float(row[field]))
        self._export.add("autogaze_train_clips", row.get("samples", 0.0))
        self._export.add("autogaze_train_skipped", row.get("skipped", 0.0))

    def close(self) -> None:
        """The job is over: its gauges go, its counters stay as they are for as long as this process lives."""
        self._export.close()


def _name(url: str) -> str:
    """The last two parts of a URL: enough to tell jobs apart, and nothing that should not be shown."""
    parts = [part for part in url.split("/") if part and not part.endswith(":")]
    name = "/".join(parts[-2:]).rsplit("@", 1)[-1]
    # Ray refuses a tag that is not ASCII, and a dataset may be called anything.
    return name.encode("ascii", "backslashreplace").decode("ascii")
