"""Processes forked from one that has imported what jobs need: they start at once, and share nothing with the test."""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("jobs.cli", "jobs.config", "jobs.preprocess", "pipelines.train.loop", "pipelines.train.policy"),
        # What a run imports on its way, 5 CPU seconds of it the optimizer's torch._dynamo.
        *("torch._dynamo", "torch.nn.parallel.distributed", "tensorboard.summary.writer.event_file_writer"),
        "tests.support.plain_ray_data",
    ]
)
