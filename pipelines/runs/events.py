"""What a training run says of itself while it runs: one stream of events -> files, TensorBoard and the terminal.

events.jsonl holds one JSON object a line (on an object store, which cannot append: events/000001.jsonl, ...), and
tensorboard/ the same numbers as TensorBoard reads them. docs/training.md lists the fields and the formulas.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import torch
import torch.distributed as dist
from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.runs.peak import Peak
from pipelines.runs.progress import ProgressDisplay, short_number
from pipelines.runs.series import TrainSeries
from pipelines.runs.sinks import LocalFile, Parts, Sink
from pipelines.runs.tensorboard import board_header, board_scalars, board_start
from pipelines.storage import store, urls

Reduction = Literal["mean", "sum", "max"]

_REDUCTIONS: dict[str, Reduction] = {
    "skipped": "sum",
    "samples": "sum",
    "flops": "sum",
    "seconds": "max",
    "waited": "max",
    "rss_mb": "max",
    "cuda_mb": "max",
}
_OWN = {"time", "kind", "step", "epoch", "samples", "seconds", "waited", "flops", "rss_mb", "cuda_mb"}
_OWN |= {"samples_per_s", "wait", "mfu"}


# -- arithmetic ------------------------------------------------------------------------------------------------------


# -- events ----------------------------------------------------------------------------------------------------------


class Events:
    """The stream of one attempt at a run. Every rank makes one and calls `step`; rank 0 writes.

    Args:
        run_url: the run.
        rank, world: of this process; rank 0 writes.
        console: for progress: a line that moves on a terminal, else a plain line every `every` seconds. None = silent.
        peak: of one rank's device (`measure_peak`); without it there is no `mfu`.
        reductions: how values are reduced over ranks, by name; the mean where nothing is said, the sum of `skipped`.
        window: steps over which rates are taken.
    """

    def __init__(
        self,
        run_url: str,
        rank: int = 0,
        world: int = 1,
        console: Console | None = None,
        *,
        peak: Peak | None = None,
        reductions: Mapping[str, Reduction] | None = None,
        window: int = 50,
        every: float = 10.0,
    ) -> None:
        self._world, self._peak, self._reductions = world, peak, {**(reductions or {}), **_REDUCTIONS}
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=window)
        self._writes, self._board_begun = rank == 0, False
        if not self._writes:
            return
        self._lines, self._board = _files(urls.normalise(run_url))
        self._display = ProgressDisplay(console, every) if console is not None else None
        self._exported = TrainSeries(run_url)
        if peak is not None:
            self._write({"kind": "peak", "name": peak.name, "flops": peak.flops})

    def step(
        self,
        step: int,
        epoch: int,
        samples: int,
        values: Mapping[str, float],
        *,
        seconds: float,
        waited: float = 0.0,
        flops: float | None = None,
        steps: int = 0,
    ) -> dict[str, float]:
        """Record a step. With torch.distributed initialised all ranks must call it, with the same names: it is a
        collective, and a rank that died is an error here after the process group's timeout, at most.

        Args:
            step: steps done, this one included.
            samples: that this rank took in this step.
            values: loss, gradient norm, learning rate, skipped samples, ... of this rank.
            seconds, waited: this step took on this rank, all in all, and of it for data. The slowest rank counts.
            flops: operations this rank did in this step.
            steps: of the whole run, for progress and the time that is left (0 = unknown).
        Returns:
            Every number of the step, reduced over the ranks; the same on each of them.
        """
        if taken := [name for name in values if name in _OWN]:
            raise ValueError(f"{taken[0]}: a name that Events uses itself")
        mine = {**values, "samples": samples, "seconds": seconds, "waited": waited, "rss_mb": _rss_mb()}
        mine["flops"] = flops or 0.0
        if torch.cuda.is_available():
            mine["cuda_mb"] = torch.cuda.max_memory_allocated() / 1e6
        row = _reduce(mine, self._reductions)
        self._recent.append((row["seconds"], row["waited"], row["samples"], row.pop("flops")))
        spent, idle, done, work = (math.fsum(column) for column in zip(*self._recent, strict=True))
        if spent > 0:
            row |= {"samples_per_s": done / spent, "wait": idle / spent}
            if self._peak is not None and flops is not None:
                row["mfu"] = work / (spent * self._peak.flops * self._world)
        if self._writes:
            self._write({"kind": "step", "step": step, "epoch": epoch, **row})
            self._plot(step, row)
            self._exported.update({**row, "step": step, "epoch": epoch, **({"steps": steps} if steps else {})})
            if self._display is not None:
                self._display.step(step, steps, epoch, row, spent / len(self._recent))
        return row

    def log(self, kind: str, **fields: Any) -> None:
        """Record anything else that happened (rank 0 only writes): an attempt's start, a validation, a checkpoint.

        Fields that are floats are plotted too where there is a `step` among them.
        """
        if not self._writes:
            return
        self._write({"kind": kind, **fields})
        numbers = {f"{kind}/{name}": value for name, value in fields.items() if isinstance(value, float)}
        if "step" in fields and numbers:
            self._plot(int(fields["step"]), numbers)
        if self._display is not None:
            self._display.say(
                f"{kind}  " + "  ".join(f"{name} {short_number(value)}" for name, value in fields.items())
            )

    def close(self) -> None:
        """Write what is left. Raises PipelineError if it cannot be written."""
        if self._writes:
            if self._display is not None:
                self._display.close()
            self._exported.close()
            self._lines.close()
            self._board.close()

    def _write(self, event: dict[str, Any]) -> None:
        text = json.dumps(_finite({"time": round(time.time(), 3), **event}), allow_nan=False)
        self._lines.write(text.encode() + b"\n")

    def _plot(self, step: int, values: dict[str, float]) -> None:
        if not self._board_begun:
            self._board.write(board_start(step))
            self._board_begun = True
        self._board.write(board_scalars(step, values))


def _files(url: str) -> tuple[Sink, Sink]:
    """Where lines and TensorBoard's records of an attempt go. Names hold its time, so that listings are in order."""
    began = f"{time.time():.3f}"
    board = urls.join(url, "tensorboard", f"events.out.tfevents.{began}")
    if urls.is_local(url):
        records = LocalFile(board)
        records.write(board_header())
        return LocalFile(urls.join(url, "events.jsonl"), lines=True), records
    lines = Parts(lambda part: urls.join(url, "events", f"{began}-{part:06d}.jsonl"))
    return lines, Parts(lambda part: f"{board}.{part:06d}", board_header())


