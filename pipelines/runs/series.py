"""The Prometheus series of a training run."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.prometheus import Exporter, Series, series_name

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


TRAIN_SERIES = (
    *_STEP.values(),
    Series("counter", "autogaze_train_clips", "clips trained on, over all ranks"),
    Series("counter", "autogaze_train_skipped", "samples that could not be read"),
)


class TrainSeries:
    """The series of a training run, exported by rank 0. The end of `run_url` is the tag `run`."""

    def __init__(self, run_url: str) -> None:
        self._export = Exporter(TRAIN_SERIES, "run", series_name(run_url))

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
