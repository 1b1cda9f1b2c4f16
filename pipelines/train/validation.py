"""Validation on held-out clips, shared out among the ranks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch

from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import LoaderConfig
from pipelines.train.config import TrainConfig
from pipelines.train.ranks import gathered
from pipelines.train.step import precision
from pipelines.train.task import Task


def validate(config: TrainConfig, task: Task, held_out: ShardLoader, device: torch.device) -> dict[str, float]:
    """Means over the first held-out clips, shared out among the ranks. held_out: of `held_out_loader`."""
    rank, world = held_out.rank, held_out.world
    task.module.eval()
    sums: dict[str, float] = {}
    for batch in itertools.islice(held_out, math.ceil(config.val_clips / world)):
        mine = [place for place in range(len(batch.ids)) if not batch.repeat[place]]
        taken = batch.step * world + rank
        if mine and taken < config.val_clips:
            with precision(config, device):
                found = task.validate(batch.frames.to(device), batch.gaze)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
    task.module.train()
    parts = [part for part in gathered(sums, world) if part]
    sums = {name: sum(part[name] for part in parts) for name in (parts[0] if parts else {})}
    return task.summary(sums) if sums else {}


def loader_config(config: TrainConfig) -> LoaderConfig:
    loader = config.loader
    return LoaderConfig(
        data=config.datasets,
        seed=loader.seed,
        window=loader.window,
        global_batch=config.global_batch,
        workers=loader.workers,
        cache_mb=loader.cache_mb,
        bad_samples=loader.bad_samples,
        val_fraction=loader.val_fraction,
    )


def held_out_loader(config: TrainConfig, loader: ShardLoader) -> ShardLoader | None:
    """What a validation reads, of the datasets that `loader` has opened; None where no clip is held out.

    One clip a step and rank: the same clips for any number of ranks.
    """
    fraction = config.loader.val_fraction
    if not config.val_clips or not any(len(dataset.split("val", fraction)) for dataset in loader.datasets):
        return None
    sizes = replace(loader_config(config), global_batch=loader.world)
    return ShardLoader(sizes, rank=loader.rank, world=loader.world, epochs=1, split="val", datasets=loader.datasets)
