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
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autogaze.gaze import Gaze
from pipelines import store
from pipelines.checkpoints import Checkpoints, pack_optimizer, pack_random, restore_random, unpack_optimizer
from pipelines.errors import PipelineError
from pipelines.ledger import Ledger, attempts
from pipelines.loader import Batch, LoaderConfig, ShardLoader
from pipelines.metrics import Events, measure_peak
from pipelines.rl_config import RLConfig
from pipelines.shards import open_dataset
from pipelines.train_config import PolicyTrainConfig, ReconstructorTrainConfig, TrainConfig, learning_rate
from pipelines.train_task import Key, Task

T = TypeVar("T")

# What may differ when a run goes on: where it runs, and how often it looks and saves. Where data and teachers lie may
# differ too: what they are is compared.
_FREE = ("run", "data", "teachers", "scale", "every", "micro_batch", "val_clips")
_FREE_ROLLOUTS = ("actors", "gpus", "timeout_s", "dump")
_FREE_LOADER = ("workers", "cache_mb", "bad_samples")


def train(
    config: TrainConfig,
    *,
    rank: int = 0,
    world: int = 1,
    console: Console | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> str:
    """Train until done or told to stop, on rank `rank` of `world`; "done", "stopped", or "finished" if it was before.

    With world > 1 a torch.distributed process group is there. stopping: asked once a step on every rank; one yes stops
    all of them, after a checkpoint.

    Raises PipelineError: the run was begun with another config, data that cannot be read, a loss that is not a number,
    no GPU where one is wanted.
    """
    if config.scale.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("scale.device=cuda: no GPU is here that PyTorch can use; set scale.device=cpu")
    torch.set_num_threads(config.scale.threads)
    device = torch.device("cuda", torch.cuda.current_device()) if config.scale.device == "cuda" else torch.device("cpu")
    task = make_task(config, device)
    loader = ShardLoader(_loader_config(config), rank=rank, world=world, split="train")
    held_out = _held_out(config, loader)
    steps = max(1, round(config.epochs * loader.steps_per_epoch))
    if rank == 0:
        _claim(config, task, loader.fingerprint)
    _barrier(world)

    checkpoints = Checkpoints(config.run, keep=config.every.keep)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in task.module.parameters() if parameter.requires_grad],
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
    )
    done, attempt = _agree(lambda: (checkpoints.latest() or 0, _next_attempt(config.run)), rank, world, device)
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
        _barrier(world)  # every rank's ledger is durable before `latest` may move beyond it
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
            *totals, stop = _summed([*totals, float(stopping())], device, world)
            if stop:
                status = "stopped"
                break
            recorded = task.prepare(batch)
            waited += time.perf_counter() - began
            per_sample = [total / config.global_batch for total in totals]
            losses = _gradients(config, task, model, batch, per_sample, device)
            rate = learning_rate(config.optimizer, step, steps)
            norm = _step(config, optimizer, rate)
            _require_numbers(norm, losses, batch, step, world)
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
                events.log("skipped", step=step, samples=list(itertools.chain(*_gathered(told, world))))
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
    _barrier(world)
    return status


def validate(config: TrainConfig, task: Task, held_out: ShardLoader, device: torch.device) -> dict[str, float]:
    """Means over the first held-out clips, shared out among the ranks. held_out: of `_held_out`."""
    rank, world = held_out.rank, held_out.world
    task.module.eval()
    sums: dict[str, float] = {}
    for batch in itertools.islice(held_out, math.ceil(config.val_clips / world)):
        mine = [place for place in range(len(batch.ids)) if not batch.repeat[place]]
        taken = batch.step * world + rank
        if mine and taken < config.val_clips:
            with _precision(config, device):
                found = task.validate(batch.frames.to(device), batch.gaze)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
    task.module.train()
    parts = [part for part in _gathered(sums, world) if part]
    sums = {name: sum(part[name] for part in parts) for name in (parts[0] if parts else {})}
    return task.summary(sums) if sums else {}


