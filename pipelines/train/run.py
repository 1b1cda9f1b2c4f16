"""A training run on one rank: what is trained, the data it reads, and the folder it writes.

The schedule, that is when each of these methods is called, is pipelines/train/loop.py.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import Batch
from pipelines.runs.best import BestCheckpoint, read_best, write_best
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.events import Events
from pipelines.runs.ledger import Attempt, Ledger, attempts, ids_hash
from pipelines.runs.peak import measure_peak
from pipelines.runs.state import pack_optimizer, pack_random, restore_random, unpack_optimizer
from pipelines.train.average import WeightAverage
from pipelines.train.config import TrainConfig, learning_rate
from pipelines.train.identity import claim_run, data_fingerprint
from pipelines.train.ranks import Ranks
from pipelines.train.step import accumulate_gradients, make_optimizer, optimizer_step, require_finite
from pipelines.train.stopping import Stopping, StopRequested
from pipelines.train.task import Task
from pipelines.train.validation import held_out_loader, validate


class TrainingRun:
    """One rank's part of an attempt at a run. `step` counts the optimizer steps done, of `steps`.

    Raises PipelineError: the data cannot be read.
    """

    def __init__(self, config: TrainConfig, task: Task, ranks: Ranks, stopping: Stopping) -> None:
        self.config, self.task, self.ranks, self.stopping = config, task, ranks, stopping
        self.loader = ShardLoader(config.loader_config, rank=ranks.rank, world=ranks.world, split="train")
        self.held_out = held_out_loader(config, self.loader)
        self.optimizer = make_optimizer(config.optimizer, task.module, fused=ranks.device.type == "cuda")
        self.average = WeightAverage(task, config.ema.decay) if config.ema.decay else None
        self.best: BestCheckpoint | None = None
        self.steps = config.steps or max(1, round(config.epochs * self.loader.steps_per_epoch))
        self.step = self.saved = 0

    def resume(self) -> None:
        """Claim the run's folder, and restore the newest whole checkpoint, if there is one.

        Raises PipelineError: the folder is of another run, or the checkpoint is damaged.
        """
        self.checkpoints = Checkpoints(self.config.run, keep=self.config.every.keep)
        self.fingerprint = data_fingerprint(self.config, self.loader)
        self.step, self.attempt, self.best = self.ranks.decide(self._claim)
        self.saved = self.step
        if self.best is not None:
            self.checkpoints.kept = self.best.step
        if self.step:
            state, files = self.checkpoints.load(self.step)
            (self.task if self.average is None else self.average).load(files)
            unpack_optimizer(self.optimizer, files["optimizer.safetensors"])
            restore_random(state["random"])
        self.loader.consumed = self.step * self.config.global_batch

    def _claim(self) -> tuple[int, int, BestCheckpoint | None]:
        """The newest checkpoint's step, the number of this attempt, and the best checkpoint so far."""
        done = self.checkpoints.latest() or 0
        claim_run(self.config, self.task, self.fingerprint, done, self.steps)
        return done, _next_attempt(self.config.run), best_so_far(self.config, done)

    @property
    def owes_validation(self) -> bool:
        """Whether an earlier attempt ended before the validation of the step it had done, which `best` needs."""
        if not (self.config.best and self.held_out and self.step and self.is_due(self.config.every.validate)):
            return False
        return self.best is None or self.best.validated < self.step

    def start(self, console: Console | None) -> None:
        """Begin an attempt: share the model, open the ledger and the event stream.

        Raises PipelineError: another job is at work on the run.
        """
        config, ranks = self.config, self.ranks
        # After loading: DistributedDataParallel copies rank 0's weights to the other ranks here.
        module = self.task.module
        self.model: nn.Module = module
        if ranks.world > 1:
            # A static graph is told by its first backward pass, which must be one that the ranks share.
            static = self.task.same_graph and config.micro_batch * ranks.world >= config.global_batch
            self.model = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=static)
        attempt = Attempt(
            number=self.attempt,
            start=self.step,
            world=ranks.world,
            global_batch=config.global_batch,
            seed=config.loader.seed,
            window=config.loader.window,
            counts=[source.counts.tolist() for source in self.loader.sources],
            weights=[float(source.weight) for source in self.loader.sources],
            datasets=[self.fingerprint],
            ids=ids_hash(self.loader.ids()),
            lag=self.task.lag,
        )
        self.ledger = Ledger(config.run, attempt, ranks.rank)
        peak = measure_peak(ranks.device, torch.bfloat16 if config.scale.dtype == "bfloat16" else torch.float32)
        self.events = Events(config.run, ranks.rank, ranks.world, console, peak=peak)
        if console is not None and config.val_clips and self.held_out is None:
            console.print(
                f"no video is held out, so nothing is validated: raise loader.val_fraction={config.loader.val_fraction}"
                " where there are few videos",
                highlight=False,
                soft_wrap=True,
            )
        self.events.log(
            "start",
            attempt=self.attempt,
            step=self.step,
            steps=self.steps,
            world=ranks.world,
            device=str(ranks.device),
        )
        for sentence in self.task.notes():
            self.events.log("note", which=sentence)

    def take_step(self, batch: Batch, waited: float) -> bool:
        """Learn from a batch that was waited for `waited` seconds; False, and nothing kept, if a rank is to stop.

        Raises PipelineError, on all ranks, if the loss or the gradient is not finite.
        """
        config, task, began = self.config, self.task, time.perf_counter()
        if batch.step != self.step:
            raise RuntimeError(f"the loader gave step {batch.step}, the run is at {self.step}")
        batch = task.augmented(batch)
        *totals, stop = self.ranks.sum([*task.totals(batch.gaze), float(self.stopping.now())])
        if stop:
            return False
        try:
            recorded = self._prepared(batch)
            prepared = time.perf_counter() - began
            per_sample = [total / config.global_batch for total in totals]
            within, parts = self.stopping.within_step, task.parts(batch)
            # Ranks ask together, so no rank may ask more often than the one with the fewest parts.
            asks = None if parts is None else min(self.ranks.gather(len(parts))) - 1
            device = self.ranks.device
            losses = accumulate_gradients(config, task, self.model, batch, per_sample, device, within, parts, asks)
        except StopRequested:
            return False
        rate = learning_rate(config.optimizer, self.step, self.steps)
        norm = optimizer_step(config, self.optimizer, rate)
        require_finite(norm, losses, batch, self.step, self.ranks)
        skipped = [one.id for one in batch.skipped]
        self.ledger.add(self.step, batch.epoch, batch.ids, batch.repeat, skipped, **recorded)
        self.step += 1
        if self.average is not None:
            self.average.update()
        values = {name: float(value.mean()) for name, value in losses.items()}
        values |= {"lr": rate, "grad_norm": norm, "skipped": float(len(skipped))} | task.stepped(self.step)
        row = self.events.step(
            self.step,
            batch.epoch,
            len(batch.ids),
            values,
            seconds=waited + time.perf_counter() - began,
            waited=waited + prepared,
            flops=task.flops(batch.gaze),
            steps=self.steps,
        )
        self.stopping.stepped(row["seconds"])
        if remark := task.remark(row):
            self.events.log("note", step=self.step, which=remark)
        if row["skipped"]:  # summed over the ranks, so all of them come here or none
            samples = [f"{one.shard}: {one.clip} (sample {one.id}): {one.reason}" for one in batch.skipped]
            self.events.log("skipped", step=self.step, samples=list(itertools.chain(*self.ranks.gather(samples))))
        return True

    def _prepared(self, batch: Batch) -> dict[str, Any]:
        """What the ledger records of the batch beside its samples. Raises StopRequested, on all ranks."""
        if self.task.lag is None:
            return self.task.prepare(batch)
        recorded: dict[str, Any] = {}
        try:
            recorded, stop = self.task.prepare(batch), False
        except StopRequested:
            stop = True
        if self.stopping.agreed(stop):  # one rank may have waited for its rollouts while another had them
            raise StopRequested
        return recorded

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps (0: only at the end) is due after the steps done so far."""
        return self.step == self.steps or bool(every and self.step % every == 0)

    def save(self) -> None:
        """Begin to save a checkpoint, in the background."""
        self.ledger.flush()
        self.ranks.barrier()  # every rank's ledger is durable before `latest` may move beyond it
        if self.ranks.rank == 0:
            averaged = {} if self.average is None else self.average.files()
            files = self.task.files() | averaged | {"optimizer.safetensors": pack_optimizer(self.optimizer)}
            consumed = self.step * self.config.global_batch
            state = {"consumed": consumed, "world": self.ranks.world, "steps": self.steps, "random": pack_random()}
            self.checkpoints.save(self.step, files, state)
        self.saved = self.step

    def validate(self) -> bool:
        """Validate on the held-out clips, if there are any; False, and nothing recorded, if a rank is to stop."""
        measures = self._measures()
        if measures is None:
            return False
        if measures:
            self.events.log("validation", step=self.step, **measures)
        self.task.note(self.events, self.step)
        if self.config.best and measures:
            self._keep_best(measures)
        return True

    def _measures(self) -> dict[str, float] | None:
        """Numbers of a validation, those of averaged weights with `ema_` before their names; None: broken off."""
        if not self.held_out:
            return {}
        measures = validate(self.config, self.task, self.held_out, self.ranks, self.stopping)
        if measures is None or self.average is None:
            return measures
        with self.average.in_place():
            averaged = validate(self.config, self.task, self.held_out, self.ranks, self.stopping)
        return None if averaged is None else measures | {f"ema_{name}": value for name, value in averaged.items()}

    def _keep_best(self, measures: dict[str, float]) -> None:
        """Keep the checkpoint of this step if it is the best so far. Raises PipelineError: there is no such number."""
        name, before = self.config.best, self.best
        if name not in measures:
            raise PipelineError(f"best={name}: a validation of this run has {', '.join(measures)}; give one of them")
        better = measures[name] < (math.inf if before is None else before.value)
        if better and self.saved != self.step:
            self.save()
        if better:
            self.best = BestCheckpoint(self.step, name, measures[name], self.step)
        elif before is not None:
            self.best = replace(before, validated=self.step)
        if self.ranks.rank == 0 and self.best is not None:
            self.checkpoints.kept = self.best.step
            self.checkpoints.wait()  # what is named is durable
            write_best(self.config.run, self.best)

    def finish(self, status: str) -> None:
        """Wait for the last checkpoint, and record how the attempt ended."""
        self.checkpoints.wait()
        self.events.log(status, step=self.step)

    def close(self) -> None:
        """Release everything, also after an error."""
        self.task.close()
        self.events.close()
        self.checkpoints.close()
        self.ledger.flush()


def best_so_far(config: TrainConfig, done: int) -> BestCheckpoint | None:
    """The best checkpoint of a run up to the step that its newest has; None: none is kept, or by another number."""
    best = read_best(config.run) if config.best else None
    return best if best is not None and best.measure == config.best and best.step <= done else None


def _next_attempt(run: str) -> int:
    before = attempts(run)
    return before[-1].number + 1 if before else 1
