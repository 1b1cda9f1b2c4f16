"""The record that each run of preprocess or encode leaves beside its dataset: what it did, how fast, and on what.

Records lie in <dataset>.runs/, one JSON file a run. They are not in the dataset itself: its bytes do not depend on who
made it, when or where. docs/formats.md lists the keys.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipelines.storage import store
from pipelines.storage.location import Location

STAGE_OF_PART = {
    "fetch": "decode",
    "encode": "decode",  # encode: frames, to JPEG
    "search": "gaze",
    "write": "gaze",
    "gazing": "features",
    "forward": "features",
    "packing": "features",
}
"""A part of a stage -> the stage in whose actors it runs."""
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_LISTED_RUNS = 20
_NEWEST_RECORDS = 8


@dataclass(frozen=True)
class StageTime:
    """Seconds that the workers of a stage (or of a part of one) were busy, all of them together."""

    seconds: float
    workers: int


@dataclass(frozen=True)
class RunRecord:
    """What one run says of itself. Fields are named as the keys of the file, except `ok` and `failed`.

    Attributes:
        started, finished: UTC, as 2026-01-31T12:00:00Z. While the run goes on `finished` is when this was written.
        status: done, interrupted or running.
        workers: actors of each stage.
        gaze: what gazed and how, in words. encoder: what encoded, where something did.
        ok, failed: clips; in the file together, as `clips`.
        seconds: how long the run took, without starting Ray and planning.
        start_up: seconds of each phase until the first shard was committed.
        stages: of each stage, and of each part of one.
        decoder_fallbacks: videos that PyAV decoded in place of the decoder, by reason.
        speed_of_light: rate of the run over the rate its slowest stage would have with all workers always busy.
    """

    started: str
    finished: str
    status: str
    nodes: int
    cpus: int
    gpus: int
    workers: dict[str, int]
    device: str
    gaze: str
    ok: int
    failed: int
    failed_by_reason: dict[str, int]
    decoder_restarts: int
    frames: int
    tokens: int
    seconds: float
    start_up: dict[str, float]
    frames_per_s: float
    stages: dict[str, StageTime] = field(default_factory=dict)
    slowest_stage: str = ""
    speed_of_light: float = 0.0
    encoder: str = ""
    decoder_fallbacks: dict[str, int] = field(default_factory=dict)

    @property
    def finished_at(self) -> float:
        """`finished` in seconds since 1970."""
        return float(pd.Timestamp(self.finished).timestamp())

    def busy_share(self, stage: str) -> float:
        """Share of the run's time that the workers of a stage were busy: 0 to 1."""
        spent = self.stages[stage]
        available = self.seconds * spent.workers
        return min(spent.seconds / available, 1.0) if available else 0.0

    def busiest_first(self) -> list[str]:
        """Names of the stages, the busiest first, each followed by its own parts."""

        def order(name: str) -> tuple[float, str, bool, float]:
            stage = STAGE_OF_PART.get(name, name)
            share = self.busy_share(stage) if stage in self.stages else 0.0
            return -share, stage, name != stage, -self.busy_share(name)

        return sorted(self.stages, key=order)

    def to_json(self) -> bytes:
        """The file's bytes."""
        document = {
            "started": self.started,
            "finished": self.finished,
            "status": self.status,
            "nodes": self.nodes,
            "cpus": self.cpus,
            "gpus": self.gpus,
            "workers": self.workers,
            "device": self.device,
            "gaze": self.gaze,
            **({"encoder": self.encoder} if self.encoder else {}),
            "clips": {"ok": self.ok, "failed": self.failed},
            "failed_by_reason": dict(sorted(self.failed_by_reason.items())),
            "decoder_restarts": self.decoder_restarts,
            **({"decoder_fallbacks": dict(sorted(self.decoder_fallbacks.items()))} if self.decoder_fallbacks else {}),
            "frames": self.frames,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "start_up": {phase: round(spent, 3) for phase, spent in self.start_up.items()},
            "frames_per_s": round(self.frames_per_s, 2),
            "stages": {
                name: {"seconds": round(stage.seconds, 3), "workers": stage.workers}
                for name, stage in sorted(self.stages.items())
            },
            "slowest_stage": self.slowest_stage,
            "speed_of_light": round(self.speed_of_light, 4),
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> RunRecord:
        """Read what `to_json` wrote, also by versions that knew no `gaze` or `start_up`.

        Raises ValueError for anything else.
        """
        try:
            document: dict[str, Any] = json.loads(data)
            record = cls(
                started=str(document["started"]),
                finished=str(document["finished"]),
                status=str(document["status"]),
                nodes=int(document["nodes"]),
                cpus=int(document["cpus"]),
                gpus=int(document["gpus"]),
                workers={str(stage): int(count) for stage, count in document["workers"].items()},
                device=str(document["device"]),
                gaze=str(document.get("gaze", "")),
                encoder=str(document.get("encoder", "")),
                ok=int(document["clips"]["ok"]),
                failed=int(document["clips"]["failed"]),
                failed_by_reason={str(reason): int(n) for reason, n in document["failed_by_reason"].items()},
                decoder_restarts=int(document["decoder_restarts"]),
                decoder_fallbacks={str(why): int(n) for why, n in document.get("decoder_fallbacks", {}).items()},
                frames=int(document["frames"]),
                tokens=int(document["tokens"]),
                seconds=float(document["seconds"]),
                start_up={str(phase): float(spent) for phase, spent in document.get("start_up", {}).items()},
                frames_per_s=float(document["frames_per_s"]),
                stages={
                    str(name): StageTime(float(stage["seconds"]), int(stage["workers"]))
                    for name, stage in document["stages"].items()
                },
                slowest_stage=str(document["slowest_stage"]),
                speed_of_light=float(document["speed_of_light"]),
            )
            record.finished_at  # noqa: B018 (a time that cannot be read is no record either)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not the record of a run: {error!r}") from error
        return record


def time_stamp(seconds: float) -> str:
    """A time in seconds since 1970 as records have it."""
    return time.strftime(_STAMP, time.gmtime(seconds))


def new_record_url(dataset: Location, began: float) -> Location:
    """Where a run that begins now keeps its record. Names sort by the time at which their run began."""
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began)) + f"-{uuid.uuid4().hex[:6]}.json"
    return _folder(dataset) / name


def read_runs(dataset: Location) -> list[RunRecord]:
    """Records of the runs that made a dataset, the newest 20, newest first."""
    records = sorted(_records(_record_urls(dataset)), key=lambda record: record.started, reverse=True)
    return records[:_LISTED_RUNS]


def newest_record(dataset: Location) -> RunRecord | None:
    """The record of the run that wrote last; None where no run has written one."""
    names = _record_urls(dataset)[-_NEWEST_RECORDS:]  # a run that began long ago may have written last
    return max(_records(names), key=lambda record: record.finished_at, default=None)


def _folder(dataset: Location) -> Location:
    return Location.as_is(f"{dataset}.runs")


def _record_urls(dataset: Location) -> list[Location]:
    return [entry.url for entry in store.list_objects(_folder(dataset)) if entry.url.endswith(".json")]


def _records(names: list[Location]) -> Iterator[RunRecord]:
    """Read records; a file that holds none is passed over, as is one removed since it was listed."""
    for name in names:
        try:
            yield RunRecord.from_json(store.read(name))
        except (ValueError, FileNotFoundError):
            continue
