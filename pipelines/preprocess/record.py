"""What a run of preprocess did, added up shard by shard, and written down at its end."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipelines.gazing.gazers import ResolvedGaze, how_searched
from pipelines.preprocess.job import Job
from pipelines.preprocess.workers import Workers


@dataclass
class Totals:
    """What a run has done so far; one `add` per committed shard."""

    clips: int = 0
    bytes: int = 0  # committed, tars and indexes
    ok: int = 0
    frames: int = 0
    tokens: int = 0
    loss: float = 0.0  # sum over ok clips
    met: float = 0.0
    restarts: int = 0  # decoder children replaced
    failed: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)  # busy seconds per stage, all actors together
    began: float = float("inf")
    ended: float = 0.0
    first: float = float("inf")  # when the first shard was committed

    def add(self, row: dict[str, Any]) -> None:
        for name in ("clips", "bytes", "ok", "frames", "tokens", "loss", "met", "restarts"):
            setattr(self, name, getattr(self, name) + row[name])
        self.failed.update(json.loads(row["failed"]))
        for stage, spent in json.loads(row["seconds"]).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self.first = min(self.first, row["ended"])
        self.began, self.ended = min(self.began, row["began"]), max(self.ended, row["ended"])

    def speed_of_light(self, workers: dict[str, int]) -> tuple[str, float]:
        """(slowest stage, rate of the whole / rate of that stage alone with its workers always busy)."""
        busy = {stage: self.seconds[stage] / count for stage, count in workers.items()}
        slowest = max(busy, key=lambda stage: busy[stage])
        span = self.ended - self.began
        return slowest, busy[slowest] / span if span > 0 else 0.0


def run_record(
    job: Job,
    totals: Totals,
    workers: Workers,
    cluster: dict[str, int],
    began: float,
    seconds: float,
    status: str,
    start_up: dict[str, float],
) -> dict[str, Any]:
    """What a run did, for the report: kept beside the dataset, in <output>.runs/, since no two runs' times agree.

    Args:
        cluster: nodes, cpus, gpus.
        began: seconds since the epoch.
        seconds: how long it took, without starting Ray.
        status: done, interrupted, or running: then it says how far the run was at `began + seconds`.
        start_up: seconds of the phases before `began`. Two more come after it: until the actors begin their first clip,
            and from then on until the first shard is committed.
    """
    if totals.clips:
        start_up = start_up | {"actors": totals.began - began, "first_shard": totals.first - totals.began}
    counts = {"decode": workers.decode, "gaze": workers.gaze}
    slowest, light = totals.speed_of_light(counts) if totals.clips else ("", 0.0)
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "started": time.strftime(stamp, time.gmtime(began)),
        "finished": time.strftime(stamp, time.gmtime(began + seconds)),
        "status": status,
        **cluster,
        "workers": counts,
        "device": workers.device,
        "gaze": _how_gazed(job.gazer, workers.device),
        "clips": {"ok": totals.ok, "failed": sum(totals.failed.values())},
        "failed_by_reason": dict(sorted(totals.failed.items())),
        "decoder_restarts": totals.restarts,
        "frames": totals.frames,
        "tokens": totals.tokens,
        "seconds": round(seconds, 3),
        "start_up": {phase: round(spent, 3) for phase, spent in start_up.items()},
        "frames_per_s": round(totals.frames / seconds, 2) if seconds else 0.0,
        "stages": {
            stage: {"seconds": round(spent, 3), "workers": counts["gaze" if stage in _IN_GAZE else "decode"]}
            for stage, spent in sorted(totals.seconds.items())
        },
        "slowest_stage": slowest,
        "speed_of_light": round(light, 4),
    }


def _how_gazed(gazer: ResolvedGaze, device: str) -> str:
    """What gazed and how, in words: what may differ between runs and changes the speed."""
    settings, words = gazer.settings, gazer.name
    if gazer.name == "policy":
        graphs = device == "cuda" and settings.policy.cuda_graphs != "off"
        words = f"policy in {settings.policy.dtype}, {settings.policy.batch} clips at once"
        words += f", CUDA graphs {'on' if graphs else 'off'}"
    elif gazer.name == "videomae":
        words = f"videomae in {settings.reconstructor.dtype}, {how_searched(settings.labels)}"
    return words + (f", targets of {settings.targets} frames" if settings.targets else "")


_IN_GAZE = ("gaze", "search", "write")
