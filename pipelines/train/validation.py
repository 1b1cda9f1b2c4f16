"""Validation on held-out clips, shared out among the ranks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from pipelines.loading.loader import ShardLoader
from pipelines.train.config import TrainConfig
from pipelines.train.ranks import Ranks
from pipelines.train.step import precision
from pipelines.train.stopping import Stopping
from pipelines.train.task import Task


def validate(
    config: TrainConfig, task: Task, held_out: ShardLoader, ranks: Ranks, stopping: Stopping
) -> dict[str, float] | None:
    """Means by name over the first `val_clips` held-out clips, the same on all ranks. A collective.

    held_out: what `held_out_loader` gives.
    Returns None if a rank was asked to stop before it was through: part of a validation says nothing.
    """
    task.module.eval()
    sums: dict[str, float] = {}
    stop = False
    for batch in itertools.islice(held_out, math.ceil(config.val_clips / ranks.world)):
        if stop := stopping.asked_here():
            break
        number = batch.step * ranks.world + ranks.rank  # of this rank's clip, among all
        if number < config.val_clips and not batch.repeat.all():
            with precision(config, ranks.device):
                measured = task.validate(batch.frames.to(ranks.device), batch.gaze)
            sums = {name: sums.get(name, 0.0) + value for name, value in measured.items()}
    task.module.train()
    if stopping.agreed(stop):
        return None
    parts = [part for part in ranks.gather(sums) if part]
    return task.summary({name: sum(part[name] for part in parts) for name in parts[0]}) if parts else {}


def held_out_loader(config: TrainConfig, loader: ShardLoader) -> ShardLoader | None:
    """Reads the held-out clips of the datasets that `loader` has opened; None if none are held out.

    Each rank takes one clip a step, so that any number of ranks takes the same clips.
    """
    fraction = config.loader.val_fraction
    if not config.val_clips or not any(len(dataset.split("val", fraction)) for dataset in loader.datasets):
        return None
    as_stored = replace(config.loader_config, starts=False, max_stride=0)
    one_each = replace(as_stored, global_batch=loader.world, weights=[])
    return ShardLoader(one_each, rank=loader.rank, world=loader.world, epochs=1, split="val", datasets=loader.datasets)
