"""How far a training run is: its last step, its speed, its checkpoint, and whether it still works."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from pipelines.errors import PipelineError
from pipelines.inspection.liveness import HEALTHY_STATES, WINDOW, clock, seconds_since_change, state_of
from pipelines.runs.checkpoints import Checkpoints
from pipelines.runs.events import NoEvents, read_events
from pipelines.runs.ledger import attempts
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.yaml_text import read_yaml


@dataclass
class RunStatus:
    """A training run. `failures` counts attempts that ended by a kill or an error."""

    url: str
    kind: str
    state: str
    step: int
    steps: int | None
    epoch: int | None
    loss: float | None
    rate: float | None
    wait: float | None
    left_s: float | None
    idle_s: float | None
    world: int | None
    attempts: int
    failures: int
    skipped: int
    checkpoint: int | None
    validation: dict[str, float]
    idle: dict[str, float]
    """Share of the time that rollouts and learner of an RL run waited for each other."""
    bottleneck: str = ""
    notice: str = ""
    what: str = "run"

    @property
    def well(self) -> bool:
        return self.state in HEALTHY_STATES


def run_status(url: Location, stall_s: float, now: float) -> RunStatus:
    """The status of the training run at `url`; the arguments are those of read_status. Raises PipelineError."""
    try:
        kind = str(read_yaml(store.read(url / "config.yaml"))["kind"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise PipelineError(f"{url}/config.yaml: damaged, or not that of a training run") from error
    try:
        events = read_events(url)
    except NoEvents:  # the run has not started yet
        events = pd.DataFrame({"kind": [], "time": [], "step": []})
    rows = [{str(k): v for k, v in row.items() if not _is_filler(v)} for row in events.to_dict("records")]
    starts = [row for row in rows if row["kind"] == "start"]
    start = starts[-1] if starts else {}
    steps = [row for row in rows if row["kind"] == "step"]
    recent = [row for row in steps[-WINDOW - 1 :] if row["time"] >= start.get("time", 0.0)]
    last, end = steps[-1] if steps else {}, rows[-1] if rows else {"kind": ""}
    step, planned = int(last.get("step", start.get("step", 0))), start.get("steps")
    interval = (recent[-1]["time"] - recent[0]["time"]) / (len(recent) - 1) if len(recent) > 1 else 0.0
    idle = max(now - rows[-1]["time"], 0.0) if rows else seconds_since_change(url / "config.yaml", now)
    state = end["kind"] if end["kind"] in ("done", "stopped") else state_of(bool(recent), idle, stall_s, interval)
    left = (int(planned) - step) * interval if planned and interval and state == "running" else None
    begun = max(len(attempts(url)), len(starts))
    ended = sum(row["kind"] in ("done", "stopped") for row in rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        checkpoint = Checkpoints(url).latest()
    validations = [row for row in rows if row["kind"] == "validation"]
    status = RunStatus(
        url=url,
        kind=kind,
        state=state,
        step=step,
        steps=None if planned is None else int(planned),
        epoch=None if "epoch" not in last else int(last["epoch"]),
        loss=last.get("loss"),
        rate=last.get("samples_per_s"),
        wait=last.get("wait"),
        left_s=left,
        idle_s=idle,
        world=None if "world" not in start else int(start["world"]),
        attempts=begun,
        failures=max(begun - ended - (state in ("starting", "running", "stalled")), 0),
        skipped=int(sum(row.get("skipped", 0.0) for row in steps)),
        checkpoint=checkpoint,
        validation=_numbers(validations[-1] if validations else {}),
        idle={name: last[f"idle_{name}"] for name in ("rollout", "learner") if f"idle_{name}" in last},
        bottleneck=next((str(row["which"]) for row in reversed(rows) if row["kind"] == "bottleneck"), ""),
        notice="; ".join(str(warning.message) for warning in caught),
    )
    if state == "stalled":
        status.notice = f"no event for {clock(idle or 0.0)}: is it running? The same command again goes on" + (
            f" from step {checkpoint}" if checkpoint else ""
        )
    return status


def _is_filler(value: Any) -> bool:
    """Whether pandas may have filled a cell in, for an event without this field. A loss that is NaN looks the same."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    own = ("time", "kind", "step")
    return {name: float(value) for name, value in row.items() if name not in own and isinstance(value, int | float)}
