"""One optimizer step: the gradients of a rank's samples, accumulated a few samples at a time, then Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autogaze.gaze import Gaze
from autogaze.precision import tf32_products
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.train.config import OptimizerConfig, TrainConfig
from pipelines.train.ranks import Ranks
from pipelines.train.stopping import StopRequested, never
from pipelines.train.task import RandomKey, Task


def accumulate_gradients(
    config: TrainConfig,
    task: Task,
    model: nn.Module,
    batch: Batch,
    totals: Sequence[float],
    device: torch.device,
    stopping: Callable[[], bool] = never,
    parts: Sequence[Sequence[int]] | None = None,
    asks: int | None = None,
) -> dict[str, Tensor]:
    """Add up the gradients of a rank's part of a batch, a few samples at a time.

    model: the task's module, or DistributedDataParallel around it, which averages over the ranks at the last part.
    totals: see Task.totals; per sample of the global batch. stopping: asked between the parts, on all ranks alike.
    parts: rows that are learned from at once (None: `micro_batch` at a time). asks: how often `stopping` is asked at
        most (None: between all parts); where ranks differ in their number of parts, all must give the same.
    Returns the losses by name, float [b] each, without their graphs, in the order of the batch.
    Raises StopRequested after a yes of `stopping`; the gradients are then worth nothing.
    """
    size, made = len(batch.ids), []
    cut = micro_batches(size, config.micro_batch) if parts is None else list(parts)
    for number, rows in enumerate(cut):
        if 0 < number <= (len(cut) if asks is None else asks) and stopping():
            raise StopRequested
        last = number + 1 == len(cut)
        frames = _rows_of(batch.frames, rows).to(device, non_blocking=True)
        gaze = part_of(batch.gaze, rows)
        key = RandomKey(config.loader.seed, batch.epoch, tuple(int(batch.ids[row]) for row in rows))
        wait = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
        with wait:
            with precision(config, device):
                losses = task.losses(model, frames, gaze, key, list(totals))
            with tf32_products(config.scale.tf32):
                (losses["loss"].sum() / size).backward()
        made.append({name: value.detach() for name, value in losses.items()})
    whole = {name: torch.cat([part[name] for part in made]) for name in made[0]}
    order = [row for rows in cut for row in rows]
    if order == list(range(size)):
        return whole
    back = torch.tensor(order).argsort().to(device)
    return {name: value[back] for name, value in whole.items()}


def micro_batches(size: int, at_once: int) -> list[range]:
    """The rows of `size` samples, `at_once` at a time."""
    return [range(begin, min(begin + at_once, size)) for begin in range(0, size, at_once)]


_parts: WeakKeyDictionary[Gaze, dict[tuple[int, ...], Gaze]] = WeakKeyDictionary()


def part_of(gaze: Gaze, rows: Sequence[int]) -> Gaze:
    """The gaze of some rows of a batch's; the same object each time, so that something may be kept for it."""
    if list(rows) == list(range(gaze.clips)):
        return gaze
    made = _parts.setdefault(gaze, {})
    if tuple(rows) not in made:
        made[tuple(rows)] = Gaze.cat([gaze[row] for row in rows])
    return made[tuple(rows)]


def _rows_of(frames: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, without a copy where they lie together."""
    if isinstance(rows, range) and rows.step == 1:
        return frames[rows.start : rows.stop]
    return frames[torch.tensor(list(rows))]


def make_optimizer(config: OptimizerConfig, module: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay on the weights that learn.

    fused: one kernel for many weights, in place of some for each step of the formula; the same numbers to rounding.
    """
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # None and not False: PyTorch then chooses, and says so in what is saved, as it always did.
    return torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None)


def optimizer_step(config: TrainConfig, optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Step at the learning rate `rate`, unless the gradient is not finite. Returns its norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    limit = config.optimizer.clip_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def require_finite(norm: float, losses: dict[str, Tensor], batch: Batch, step: int, ranks: Ranks) -> None:
    """Raise PipelineError, on all ranks, naming the samples, if the gradient of step `step` is not finite.

    The gradient is the same on all ranks, so all of them raise or none.
    """
    if math.isfinite(norm):
        return
    mine = [key for key, loss in zip(batch.keys, losses["loss"].tolist(), strict=True) if not math.isfinite(loss)]
    bad = [key for keys in ranks.gather(mine) for key in keys]
    what = f"the loss of {', '.join(bad[:8])}" if bad else "the gradient, not the loss of any one sample,"
    raise PipelineError(
        f"step {step}: {what} is not a finite number; nothing of this step was kept. Look at these clips, or lower "
        "optimizer.lr or set optimizer.clip_norm, and run the same command again"
    )


@contextmanager
def precision(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """The context in which losses are computed: autocast to scale.dtype, and TF32 where scale.tf32 allows it."""
    with (
        tf32_products(config.scale.tf32),
        torch.autocast(device.type, torch.bfloat16, config.scale.dtype == "bfloat16"),
    ):
        yield
