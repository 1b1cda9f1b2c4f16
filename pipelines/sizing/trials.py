"""Pieces of a job that are decoded to see what decoding costs, and the rates that follow from their times."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa

from pipelines.corpus.clips import PlannedClip, decoded_clips
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.videos import local_copy, video_fingerprint
from pipelines.errors import PipelineError
from pipelines.sizing.footage import write_footage
from pipelines.sizing.rates import DecodeRates
from pipelines.sizing.workload import Piece, Workload, frames_of, of_manifest
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.isolated import IsolatedDecoder

_GUESS = DecodeRates(0.02, 0.002, 0.001, {})
"""About what decoding costs: only says which pieces are worth measuring, so it need not be right."""
_GUESS_CLIP = 0.03  # and what else a clip costs
_MOST = 400  # trials that are drawn, however much time there is
_CLIPS = 64  # of a trial
_ENOUGH = 3  # trials of a codec that give it a rate of its own


@dataclass(frozen=True)
class Trial:
    """A piece to be decoded. weight: how many clips of the job one of its clips stands for, but for a factor."""

    piece: Piece
    weight: float
    open: Callable[[], AbstractContextManager[Source]]


@dataclass(frozen=True)
class TimedTrial:
    """A trial, the core seconds that it took, and the frames of some clips: uint8 [T, S, S, 3] each."""

    trial: Trial
    seconds: float
    frames: tuple[np.ndarray, ...]


def drawn_trials(workload: Workload, seed: int = 0) -> list[Trial]:
    """Pieces of a job, drawn by how much work they are about; those first that should be measured if time is short."""
    pieces = [piece for run in workload.sample for shard in run for piece in shard.pieces]
    if not pieces:
        return []
    sizes = np.array([_GUESS.of(piece) + _GUESS_CLIP * piece.clips for piece in pieces])
    ends = np.cumsum(sizes)
    count = min(_MOST, 4 * len(pieces))
    places = np.searchsorted(ends, (np.arange(count) + 0.5) / count * ends[-1])
    found = []
    for place in places.tolist():
        piece, first = pieces[place], pieces[place].rows[0]
        where = str(first["object"]), int(first["offset"]), int(first["bytes"])
        weight = piece.clips / sizes[place]
        found.append(Trial(_shortened(piece), weight, lambda where=where: local_copy(*where)))  # type: ignore[misc]
    random.Random(seed).shuffle(found)  # noqa: S311 (no secret)
    return found


def _shortened(piece: Piece) -> Piece:
    rows = piece.rows[:_CLIPS]
    taken, decoded = frames_of(rows)
    return replace(piece, rows=rows, taken=taken, decoded=decoded)


def footage_trials(
    folder: Path, size: tuple[int, int], codec: str, fps: float, mbit: float, clip: ClipConfig, like: str
) -> list[Trial]:
    """Trials of a test video: clips as the job cuts them, and as others would, so that the parts of the cost show."""
    footage, trials = folder / "footage.mkv", list[Trial]()
    own = clip.stride if not clip.fps else max(1, round(fps / clip.fps))
    frames = clip.frames * max(own, 3) * 4
    write_footage(footage, size, codec, fps, mbit, frames, like)
    of = {"offset": 0, "bytes": footage.stat().st_size, "fingerprint": video_fingerprint(str(footage)), "codec": codec}
    of |= {"uri": "footage", "version": "", "container": "", "width": size[0], "height": size[1], "rotation": 0}
    of |= {"fps": fps, "duration": frames / fps, "status": "ok"}
    kinds = ((own, 1.0), (1, 1.0), (3, 1.0), (own, 0.5), (1, clip.frames / frames))
    for number, (stride, used) in enumerate(kinds * 3):
        video = folder / f"{number}.mkv"
        video.symlink_to(footage)
        manifest = pa.Table.from_pylist([of | {"object": str(video), "frames": round(frames * used)}], MANIFEST_SCHEMA)
        job = of_manifest([manifest], str(folder), ClipConfig(clip.frames, stride, tiles=clip.tiles), 1 << 20)
        piece = _shortened(job.sample[0][0].pieces[0])
        where = str(video), 0, footage.stat().st_size
        trials.append(Trial(piece, 1.0, lambda where=where: local_copy(*where)))  # type: ignore[misc]
    return trials


def decode_trials(
    trials: Sequence[Trial], config: DecodeConfig, seconds: float, at_once: int, least: int
) -> list[TimedTrial]:
    """Decode trials, `at_once` at a time, for so many seconds and at least `least` of them.

    On all cores at once, since cores that work alone are faster. Raises PipelineError when none can be decoded.
    """
    waiting, lock = iter(trials), Lock()
    done, reasons = list[TimedTrial](), set[str]()
    end = time.monotonic() + seconds

    def next_trial() -> Trial | None:
        with lock:
            return None if time.monotonic() > end and len(done) >= least else next(waiting, None)

    def work(index_dir: str) -> None:
        with IsolatedDecoder(replace(config, index_dir=index_dir)) as decoder:
            warm = False
            while (trial := next_trial()) is not None:
                try:
                    if not warm:  # the first is slower
                        _decode(decoder, trial)
                        warm = True
                    found = _decode(decoder, trial)
                except VideoError as error:
                    reasons.add(f"{error.reason}: {error.detail}")
                    continue
                with lock:
                    done.append(found)

    with tempfile.TemporaryDirectory(prefix="autogaze-") as folder, ThreadPoolExecutor(at_once) as pool:
        for each in [pool.submit(work, str(Path(folder, str(number)))) for number in range(at_once)]:
            each.result()
    if not done:
        why = "; ".join(sorted(reasons)[:3]) or "the job has no clips"
        raise PipelineError(f"nothing could be decoded to measure it: {why}; give rates= of another machine")
    return done


def _decode(decoder: IsolatedDecoder, trial: Trial) -> TimedTrial:
    clips = [PlannedClip.of_row(row) for row in trial.piece.rows]
    with trial.open() as source:
        before, began, own = decoder.cpu_seconds, time.perf_counter(), time.thread_time()
        found = dict(decoded_clips(decoder, source, clips))
        spent, after = time.thread_time() - own, decoder.cpu_seconds
        # Where the system does not tell what a child has used, the clock has to do.
        spent = time.perf_counter() - began if before is None or after is None else spent + after - before
    good = [frames for frames in found.values() if not isinstance(frames, VideoError)]
    if not good:
        raise next(error for error in found.values() if isinstance(error, VideoError))
    kept = [good[0], good[len(good) // 2]] if len(good) > 1 else good
    return TimedTrial(trial, spent, tuple(frames.copy() for frames in kept))


def fitted_rates(done: Sequence[TimedTrial]) -> DecodeRates:
    """Rates that give the times that were measured, as nearly as a sum of three parts can."""
    work = np.array([[1.0, d.trial.piece.decoded * d.trial.piece.megapixels, d.trial.piece.taken] for d in done])
    seconds = np.array([each.seconds for each in done])
    parts = _least_squares(work / seconds[:, None], np.ones(len(done)))  # relative errors
    expected = np.maximum(work @ parts, 1e-9)
    # What a trial stands for: seconds of the job. So the sum over the job is right, whatever single pieces are.
    weights = expected * [each.trial.weight / each.trial.piece.clips for each in done]
    ratio = seconds / expected
    whole = float(np.average(ratio, weights=weights))
    ratio /= whole
    of = np.array([each.trial.piece.codec for each in done])
    codecs = {
        codec: float(np.average(ratio[of == codec], weights=weights[of == codec]))
        for codec in sorted(set(of.tolist()))
        if (of == codec).sum() >= _ENOUGH
    }
    spread = ratio / [codecs.get(codec, 1.0) for codec in of.tolist()]
    video, megapixel, frame = (parts * whole).tolist()
    return DecodeRates(video, megapixel, frame, codecs, tuple(spread.tolist()))


def _least_squares(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x >= 0 with the least |matrix x - wanted|: the best of the solutions with some of x left out."""
    best, found = np.inf, np.zeros(matrix.shape[1])
    for columns in _subsets(matrix.shape[1]):
        part, *_ = np.linalg.lstsq(matrix[:, columns], wanted, rcond=None)
        error = float(np.square(matrix[:, columns] @ part - wanted).sum())
        if (part >= 0).all() and error < best:
            best, found = error, np.zeros(matrix.shape[1])
            found[columns] = part
    return found


def _subsets(count: int) -> Iterator[list[int]]:
    for size in range(count, 0, -1):
        yield from map(list, itertools.combinations(range(count), size))
