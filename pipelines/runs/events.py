"""The events of a training run: one stream, written to files, TensorBoard, Prometheus and the terminal.

events.jsonl holds one JSON object a line (object stores cannot append, so there it is events/<time>-000001.jsonl, ...);
tensorboard/ holds the same numbers for TensorBoard. docs/training.md lists the fields and the formulas.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.runs.progress import ProgressDisplay, short_number
from pipelines.runs.series import TrainSeries
from pipelines.runs.sinks import LocalFile, Parts, Sink
from pipelines.runs.tensorboard import board_header, board_scalars, board_start
from pipelines.storage import store
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from pipelines.runs.peak import Peak

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
_RESERVED = {"time", "kind", "step", "epoch", "samples", "seconds", "waited", "flops", "rss_mb", "cuda_mb"}
_RESERVED |= {"samples_per_s", "wait", "mfu"}


# TensorBoard shows numbers whose tags begin alike together; a step's other numbers are what is learnt.
_BOARD_GROUPS = {
    "speed": ("samples", "samples_per_s", "seconds", "waited", "wait", "mfu", "skipped"),
    "memory": ("rss_mb", "cuda_mb"),
    "optimizer": ("lr", "grad_norm"),
    "rollouts": ("idle_rollout", "idle_learner", "busy_read", "busy_gaze", "busy_reward", "publish_s"),
}
_GROUP_OF = {name: group for group, names in _BOARD_GROUPS.items() for name in names}


class NoEvents(PipelineError):
    """The folder holds no events: it is no training run, or one that has not started."""


class Events:
    """The event stream of one attempt at a run. Every rank makes one and calls `step`; rank 0 writes.

    Args:
        run_url: folder or s3:// prefix of the run.
        rank, world: rank of this process, and how many ranks there are.
        console: where progress goes: a moving line on a terminal, else a line every `every` seconds. None: nowhere.
        peak: of one rank's device (see `measure_peak`); without it there is no `mfu`.
        reductions: how values are reduced over ranks, by name. Others: the sum for `skipped`, else the mean.
        window: steps that rates are averaged over.
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
        self._lines, self._board = _open_sinks(Location(run_url))
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
        """Record a step.

        With torch.distributed initialised this is a collective: all ranks call it, with the same names. If a rank has
        died, it raises within the process group's timeout.

        Args:
            step: steps done, this one included.
            samples: how many this rank took in this step.
            values: loss, gradient norm, learning rate, skipped samples, ... of this rank.
            seconds, waited: how long the step took on this rank, and how much of that it waited for data. The slowest
                rank counts.
            flops: floating-point operations of this rank in this step.
            steps: steps of the whole run, for the progress line (0 = unknown).
        Returns:
            Every number of the step, reduced over the ranks: the same on each.
        """
        import torch  # here, not above: `autogaze status` reads events without it

        if taken := [name for name in values if name in _RESERVED]:
            raise ValueError(f"{taken[0]}: a name that Events uses itself")
        mine = {**values, "samples": samples, "seconds": seconds, "waited": waited, "rss_mb": _rss_mb()}
        mine["flops"] = flops or 0.0
        if torch.cuda.is_available():
            mine["cuda_mb"] = torch.cuda.max_memory_allocated() / 1e6
        row = _reduce(mine, self._reductions)
        self._recent.append((row["seconds"], row["waited"], row["samples"], row.pop("flops")))
        total_s, waited_s, total_samples, total_flops = (math.fsum(part) for part in zip(*self._recent, strict=True))
        if total_s > 0:
            row |= {"samples_per_s": total_samples / total_s, "wait": waited_s / total_s}
            if self._peak is not None and flops is not None:
                row["mfu"] = total_flops / (total_s * self._peak.flops * self._world)
        if self._writes:
            self._write({"kind": "step", "step": step, "epoch": epoch, **row})
            self._plot(step, {f"{_board_group(name)}/{name}": value for name, value in row.items()})
            self._exported.update({**row, "step": step, "epoch": epoch, **({"steps": steps} if steps else {})})
            if self._display is not None:
                self._display.step(step, steps, epoch, row, total_s / len(self._recent))
        return row

    def log(self, kind: str, **fields: Any) -> None:
        """Record any other event: the start of an attempt, a validation, a checkpoint. Only rank 0 writes it.

        With a `step` among the fields, those that are floats also go to TensorBoard.
        """
        if not self._writes:
            return
        self._write({"kind": kind, **fields})
        numbers = {f"{kind}/{name}": value for name, value in fields.items() if isinstance(value, float)}
        if "step" in fields and numbers:
            self._plot(int(fields["step"]), numbers)
        if self._display is not None:
            # A field that is a sentence needs no name.
            shown = (value if name == "which" else f"{name} {short_number(value)}" for name, value in fields.items())
            self._display.print(f"{kind}  {'  '.join(shown)}")

    def close(self) -> None:
        """Write what is still in memory. Raises PipelineError if it cannot be written."""
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


def _board_group(name: str) -> str:
    """The group of TensorBoard's that a number of a step belongs to."""
    return _GROUP_OF.get(name, "train")


def _open_sinks(url: Location) -> tuple[Sink, Sink]:
    """The sinks of an attempt's lines and of its TensorBoard records. Names hold its time, so listings are in order."""
    began = f"{time.time():.3f}"
    board = url / "tensorboard" / f"events.out.tfevents.{began}"
    if url.is_local:
        records = LocalFile(board)
        records.write(board_header())
        return LocalFile(url / "events.jsonl", lines=True), records
    lines = Parts(lambda part: url / "events" / f"{began}-{part:06d}.jsonl")
    return lines, Parts(lambda part: f"{board}.{part:06d}", board_header())


def _reduce(values: dict[str, float], reductions: Mapping[str, Reduction]) -> dict[str, float]:
    """Each value reduced over the ranks: as `reductions` says for its name, else the mean."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return {name: float(value) for name, value in values.items()}
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    names = sorted(values)
    mine = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=device)
    per_rank = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(per_rank, mine)
    table = torch.stack(per_rank).cpu()
    by_name = {"mean": table.mean(dim=0), "sum": table.sum(dim=0), "max": table.max(dim=0).values}
    return {name: float(by_name[reductions.get(name, "mean")][place]) for place, name in enumerate(names)}


def _rss_mb() -> float:
    """Resident memory of this process in MB; its peak where the system does not tell what it is now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _finite(value: Any) -> Any:
    """The value with the texts "nan", "inf" and "-inf" for the floats that JSON lacks."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_events(run_url: str) -> pd.DataFrame:
    """The events of a run in order, one row each: `kind` and the fields of that kind; "nan", "inf" are floats again.

    Where an attempt repeats steps of an earlier one, its events replace the earlier ones from that step on.
    Raises NoEvents when there are none, and PipelineError for a damaged line. The last line of a file is ignored while
    it is incomplete: it may still be being written.
    """
    url = Location(run_url)
    parts = [e.url for e in store.list_objects(url / "events") if e.url.endswith(".jsonl")]
    single = url / "events.jsonl"
    rows: list[dict[str, Any]] = []
    for file in ([single] if store.exists(single) else []) + parts:
        lines = store.read(file).decode(errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                rows.append(dict(json.loads(line)))
            except ValueError as error:
                raise PipelineError(f"{file}: line {number} is damaged: {line[:60]!r}") from error
    if not rows:
        raise NoEvents(f"{url}: no events are here; give the folder of a training run")
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
