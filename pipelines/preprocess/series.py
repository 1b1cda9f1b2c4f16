"""The Prometheus series of jobs that make the shards of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipelines.prometheus import Exporter, Series, series_name

if TYPE_CHECKING:
    from pipelines.preprocess.totals import Totals


def shard_series(job: str, did: str) -> tuple[Series, ...]:
    """The series of a job by its name. did: what it does with frames and patches."""
    name = f"autogaze_{job}"
    return (
        Series("counter", f"{name}_shards", "shards committed"),
        Series("counter", f"{name}_clips", "clips by outcome: ok or failed", ("outcome",)),
        Series("counter", f"{name}_failures", "clips that failed, by reason", ("reason",)),
        Series("counter", f"{name}_frames", f"frames {did}"),
        Series("counter", f"{name}_tokens", f"patches {did}"),
        Series("counter", f"{name}_bytes", "bytes committed, tars and indexes"),
        Series("counter", f"{name}_stage_seconds", "seconds that actors were busy, by stage", ("stage",)),
        Series("counter", f"{name}_decoder_restarts", "decoder children that died or hung and were replaced"),
        Series("counter", f"{name}_decoder_fallbacks", "videos decoded by PyAV in place of the decoder", ("reason",)),
        Series("gauge", f"{name}_clips_left", "clips of this run not committed yet"),
    )


PREPROCESS_SERIES = shard_series("preprocess", "gazed")
ENCODE_SERIES = shard_series("encode", "encoded")


class ShardSeries:
    """The series of a run, exported by its driver.

    Args:
        job: preprocess or encode.
        output: the dataset; the end of its URL is the tag `dataset`.
        clips: that the run is to make.
    """

    def __init__(self, job: Literal["preprocess", "encode"], output: str, clips: int) -> None:
        series = {"preprocess": PREPROCESS_SERIES, "encode": ENCODE_SERIES}[job]
        self._export = Exporter(series, "dataset", series_name(output))
        self._name, self._clips = f"autogaze_{job}", clips
        self._before: dict[tuple[str, str, str], float] = {}

    def update(self, totals: Totals) -> None:
        """Export what was added since the last call; to be called after every commit."""
        now = _numbers(self._name, totals)
        for (name, tag, word), value in now.items():
            added = value - self._before.get((name, tag, word), 0.0)
            self._export.add(name, added, **({tag: word} if tag else {}))
        self._export.add(f"{self._name}_shards", 1)
        self._export.set(f"{self._name}_clips_left", self._clips - totals.clips)
        self._before = now

    def close(self) -> None:
        """The run is over."""
        self._export.close()


def _numbers(job: str, totals: Totals) -> dict[tuple[str, str, str], float]:
    """What each counter stands at, by (name, tag, value of the tag)."""
    counts = {
        ("clips", "outcome", "ok"): totals.ok,
        ("clips", "outcome", "failed"): totals.failed.total(),
        ("frames", "", ""): totals.frames,
        ("tokens", "", ""): totals.tokens,
        ("bytes", "", ""): totals.bytes,
        ("decoder_restarts", "", ""): totals.restarts,
        **{("decoder_fallbacks", "reason", reason): count for reason, count in totals.fallbacks.items()},
        **{("failures", "reason", reason): count for reason, count in totals.failed.items()},
        **{("stage_seconds", "stage", stage): spent for stage, spent in totals.seconds.items()},
    }
    return {(f"{job}_{name}", tag, word): float(value) for (name, tag, word), value in counts.items()}
