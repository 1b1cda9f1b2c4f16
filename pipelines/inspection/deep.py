"""Decode some clips of a dataset a second, independent way, and compare: what finds frames that are wrong in silence.

A dataset whose frames are all black, or of another moment, is whole and sound by every hash. So a sample of each video
is decoded again in another process, by counting frames from the first one (pipelines.video.sequential) or by another
library, and held against the frames that are stored.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from pipelines.corpus.clips import PlannedClip, decode_planned, require_unchanged
from pipelines.corpus.videos import local_copy
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames, encode_frames
from pipelines.dataset.members import split_members
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder

Second: TypeAlias = Literal["sequential", "decord", "torchcodec"]

# Mean difference of 255 that a frame may have. The same frame by the same scaler differs by less than 1 (JPEG
# libraries of two versions), by another library's scaler by less than 8; black or another scene by 20 and more.
_SAME_SCALER, _OTHER_SCALER = 2.0, 8.0
_TIMEOUT_S = 6 * 3600.0  # a clip at the end of a film is reached by decoding the film


@dataclass
class DeepVerdict:
    """What was compared, and what is wrong."""

    videos: int = 0
    clips: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # videos that were not compared, by reason
    problems: list[str] = field(default_factory=list)


def verify_deep(
    url: str, second: Second = "sequential", threads: int = 4, on_video: Callable[[int, int], None] | None = None
) -> DeepVerdict:
    """Compare up to two clips of each video, its last one and one that its name draws, with a second decode.

    Where frames are not stored, the dataset's own decoder decodes them again.

    Args:
        second: how they are decoded.
        threads: videos at a time, each in a process of its own.
        on_video: called with the number of videos compared, and of all.
    Raises PipelineError when there is no dataset, or the second decoder is not installed.
    """
    dataset = shards.open_dataset(url)
    sampled = _sample(dataset)
    verdict = DeepVerdict()
    parts = [sampled[worker::threads] for worker in range(min(threads, len(sampled)))]
    with ThreadPoolExecutor(max(len(parts), 1)) as pool:
        for part in pool.map(lambda videos: list(_compare(dataset, videos, second)), parts):
            for compared, reason, problems in part:
                verdict.problems += problems
                if reason:
                    verdict.skipped[reason] += 1
                else:
                    verdict.videos += 1
                    verdict.clips += compared
                if on_video is not None:
                    on_video(verdict.videos + verdict.skipped.total(), len(sampled))
    verdict.problems.sort()
    return verdict


def _sample(dataset: Dataset) -> list[list[dict[str, Any]]]:
    """For each video the rows (of plan and index together) of the clips to compare, in the order of their start."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for shard in dataset.committed():
        planned = dataset.plan.clips_of(shard)
        index = dataset.read_index(shard).to_pandas()
        for place in np.flatnonzero(index["outcome"] == "ok").tolist():
            row = planned.iloc[place].to_dict()
            row |= {"tar_offset": int(index["offset"].iloc[place]), "tar_size": int(index["size"].iloc[place])}
            row["draw"] = hashlib.sha256(str(row["clip"]).encode()).hexdigest()
            kept = chosen.setdefault(str(row["video"]), {})
            if "last" not in kept or row["start"] > kept["last"]["start"]:
                kept["last"] = row
            if "drawn" not in kept or row["draw"] < kept["drawn"]["draw"]:
                kept["drawn"] = row
    found = []
    for kept in chosen.values():
        rows = {str(row["clip"]): row for row in kept.values()}
        found.append(sorted(rows.values(), key=lambda row: int(row["start"])))
    return found


def _compare(
    dataset: Dataset, videos: list[list[dict[str, Any]]], second: Second
) -> Iterator[tuple[int, str, list[str]]]:
    """For each video how many clips were compared, or why none could be, and what is wrong."""
    size = dataset.vocabulary.frame_size
    own = str(dataset.config.get("decoder", "pyav"))
    with ExitStack() as stack:
        decoder = stack.enter_context(IsolatedDecoder(DecodeConfig(decoder=second, size=size, timeout_s=_TIMEOUT_S)))
        again = stack.enter_context(IsolatedDecoder(DecodeConfig(decoder=own, size=size)))
        limit = _SAME_SCALER if (own, second) == ("pyav", "sequential") else _OTHER_SCALER
        for rows in videos:
            try:
                yield len(rows), "", _compare_video(dataset, rows, decoder, again, limit)
            except VideoError as error:
                yield 0, error.reason, []
            except FileNotFoundError:
                yield 0, "missing", []
            except ImportError as error:
                raise PipelineError(f"second={second}: {error}") from error


def _compare_video(
    dataset: Dataset, rows: list[dict[str, Any]], decoder: IsolatedDecoder, again: IsolatedDecoder, limit: float
) -> list[str]:
    first = rows[0]
    problems = []
    place = str(first["object"]), int(first["offset"]), int(first["bytes"])
    with local_copy(*place, str(first["fingerprint"])) as source:
        require_unchanged(source, str(first["fingerprint"]))
        size = dataset.vocabulary.frame_size
        for row in rows:  # one at a time: clips may have tiles of their own
            clip = [PlannedClip.of_row(row)]
            expected = np.zeros((1, int(row["frames"]), size, size, 3), np.uint8)
            failed = decode_planned(decoder, source, clip, expected)
            where = f"shard {int(row['shard'])}: {row['clip']}"
            if failed:
                problems.append(f"{where}: its frames are stored, but a second decode fails: {failed[0]}")
                continue
            stored = _stored(dataset, row)
            if stored is None:
                stored = np.zeros_like(expected[0])
                if failed := decode_planned(again, source, clip, stored[None]):
                    problems.append(f"{where}: it has a gaze, but cannot be decoded again: {failed[0]}")
                    continue
            problems += [f"{where}: {what}" for what in _differences(dataset, stored, expected[0], limit)]
    return problems


def _stored(dataset: Dataset, row: dict[str, Any]) -> np.ndarray | None:
    data = store.read(shards.tar_url(dataset.url, int(row["shard"])), row["tar_offset"], row["tar_size"])
    return decode_frames(split_members(data, str(row["clip"])))


def _differences(dataset: Dataset, stored: np.ndarray, expected: np.ndarray, limit: float) -> list[str]:
    if stored.shape != expected.shape:
        return [f"frames are {list(stored.shape)}, a second decode gives {list(expected.shape)}"]
    if dataset.config.get("frames") == "jpeg":
        members = encode_frames(expected, "jpeg", int(dataset.config.get("jpeg_quality", 90)))
        lossy = decode_frames(dict(members))
        assert lossy is not None
        expected = lossy
    elif limit == _SAME_SCALER:
        limit = 0.0  # nothing was lost in between
    off = np.abs(stored.astype(np.int16) - expected).mean(axis=(1, 2, 3))
    wrong = np.flatnonzero(off > limit)
    if not len(wrong):
        return []
    first = int(wrong[0])
    return [
        f"{len(wrong)} of {len(stored)} frames are not those of its video: frame {first} of the clip differs by"
        f" {off[first]:.1f} of 255 from a second decode; make it again, and report the video as a bug"
    ]
