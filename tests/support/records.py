"""A run record for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.dataset.run_records import RunRecord, StageTime


def run_record(**changes: Any) -> RunRecord:
    """The record of a finished run of 100 s, with some fields changed."""
    record = RunRecord(
        started="2026-11-22T10:00:00Z",
        finished="2026-11-22T10:01:40Z",
        status="done",
        nodes=3,
        cpus=24,
        gpus=1,
        workers={"decode": 20, "gaze": 1},
        device="cuda",
        gaze="canvas",
        ok=1234,
        failed=5,
        failed_by_reason={"decode_error": 5},
        decoder_restarts=0,
        frames=19744,
        tokens=98720,
        seconds=100.0,
        start_up={"ray": 5.0},
        frames_per_s=197.44,
        stages={"decode": StageTime(1500.0, 20), "encode": StageTime(300.0, 20), "gaze": StageTime(90.0, 1)},
        slowest_stage="gaze",
        speed_of_light=0.9,
    )
    return replace(record, **changes)