def make_task(config: TrainConfig, device: torch.device) -> Task:
    """What a config trains."""
    if isinstance(config, PolicyTrainConfig):
        threshold = open_dataset(_urls(config)[0]).about["config"].get("threshold")
        if isinstance(config, RLConfig):
            from pipelines.rl import RLTask

            return RLTask(config, threshold, device)
        from pipelines.train_policy import PolicyTask

        return PolicyTask(config, threshold, device)
    assert isinstance(config, ReconstructorTrainConfig)
    from pipelines.train_reconstructor import ReconstructorTask

    return ReconstructorTask(config, device)


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came, as something that can be asked; a second one ends the process as usual."""
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- one step ----------------------------------------------------------------------------------------------------------


def _gradients(
    config: TrainConfig, task: Task, model: nn.Module, batch: Batch, totals: Sequence[float], device: torch.device
) -> dict[str, Tensor]:
    """Add up the gradients of a rank's part of a batch, a few samples at a time; its losses by name, [b] each."""
    size, found = len(batch.ids), []
    for begin in range(0, size, config.micro_batch):
        rows = range(begin, min(begin + config.micro_batch, size))
        last = rows.stop == size
        frames = batch.frames[rows.start : rows.stop].to(device, non_blocking=True)
        gaze = Gaze.cat([batch.gaze[row] for row in rows])
        key = Key(config.loader.seed, batch.epoch, tuple(batch.ids[rows.start : rows.stop].tolist()))
        wait = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
        with wait:
            with _precision(config, device):
                losses = task.losses(model, frames, gaze, key, list(totals))
            (losses["loss"].sum() / size).backward()
        found.append({name: value.detach() for name, value in losses.items()})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _step(config: TrainConfig, optimizer: torch.optim.Optimizer, rate: float) -> float:
    """One optimizer step, unless the gradient is no number; the gradient's norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    limit = config.optimizer.clip_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _require_numbers(norm: float, losses: dict[str, Tensor], batch: Batch, step: int, world: int) -> None:
    """Raise PipelineError, on all ranks, naming the samples, if the step's gradient is not finite.

    The gradient is the same on all ranks, so they come here together.
    """
    if math.isfinite(norm):
        return
    mine = [key for key, loss in zip(batch.keys, losses["loss"].tolist(), strict=True) if not math.isfinite(loss)]
    gathered: list[list[str] | None] = [mine]
    if world > 1:
        gathered = [None] * world
        dist.all_gather_object(gathered, mine)
    bad = [key for keys in gathered for key in keys or []]
    what = f"the loss of {', '.join(bad[:8])}" if bad else "the gradient, not the loss of any one sample,"
    raise PipelineError(
        f"step {step}: {what} is not a finite number; nothing of this step was kept. Look at these clips, or lower "
        "optimizer.lr or set optimizer.clip_norm, and run the same command again"
    )


def _precision(config: TrainConfig, device: torch.device) -> Any:
    if config.scale.dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


# -- ranks together ----------------------------------------------------------------------------------------------------


def _summed(values: list[float], device: torch.device, world: int) -> list[float]:
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def _agree(decide: Callable[[], tuple[int, int]], rank: int, world: int, device: torch.device) -> tuple[int, int]:
    """What rank 0 decides. All ranks must take the same, and storage may answer two of them differently."""
    decided = [decide() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(decided, src=0)
    assert decided[0] is not None
    return decided[0]


def _next_attempt(run: str) -> int:
    before = attempts(run)
    return before[-1].number + 1 if before else 1


def _gathered(mine: T, world: int) -> list[T]:
    """What each rank has, on every rank."""
    if world == 1:
        return [mine]
    every: list[T | None] = [None] * world
    dist.all_gather_object(every, mine)
    return cast(list[T], every)


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()


# -- config and data ---------------------------------------------------------------------------------------------------


def _urls(config: TrainConfig) -> list[str]:
    return [url for url in config.data.split(",") if url]


def _loader_config(config: TrainConfig) -> LoaderConfig:
    loader = config.loader
    return LoaderConfig(
        data=_urls(config),
        seed=loader.seed,
        window=loader.window,
        global_batch=config.global_batch,
        workers=loader.workers,
        cache_mb=loader.cache_mb,
        bad_samples=loader.bad_samples,
        val_fraction=loader.val_fraction,
    )


def _held_out(config: TrainConfig, loader: ShardLoader) -> ShardLoader | None:
    """What a validation reads, of the datasets that `loader` has opened; None where no clip is held out.

    One clip a step and rank: the same clips for any number of ranks.
    """
    fraction = config.loader.val_fraction
    if not config.val_clips or not any(len(dataset.split("val", fraction)) for dataset in loader.datasets):
        return None
    sizes = replace(_loader_config(config), global_batch=loader.world)
    return ShardLoader(sizes, rank=loader.rank, world=loader.world, epochs=1, split="val", datasets=loader.datasets)


def _claim(config: TrainConfig, task: Task, fingerprint: str) -> None:
    """Write down what this run is, or check that it is still that. Raises PipelineError naming what differs.

    fingerprint: of the samples: what was made anew at the same place is other data.
    """
    url = store.join(store.normalise(config.run), "config.yaml")
    about = _document(config, task) | {"data_fingerprint": fingerprint}
    if not store.exists(url):
        store.publish(yaml.safe_dump(about, sort_keys=False).encode(), url)
        return
    try:
        begun = yaml.safe_load(store.read(url))
    except yaml.YAMLError as error:
        raise PipelineError(f"{url}: damaged; choose another run") from error
    if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
        raise PipelineError(f"{url}: is not of a training run; choose another run")
    for name, value in _flat(_kept(about)).items():
        other = _flat(_kept(begun)).get(name)
        if other != value:
            raise PipelineError(f"run={config.run}: was begun with {name}={other}, not {value}; choose another run")


def _document(config: TrainConfig, task: Task) -> dict[str, Any]:
    document = {"kind": type(config).__name__, "config": asdict(config), "about": task.about()}
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def _kept(document: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in document["config"].items() if name not in _FREE}
    for part, free in (("loader", _FREE_LOADER), ("rollouts", _FREE_ROLLOUTS)):
        if part in config:
            config[part] = {name: value for name, value in config[part].items() if name not in free}
    return document | {"config": config}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _flat(part, f"{prefix}.{name}" if prefix and prefix != "config" else name)
    return found


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds it was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
