"""The training loop: a plain function that every rank runs, alone or beside others.

A run is resumed by the same command, on any number of ranks that share the batch evenly. Little has to be restored:
weights, Adam's moments, random states and the number of steps done. Learning rate, order of samples and everything
drawn at random for a sample are functions of the position. All ranks stop at the same step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.runs.checkpoints import Checkpoints
from pipelines.train.config import TrainConfig
from pipelines.train.feed import fed
from pipelines.train.identity import claim_run, data_fingerprint
from pipelines.train.ranks import Ranks
from pipelines.train.run import TrainingRun, best_so_far
from pipelines.train.stopping import Stopping, never
from pipelines.train.task import MakeTask

# Seconds a thread may hold Python's lock while others wait. A step on a GPU is many short calls, each of which may have
# to wait for a thread that reads: on an H200 a run had 196 samples/s, and 162 with Python's own 5 ms.
_TURN_S = 1e-4


def train(
    config: TrainConfig,
    make_task: MakeTask,
    *,
    rank: int = 0,
    world: int = 1,
    console: Console | None = None,
    stopping: Callable[[], bool] = never,
) -> str:
    """Train to the end of the run, or until asked to stop.

    Args:
        make_task: what is trained: the class PolicyTask, ReconstructorTask or RLTask.
        rank, world: this process among all; with a world of more than 1 there must be a torch.distributed group.
        console: for progress (None: none).
        stopping: asked on every rank, once a step, and in long steps before each of their parts; one yes stops all of
            them, after a checkpoint of the last whole step.
    Returns:
        "done"; "stopped"; or "finished", if the run was done before.
    Raises:
        PipelineError: the run was begun with another config, data cannot be read, a loss is not finite, or there is no
            GPU where the config wants one.
    """
    torch.set_num_threads(config.scale.threads)
    ranks = Ranks(rank, world, _device(config))
    run = TrainingRun(config, make_task(config, ranks.device), ranks, Stopping(ranks, stopping))
    run.resume()
    if run.step >= run.steps and not run.owes_validation:
        return "finished"
    run.start(console)
    try:
        goes_on = not run.owes_validation or run.validate()
        status = _take_steps(run) if goes_on else "stopped"
        run.finish(status)
    finally:
        run.close()
    ranks.barrier()
    return status


def _take_steps(run: TrainingRun) -> str:
    """All steps that are left, with checkpoints and validations in between; "done" or "stopped"."""
    if run.step >= run.steps:
        return "done"
    run.task.begin(run.loader, run.step, run.steps, run.stopping.asked_here)
    with _short_turns(run.ranks.device):
        for batch, waited in _timed(fed(iter(run.loader), run.ranks.device, run.task.ahead)):
            goes_on = run.take_step(batch, waited)
            if goes_on and run.is_due(run.config.every.checkpoint):
                run.save()  # before the validation, so that an error there costs no step
            if goes_on and run.is_due(run.config.every.validate):
                goes_on = run.validate()
            if run.step == run.steps:
                break
            if not goes_on:
                run.save()
                return "stopped"
    return "done"


def is_finished(config: TrainConfig, make_task: MakeTask) -> bool:
    """Whether `train` would find nothing left to do: told from storage, before ranks and actors are started for it.

    Raises PipelineError: the run was begun with another config, or data cannot be read.
    """
    checkpoints = Checkpoints(config.run)
    done = checkpoints.latest()
    if done is None or done < checkpoints.state(done)["steps"]:
        return False
    cpu = torch.device("cpu")
    run = TrainingRun(config, make_task(config, cpu), Ranks(0, 1, cpu), Stopping(Ranks(0, 1, cpu), never))
    claim_run(config, run.task, data_fingerprint(config, run.loader), done, run.steps)
    run.step, run.best = done, best_so_far(config, done)
    return done >= run.steps and not run.owes_validation


def _device(config: TrainConfig) -> torch.device:
    if config.scale.device != "cuda":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PipelineError("scale.device=cuda: no GPU is here that PyTorch can use; set scale.device=cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _short_turns(device: torch.device) -> Iterator[None]:
    """Let the threads of this process take short turns while a GPU is fed; on a CPU they gain nothing by it."""
    before = sys.getswitchinterval()
    if device.type == "cuda":
        sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds it was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
