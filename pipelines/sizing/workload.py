"""What a job has to do: how many clips in how many shards, and some of the shards in detail.

The shards are those that the job would plan: a manifest goes through the planner itself (pipelines.corpus.planning). A
corpus that is only described is planned as a manifest of so many equal videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.corpus.manifest import MANIFEST_SCHEMA, in_parts
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.plan_part import PlanPart
from pipelines.corpus.planning import PART_VIDEOS, Planner

KEYFRAME_S = 2.0
"""Seconds between keyframes, as videos of the web have them; a manifest does not say. Clips that lie apart cost half of
them to reach."""

_PARTS = 16  # of a plan whose shards may be looked at in detail
_CLIPS, _SHARDS = 30_000, 128  # that are, at most
_ALIKE = 512  # equal videos that stand for all of them


@dataclass(frozen=True)
class Piece:
    """The clips of one video that lie in one shard.

    Attributes:
        video: a number that the pieces of a video share.
        codec: of the video.
        rows: of the plan: by columns of PLAN_SCHEMA.
        taken: frames that the clips take, and `decoded` that must be decoded for them.
        megapixels: of a frame, in millions of pixels.
        fetched: bytes of the video, if it has to be fetched; else 0.
    """

    video: int
    codec: str
    rows: Sequence[Mapping[str, Any]]
    taken: int
    decoded: int
    megapixels: float
    fetched: int

    @property
    def clips(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Shard:
    """A shard in detail. refused: clips whose video could not be read by the scan; they cost nothing."""

    pieces: tuple[Piece, ...]
    refused: int

    @property
    def clips(self) -> int:
        """Clips that are made."""
        return sum(piece.clips for piece in self.pieces)


@dataclass(frozen=True)
class Workload:
    """A job.

    Attributes:
        videos, shards: planned. `clips` are to be made, `refused` are known to fail.
        bytes: of the videos, and `seconds` that they play.
        frames: of a clip.
        sample: runs of neighbouring shards, spread over the job, or all of it.
    """

    videos: int
    clips: int
    refused: int
    shards: int
    bytes: float
    seconds: float
    frames: int
    sample: tuple[tuple[Shard, ...], ...]

    @property
    def whole(self) -> bool:
        """Whether the sample is all of the job."""
        return sum(map(len, self.sample)) == self.shards

    def times(self, count: float) -> Workload:
        """The job so many times over, of other videos that are like these."""
        if count == 1:
            return self
        of = {name: round(getattr(self, name) * count) for name in ("videos", "clips", "refused", "shards")}
        return Workload(
            **of, bytes=self.bytes * count, seconds=self.seconds * count, frames=self.frames, sample=self.sample
        )


def of_manifest(tables: Iterable[pa.Table], root: str, clip: ClipConfig, shard_clips: int) -> Workload:
    """The job of a manifest. tables: its rows in order. root: what names of videos are relative to.

    Raises PipelineError for clips or shards that cannot be.
    """
    planner, kept, step = Planner(root, clip, shard_clips), list[tuple[pa.Table, PlanPart]](), 1
    videos = clips = refused = shards = 0
    size = seconds = 0.0
    for number, rows in enumerate(in_parts(tables, PART_VIDEOS)):
        part = planner.part(rows)
        outline = part.outline()
        videos, shards = videos + len(rows), shards + len(outline.clips)
        refused += int(outline.refused.sum())
        clips += int(outline.clips.sum())
        size += float(rows["bytes"].to_numpy().sum())
        seconds += float(rows["duration"].to_numpy().sum())
        if number % step == 0:
            kept.append((rows, part))
            if len(kept) == _PARTS:
                kept, step = kept[::2], step * 2
    return Workload(
        videos, clips - refused, refused, shards, size, seconds, clip.frames, tuple(_sampled(kept, clips, shards))
    )


def of_alike(
    hours: float,
    minutes: float,
    size: tuple[int, int],
    codec: str,
    fps: float,
    mbit: float,
    clip: ClipConfig,
    shard_clips: int,
) -> Workload:
    """The job of equal videos in a store, of `minutes` each. size: width, height. mbit: millions of bits a second."""
    count = max(1, round(hours * 60 / minutes))
    few = min(count, _ALIKE)
    names = [f"s3://corpus/{number:06d}.mp4" for number in range(few)]
    facts = {"offset": 0, "bytes": round(minutes * 60 * mbit * 1e6 / 8), "container": "mov", "codec": codec}
    facts |= {"width": size[0], "height": size[1], "rotation": 0, "fps": fps, "frames": round(minutes * 60 * fps)}
    facts |= {"duration": minutes * 60, "status": "ok", "version": ""}
    columns: dict[str, list[Any]] = {name: [facts.get(name)] * few for name in MANIFEST_SCHEMA.names}
    columns |= {"uri": names, "object": names, "fingerprint": [f"{number:032x}" for number in range(few)]}
    manifest = pa.table([columns[name] for name in MANIFEST_SCHEMA.names], MANIFEST_SCHEMA)
    return of_manifest([manifest], "s3://corpus", clip, shard_clips).times(count / few)


def _sampled(parts: Sequence[tuple[pa.Table, PlanPart]], clips: int, shards: int) -> Iterator[tuple[Shard, ...]]:
    """Runs of shards of some parts, of about `_CLIPS` clips together; all of the shards if there are no more."""
    each = max(1, clips // max(shards, 1))
    budget = max(4, min(_CLIPS // each, _SHARDS) // max(len(parts), 1))  # shards of a part
    ids: dict[tuple[int, str], int] = {}
    for number, (manifest, part) in enumerate(parts):
        first, count = int(part.table["shard"][0].as_py()), len(part.outline().clips)
        codecs = dict(zip(manifest["uri"].to_pylist(), manifest["codec"].to_pylist(), strict=True))
        for run in _runs(count, budget):
            found = []
            for shard in run:
                rows = part.clips_of(first + shard).to_dict("records")
                good = [row for row in rows if not isinstance(row["reason"], str)]
                pieces = [
                    _piece(ids.setdefault((number, uri), len(ids)), codecs[uri], list(piece))
                    for uri, piece in groupby(good, key=lambda row: str(row["video"]))
                ]
                found.append(Shard(tuple(pieces), len(rows) - len(good)))
            yield tuple(found)


def _runs(count: int, budget: int) -> Iterator[range]:
    """Runs of neighbouring numbers below `count`, spread evenly, of `budget` together; all if there are no more."""
    if count <= budget:
        yield range(count)
        return
    runs = min(4, budget // 2)
    length = budget // runs
    for number in range(runs):
        begin = (count - length) * number // max(runs - 1, 1)
        yield range(begin, begin + length)


def _piece(video: int, codec: str, rows: Sequence[Mapping[str, Any]]) -> Piece:
    first = rows[0]
    taken, decoded = frames_of(rows)
    remote = "://" in str(first["object"])
    megapixels = int(first["width"]) * int(first["height"]) / 1e6
    return Piece(video, codec, rows, taken, decoded, megapixels, int(first["bytes"]) if remote else 0)


def frames_of(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many frames the clips of one video take (those of tiles once), and how many must be decoded for that."""
    starts = np.array(list(dict.fromkeys(int(row["start"]) for row in rows)))
    frames, stride, last = (int(rows[0][name]) for name in ("frames", "stride", "video_frames"))
    numbers = np.minimum(starts[:, None] + np.arange(frames) * stride, max(last - 1, 0))
    apart = np.diff(np.unique(numbers), prepend=-1)
    between = max(KEYFRAME_S * float(rows[0]["fps"]), 1.0)
    reached = np.where(apart > between, between / 2 + 1, apart)  # read on, or seek to a keyframe and read on from there
    return numbers.size, int(reached.sum())
