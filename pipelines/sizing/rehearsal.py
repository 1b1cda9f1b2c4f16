"""The job's own actor on some pieces of a job: what its parts cost side by side, beside what each costs by itself.

Parts that work at the same time take more of each core: they share caches and memory. And what lies between them, such
as copies and threads that wait for one another, is in none of their rates.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.corpus.clips import PlannedClip, decoded_clips
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.corpus.plan_reader import RowPlan
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decoding import Decoding
from pipelines.preprocess.description import decode_config
from pipelines.preprocess.job import resolve_gaze
from pipelines.preprocess.stage import PreprocessStage
from pipelines.sizing.rates import Rates
from pipelines.sizing.trials import TimedTrial
from pipelines.storage import tables


def side_by_side(
    done: Sequence[TimedTrial], rates: Rates, config: PreprocessConfig, seconds: float, at_once: int
) -> tuple[float, float]:
    """Core seconds that an actor takes for some pieces, divided by what rates say of its parts; and core seconds that a
    decoder takes to start.

    Args:
        done: pieces that were decoded, and how long that took.
        rates: of the parts.
        config: settings of the job.
        seconds: how long it may take; at least a clip is made.
        at_once: decoders.
    Where the system does not tell what a process has used they are 1 and 0. Raises PipelineError as the job does.
    """
    shares = _shares(done, rates, seconds * at_once)
    pieces = [each.trial.piece.rows[:count] for each, count in shares]
    decoding = Decoding(decode_config(config), config.frames, config.jpeg_quality, decoders=at_once)
    with tempfile.TemporaryDirectory(prefix="autogaze-") as folder:
        plan = _write_plan(folder, [[pieces[0][:1]], pieces])
        stage = PreprocessStage(folder, plan, resolve_gaze(config), decoding, rates.device)
        try:
            _warm(stage, done[0])
            started = _children(stage)
            stage.make(0)
            before, began = _children(stage), time.process_time()
            stage.make(1)
            spent, after = time.process_time() - began, _children(stage)
        finally:
            stage.close()
    if started is None or before is None or after is None:
        return 1.0, 0.0
    clips = sum(map(len, pieces))
    each = rates.write + (rates.jpeg if config.frames == "jpeg" else 0.0)
    each += rates.search if rates.device == "cpu" else 0.0
    decode = sum(one.seconds * count / one.trial.piece.clips for one, count in shares)
    return (spent + after - before) / (decode + clips * each + rates.shard), started / at_once


def _shares(done: Sequence[TimedTrial], rates: Rates, core_s: float) -> list[tuple[TimedTrial, int]]:
    """Pieces of so many core seconds together, each once, and how many clips of each."""
    found, seen, left = list[tuple[TimedTrial, int]](), set[tuple[str, int, int]](), core_s
    for each in done:
        piece = each.trial.piece
        first = piece.rows[0]
        name = str(first["object"]), int(first["offset"]), int(first["start"])
        clip = each.seconds / piece.clips + rates.search + rates.jpeg + rates.write
        if name not in seen and (left > 0 or not found):
            seen.add(name)
            found.append((each, max(1, min(piece.clips, round(left / clip)))))
            left -= found[-1][1] * clip
    return found


def _warm(stage: PreprocessStage, trial: TimedTrial) -> None:
    """Start the decoders, which takes a while."""

    def start(number: int) -> None:
        with trial.trial.open() as source:
            list(
                decoded_clips(stage.decoders.decoders[number], source, [PlannedClip.of_row(trial.trial.piece.rows[0])])
            )

    with ThreadPoolExecutor(len(stage.decoders.decoders)) as pool:
        list(pool.map(start, range(len(stage.decoders.decoders))))


def _children(stage: PreprocessStage) -> float | None:
    """Core seconds that the decoders have used; None where the system does not tell."""
    used = [decoder.cpu_seconds for decoder in stage.decoders.decoders]
    return None if None in used else sum(each for each in used if each is not None)


def _write_plan(folder: str, shards: Sequence[Sequence[Sequence[Mapping[str, Any]]]]) -> RowPlan:
    """A plan whose shards are pieces of a job, one after the other."""
    rows = [
        {**row, "shard": shard, "position": position}
        for shard, pieces in enumerate(shards)
        for position, row in enumerate(itertools.chain.from_iterable(pieces))
    ]
    data = tables.to_bytes(pd.DataFrame(rows, columns=PLAN_SCHEMA.names), PLAN_SCHEMA)
    Path(folder, "plan.parquet").write_bytes(data)
    return RowPlan(folder, hashlib.sha256(data).hexdigest())