def _reduce(values: dict[str, float], reductions: Mapping[str, Reduction]) -> dict[str, float]:
    """Values of all ranks made one, by name; the mean where `reductions` says nothing else."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return {name: float(value) for name, value in values.items()}
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    names = sorted(values)
    mine = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    table = torch.stack(every).cpu()
    by_name = {"mean": table.mean(dim=0), "sum": table.sum(dim=0), "max": table.max(dim=0).values}
    return {name: float(by_name[reductions.get(name, "mean")][place]) for place, name in enumerate(names)}


def _rss_mb() -> float:
    """Memory of this process, MB: what is resident now, or where the system does not say, the most there was."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as the texts "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# -- reading ---------------------------------------------------------------------------------------------------------


def read_events(run_url: str) -> pd.DataFrame:
    """The events of a run, one row each, in order: `kind` says what of; numbers that were not finite are again.

    Where an attempt repeats steps of an earlier one, its events replace those from the first repeated step on.
    Raises PipelineError when there are none, or a line is damaged (but the last of a file: it may be being written).
    """
    url = urls.normalise(run_url)
    parts = [e.url for e in store.list_objects(urls.join(url, "events")) if e.url.endswith(".jsonl")]
    single = urls.join(url, "events.jsonl")
    rows: list[dict[str, Any]] = []
    for place in ([single] if store.exists(single) else []) + parts:
        lines = store.read(place).decode(errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                rows.append(dict(json.loads(line)))
            except ValueError as error:
                raise PipelineError(f"{place}: line {number} is damaged: {line[:60]!r}") from error
    if not rows:
        raise PipelineError(f"{url}: no events are here; give the folder of a training run")
    kept, first = [], math.inf
    for row in reversed(rows):
        if row.get("step", -1) < first:
            kept.append(row)
            if row["kind"] == "step":
                first = row["step"]
    frame = pd.DataFrame(kept[::-1])
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object and column.isin(["nan", "inf", "-inf"]).any():
            numbers = pd.to_numeric(column, errors="coerce")
            if (numbers.isna() & column.notna() & (column != "nan")).sum() == 0:
                frame[name] = numbers
    return frame


# -- the terminal ----------------------------------------------------------------------------------------------------
