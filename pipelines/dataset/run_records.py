"""The record that each run of preprocess leaves beside its dataset: what it did, how fast, on what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines.storage import store

LISTED_RUNS = 20


_PART_OF = {"fetch": "decode", "encode": "decode", "search": "gaze", "write": "gaze"}  # whose time holds theirs


@dataclass
class Stage:
    """One stage of a run: seconds its workers were busy, all together, and their share of the run's time."""

    name: str
    seconds: float
    workers: int
    share: float

    @property
    def part(self) -> bool:
        """Whether its time is also counted in another stage."""
        return self.name in _PART_OF


@dataclass
class Run:
    """What one run of preprocess left behind about itself."""

    started: str
    status: str
    nodes: int
    cpus: int
    gpus: int
    workers: list[tuple[str, int]]
    ok: int
    failed: int
    frames: int
    seconds: float
    frames_per_s: float
    stages: list[Stage]
    slowest_stage: str
    speed_of_light: float

    @property
    def duration(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f"{hours} h {minutes:02d} min"
        return f"{minutes} min {seconds:02d} s" if minutes else f"{self.seconds:.1f} s"

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Run:
        """Raises KeyError, TypeError, ValueError, AttributeError for what is not a record."""
        seconds = float(record["seconds"])
        stages = [
            Stage(name, float(stage["seconds"]), int(stage["workers"]), 0.0)
            for name, stage in record.get("stages", {}).items()
        ]
        for stage in stages:
            stage.share = min(stage.seconds / (seconds * stage.workers), 1.0) if seconds and stage.workers else 0.0
        whole = {stage.name: stage.share for stage in stages}

        def order(stage: Stage) -> tuple[float, str, bool, float]:
            """Busiest first, each followed by its own parts."""
            parent = _PART_OF.get(stage.name, stage.name)
            return -whole.get(parent, 0.0), parent, stage.name != parent, -stage.share

        return cls(
            started=str(record["started"]).replace("T", " ").replace("Z", " UTC"),
            status=str(record.get("status", "")),
            nodes=int(record["nodes"]),
            cpus=int(record["cpus"]),
            gpus=int(record["gpus"]),
            workers=[(str(stage), int(number)) for stage, number in record["workers"].items()],
            ok=int(record["clips"]["ok"]),
            failed=int(record["clips"]["failed"]),
            frames=int(record["frames"]),
            seconds=seconds,
            frames_per_s=float(record["frames_per_s"]),
            stages=sorted(stages, key=order),
            slowest_stage=str(record.get("slowest_stage") or ""),
            speed_of_light=float(record.get("speed_of_light") or 0.0),
        )


def read_runs(url: str) -> list[Run]:
    """Records of the runs that made the dataset, newest first; a file that is not a record is passed over.

    They lie beside the dataset, since a dataset's own files do not depend on who made them, when or where.
    """
    found = []
    for entry in store.list_objects(f"{url}.runs"):
        if not entry.url.endswith(".json"):
            continue
        try:
            found.append(Run.parse(json.loads(store.read(entry.url))))
        except (KeyError, TypeError, ValueError, AttributeError):  # ValueError: bad JSON or UTF-8 as well
            continue
    return sorted(found, key=lambda run: run.started, reverse=True)[:LISTED_RUNS]


_RECORDS = 8


def newest_record(url: str) -> dict[str, Any]:
    """What the run of preprocess that was last heard of says of itself, or {}. A file that is no record is passed over.

    Records lie beside the dataset, whose own bytes do not depend on how fast it was made.
    """
    names = [entry.url for entry in store.list_objects(f"{url}.runs") if entry.url.endswith(".json")]
    found = []
    for name in names[-_RECORDS:]:  # names begin with the time at which the run did
        try:
            record = json.loads(store.read(name))
            stage_shares(record), ended_at(record)
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
            continue
        found.append(record)
    return max(found, key=ended_at, default={})


def ended_at(record: dict[str, Any]) -> float:
    return float(pd.Timestamp(record["finished"]).timestamp())


def stage_shares(record: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Share of a run's time that each stage's workers were busy, and the slowest stage."""
    if not record:
        return {}, ""
    seconds = float(record["seconds"])
    shares = {
        name: min(stage["seconds"] / (seconds * stage["workers"]), 1.0) if seconds and stage["workers"] else 0.0
        for name, stage in record["stages"].items()
    }
    return shares, str(record["slowest_stage"])
