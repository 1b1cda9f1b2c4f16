"""The training loop: a plain function that every rank runs, alone or beside others.

    for batch in loader:                    # in an order that is a function of (seed, epoch, position) alone
        losses -> gradients -> one step of Adam
        now and then: validate, checkpoint

What makes it resumable is that there is nothing to resume but weights, Adam's moments and one number, the samples
consumed: rates, orders and everything drawn at random are functions of the position. A run is the same command again;
it goes on from the newest whole checkpoint, on any number of ranks that share the batch evenly. Ranks agree on when to
stop, and on what is not a number, within the step it happens in.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.events import Events
from pipelines.runs.ledger import Ledger, attempts
from pipelines.runs.peak import measure_peak
from pipelines.runs.state import pack_optimizer, pack_random, restore_random, unpack_optimizer
from pipelines.train.config import TrainConfig, learning_rate
from pipelines.train.identity import claim_run
from pipelines.train.ranks import agree, barrier, gathered, summed
from pipelines.train.step import accumulate_gradients, optimizer_step, require_finite
from pipelines.train.task import MakeTask
from pipelines.train.validation import held_out_loader, loader_config, validate


def train(
    config: TrainConfig,
    make_task: MakeTask,
    *,
    rank: int = 0,
    world: int = 1,
    console: Console | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> str:
    """Train until done or told to stop, on rank `rank` of `world`; "done", "stopped", or "finished" if it was before.

    Args:
        make_task: what is trained: the class PolicyTask, ReconstructorTask or RLTask.
        world: with more than 1, a torch.distributed process group must be there.
        stopping: asked once a step on every rank; one yes stops all of them, after a checkpoint.

    Raises PipelineError: the run was begun with another config, data that cannot be read, a loss that is not a number,
    no GPU where one is wanted.
    """
    if config.scale.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("scale.device=cuda: no GPU is here that PyTorch can use; set scale.device=cpu")
    torch.set_num_threads(config.scale.threads)
    device = torch.device("cuda", torch.cuda.current_device()) if config.scale.device == "cuda" else torch.device("cpu")
    task = make_task(config, device)
    loader = ShardLoader(loader_config(config), rank=rank, world=world, split="train")
    held_out = held_out_loader(config, loader)
    steps = max(1, round(config.epochs * loader.steps_per_epoch))
    if rank == 0:
        claim_run(config, task, loader.fingerprint)
    barrier(world)

    checkpoints = Checkpoints(config.run, keep=config.every.keep)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in task.module.parameters() if parameter.requires_grad],
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
    )
    done, attempt = agree(lambda: (checkpoints.latest() or 0, _next_attempt(config.run)), rank, world, device)
    if done:
        state, files = checkpoints.load(done)
        task.load(files)
        unpack_optimizer(optimizer, files["optimizer.safetensors"])
        restore_random(state["random"])
    if done >= steps:
        return "finished"
    # After loading, since DistributedDataParallel hands out the weights of rank 0 as they are now.
    model: nn.Module = DistributedDataParallel(task.module) if world > 1 else task.module
    loader.consumed = done * config.global_batch
    ledger = Ledger(
        config.run,
        attempt,
        rank,
        done,
        world=world,
        global_batch=config.global_batch,
        seed=config.loader.seed,
        window=config.loader.window,
        counts=[source.counts for source in loader.sources],
        weights=[source.weight for source in loader.sources],
        datasets=[loader.fingerprint],
        ids=loader.ids(),
        lag=task.lag,
    )
    peak = measure_peak(device, torch.bfloat16 if config.scale.dtype == "bfloat16" else torch.float32)
    events = Events(config.run, rank, world, console, peak=peak)
    events.log("start", attempt=attempt, step=done, steps=steps, world=world, device=str(device))

    def save(step: int) -> None:
        ledger.flush()
        barrier(world)  # every rank's ledger is durable before `latest` may move beyond it
        if rank == 0:
            files = task.files() | {"optimizer.safetensors": pack_optimizer(optimizer)}
            state = {"consumed": step * config.global_batch, "world": world, "steps": steps, "random": pack_random()}
            checkpoints.save(step, files, state)

    status, step = "done", done
    try:
        task.begin(loader, done, steps)
        for batch, waited in _timed(iter(loader)):
            began, loaded = time.perf_counter(), waited
            if batch.step != step:
                raise RuntimeError(f"the loader gave step {batch.step}, the run is at {step}")
            totals = task.totals(batch.gaze)
            *totals, stop = summed([*totals, float(stopping())], device, world)
            if stop:
                status = "stopped"
                break
            recorded = task.prepare(batch)
            waited += time.perf_counter() - began
            per_sample = [total / config.global_batch for total in totals]
            losses = accumulate_gradients(config, task, model, batch, per_sample, device)
            rate = learning_rate(config.optimizer, step, steps)
            norm = optimizer_step(config, optimizer, rate)
            require_finite(norm, losses, batch, step, world)
            step += 1
            ledger.add(
                step - 1, batch.epoch, batch.ids, batch.repeat, [skipped.id for skipped in batch.skipped], **recorded
            )
            more = task.stepped(step)
            row = events.step(
                step,
                batch.epoch,
                len(batch.ids),
                {name: float(value.mean()) for name, value in losses.items()}
                | {"lr": rate, "grad_norm": norm, "skipped": float(len(batch.skipped))}
                | more,
                seconds=loaded + time.perf_counter() - began,
                waited=waited,
                flops=task.flops(batch.gaze),
                steps=steps,
            )
            if row["skipped"]:  # of all ranks together, and so the same on each
                told = [f"{one.shard}: {one.clip} (sample {one.id}): {one.reason}" for one in batch.skipped]
                events.log("skipped", step=step, samples=list(itertools.chain(*gathered(told, world))))
            # Saved first: what goes wrong in a validation costs no step.
            if step == steps or (config.every.checkpoint and step % config.every.checkpoint == 0):
                save(step)
            if step == steps or (config.every.validate and step % config.every.validate == 0):
                found = validate(config, task, held_out, device) if held_out else {}
                events.log("validation", step=step, **found)
                task.note(events, step)
            if step == steps:
                break
        if status == "stopped":
            save(step)
        checkpoints.wait()
        events.log(status, step=step)
    finally:
        task.close()
        events.close()
        checkpoints.close()
        ledger.flush()
    barrier(world)
    return status


def _next_attempt(run: str) -> int:
    before = attempts(run)
    return before[-1].number + 1 if before else 1


# -- config and data ---------------------------------------------------------------------------------------------------


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds it was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
