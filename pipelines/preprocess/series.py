"""The Prometheus series of a preprocess job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.prometheus import Exporter, Series, series_name

if TYPE_CHECKING:
    from pipelines.preprocess.record import Totals

PREPROCESS_SERIES = (
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


class PreprocessSeries:
    """The series of a run of preprocess, exported by its driver.

    Args:
        output: the dataset; the end of its URL is the tag `dataset`.
        clips: that the run is to make.
    """

    def __init__(self, output: str, clips: int) -> None:
        self._export = Exporter(PREPROCESS_SERIES, "dataset", series_name(output))
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
