"""Measure what the parts of a job cost on this machine, in a short time, by the code that the job runs."""

from __future__ import annotations

import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from autogaze.gaze import Gaze
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.indexes import INDEX_SCHEMA
from pipelines.dataset.shards import Outcome, build_shard, packed, writing_shard
from pipelines.gazing import gazers
from pipelines.gazing.gazers import Gazer
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.description import decode_config
from pipelines.preprocess.gaze_threads import gaze_each
from pipelines.preprocess.job import resolve_gaze
from pipelines.sizing.rates import Rates, gaze_words
from pipelines.sizing.rehearsal import side_by_side
from pipelines.sizing.trials import TimedTrial, Trial, decode_trials, fitted_rates

CLIPS = 32  # that are gazed at, encoded and packed together
_ROUNDS = 3
_LEAST = 8  # trials, however little time there is
_STORAGES = ("jpeg", "raw", "none")


def measure_rates(
    trials: Sequence[Trial], config: PreprocessConfig, device: str, seconds: float, at_once: int
) -> Rates:
    """Rates of this machine for a job.

    Args:
        trials: pieces of it, those first that count if time is short.
        config: its settings.
        device: what gazes: cpu, cuda or mps.
        seconds: how long to decode, and how long an actor then works; the rest takes about as long again.
        at_once: cores to load while measuring, as the job will load all.
    Raises PipelineError: nothing can be decoded, or the gaze does not load.
    """
    done = decode_trials(trials, decode_config(config), seconds, at_once, _LEAST)
    clips = _typical(done)
    gazer = gazers.start(resolve_gaze(config), device)
    gazes = _gazed(gazer, clips)  # the first time is slower
    seconds_of = _core_seconds if device == "cpu" else _seconds
    search = seconds_of(lambda: _gazed(gazer, clips), at_once)
    jpeg = _core_seconds(lambda: [encode_frames(clip, "jpeg", config.jpeg_quality) for clip in clips], at_once)
    made = {storage: _outcomes(clips, gazes, storage, config.jpeg_quality) for storage in _STORAGES}
    write, shard = _writing(made[config.frames], gazer, at_once)
    rates = Rates(
        machine=f"{platform.machine()}, Python {platform.python_version()}, on {platform.system()}",
        at_once=at_once,
        decoder=config.decoder,
        gaze=gaze_words(config),
        device=device,
        frames=config.clip.frames,
        batch=gazer.batch,
        decode=fitted_rates(done),
        jpeg=jpeg / CLIPS,
        write=write,
        search=search / CLIPS,
        shard=shard,
        stored={storage: _stored(found, gazer) for storage, found in made.items()},
    )
    together, start = side_by_side(done, rates, config, seconds, at_once)
    return replace(rates, together=together, start=start)


def _typical(done: Sequence[TimedTrial]) -> np.ndarray:
    """Clips as the job has them, uint8 [CLIPS, T, S, S, 3]: of those that were decoded, by what they stand for."""
    choices = [(frames, each.trial.weight / len(each.frames)) for each in done for frames in each.frames]
    drawn = random.Random(0).choices(choices, [weight for _, weight in choices], k=CLIPS)  # noqa: S311 (no secret)
    return np.stack([frames for frames, _ in drawn])


def _gazed(gazer: Gazer, clips: np.ndarray) -> list[Gaze]:
    """The gaze of each clip, as a gazer of the job has them: so many at once."""
    gazes: list[Gaze] = []
    for first in range(0, len(clips), gazer.batch):
        part = clips[first : first + gazer.batch]
        gazes += gaze_each(gazer, part, [str(first + number) for number in range(len(part))])
        gazes[-1].final().sum().item()  # a device has finished only when its results are here
    return gazes


def _seconds(action: Callable[[], object], at_once: int) -> float:
    """What an action takes by the clock, the median of some times: for a device, which other cores do not slow down."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _core_seconds(action: Callable[[], object], at_once: int) -> float:
    """What an action takes of a core while others do the same, the median of some times."""

    def work() -> list[float]:
        times = []
        for _ in range(_ROUNDS):
            began = time.thread_time()
            action()
            times.append(time.thread_time() - began)
        return times

    with ThreadPoolExecutor(at_once) as pool:
        return statistics.median(one for each in [pool.submit(work) for _ in range(at_once)] for one in each.result())


def _outcomes(clips: np.ndarray, gazes: Sequence[Gaze], storage: str, quality: int) -> list[Outcome]:
    """The clips as members of a shard."""
    return [
        Outcome(gaze=gaze, members=encode_frames(clip, storage, quality))
        for clip, gaze in zip(clips, gazes, strict=True)
    ]


def _writing(outcomes: Sequence[Outcome], gazer: Gazer, at_once: int) -> tuple[float, float]:
    """Core seconds to write a clip into a shard on a disk, and what a shard takes beside its clips."""

    def write(count: int) -> None:
        with tempfile.TemporaryDirectory(prefix="autogaze-") as folder, writing_shard(folder, 0, INDEX_SCHEMA) as made:
            for row, outcome in zip(_rows(count).to_dict("records"), outcomes, strict=False):
                made.writer.add(row, packed(outcome, gazer.stops))

    one, all_ = (_core_seconds(lambda count=count: write(count), at_once) for count in (1, len(outcomes)))  # type: ignore[misc]
    clip = max(0.0, all_ - one) / (len(outcomes) - 1)
    return clip, max(0.0, one - clip)


def _stored(outcomes: Sequence[Outcome], gazer: Gazer) -> float:
    """Bytes a clip, its part of the index included."""
    return sum(map(len, build_shard(_rows(len(outcomes)), outcomes, gazer.stops))) / len(outcomes)


def _rows(count: int) -> pd.DataFrame:
    """Rows of a plan for clips whose names are about as long as real ones."""
    fixed: dict[str, Any] = {
        "shard": 0,
        "object": "s3://corpus/0.mp4",
        "offset": 0,
        "bytes": 1,
        "fingerprint": "0" * 32,
    }
    fixed |= {"stride": 1, "frames": 1, "padded": 0, "video_frames": 10**6, "fps": 25.0, "width": 1280, "height": 720}
    fixed |= {"tile": "", "reason": None, "detail": None}
    rows = [
        fixed | {"clip": f"videos/{number:08d}-{'0' * 16}-{number * 16:06d}", "position": number, "start": number * 16}
        | {"video": f"s3://corpus/videos/{number:08d}.mp4"}
        for number in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=PLAN_SCHEMA.names)
