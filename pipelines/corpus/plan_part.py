"""A part of a plan: a row per video, and the clips that a shard of it holds, computed from these rows.

A shard is a run of whole videos while they fit; a video that never would is cut, and begins a shard. So chunk k of a
video (the frames that are decoded together: one clip, or one clip per tile) lies in shard

    first shard + k // c        c = chunks that fit in a shard, at least 1

A part begins with a shard of its own, so that parts know nothing of each other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from autogaze.tiling import TileGrid
from pipelines.corpus.names import clip_suffix
from pipelines.corpus.plan import PLAN_SCHEMA, clip_starts

VIDEO_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),  # manifest uri
        pa.field("name", pa.string(), nullable=False),  # what its clips' names begin with
        pa.field("object", pa.string(), nullable=False),  # URL of the object that holds the video's bytes
        pa.field("offset", pa.int64(), nullable=False),  # where they start in it (tar members), else 0
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("video_frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the whole picture, turned as for display
        pa.field("height", pa.int32(), nullable=False),
        pa.field("stride", pa.int32(), nullable=False),  # frames from one sampled frame to the next
        pa.field("tiles", pa.int32(), nullable=False),  # of the picture, each a clip; 0 = a clip is the whole picture
        pa.field("clips", pa.int64(), nullable=False),  # of the video; 1 for one that the scan could not read
        pa.field("clip", pa.int64(), nullable=False),  # number of its first clip among all of the plan
        pa.field("shard", pa.int64(), nullable=False),  # where that clip lies ...
        pa.field("position", pa.int64(), nullable=False),  # ... and its row there
        pa.field("reason", pa.string()),  # why all its clips have already failed; null = to be done
        pa.field("detail", pa.string()),
    ]
)
_NUMBERS = [field.name for field in VIDEO_SCHEMA if not pa.types.is_string(field.type)]
_TEXTS = [field.name for field in VIDEO_SCHEMA if pa.types.is_string(field.type)]


@dataclass(frozen=True)
class Cut:
    """What turns a row of a plan into clips: clip.frames, clip.per_video and shard.clips of the job."""

    frames: int
    per_video: int
    shard_clips: int


@dataclass(frozen=True)
class Outline:
    """What a plan adds up to, shard by shard; arrays of one number for each shard.

    Attributes:
        clips: planned.
        refused: of these, clips whose video the scan could not read, or the plan does not take.
        begins: videos whose first clip lies there.
        continued: bool, whether it begins within a video.
        remote: whether one of the videos that lie in several shards is not on a local disk.
    """

    clips: np.ndarray
    refused: np.ndarray
    begins: np.ndarray
    continued: np.ndarray
    remote: bool

    @classmethod
    def joined(cls, outlines: list[Outline]) -> Outline:
        """The outlines of parts as one."""

        def joined(name: str, kind: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, kind), *(getattr(each, name) for each in outlines)])

        return cls(
            joined("clips", np.int32),
            joined("refused", np.int32),
            joined("begins", np.int32),
            joined("continued", bool),
            any(each.remote for each in outlines),
        )

    def videos(self, shards: range) -> int:
        """Videos with clips in a run of shards."""
        if not len(shards):
            return 0
        return int(self.begins[shards.start : shards.stop].sum()) + bool(self.continued[shards.start])


class PlanPart:
    """A part in memory. table: its rows, in order (VIDEO_SCHEMA)."""

    def __init__(self, table: pa.Table, cut: Cut) -> None:
        self.table, self.cut = table.combine_chunks(), cut
        self._of: dict[str, np.ndarray] = {name: self.table[name].to_numpy() for name in _NUMBERS}

    @cached_property
    def _chunks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each video: clips of a chunk, its chunks, and how many of them a shard holds."""
        size = np.maximum(self._of["tiles"].astype(np.int64), 1)
        return size, self._of["clips"] // size, np.maximum(self.cut.shard_clips // size, 1)

    def clips_of(self, shard: int) -> pd.DataFrame:
        """The clips of a shard: columns of PLAN_SCHEMA, in order of position, numbered from 0."""
        of, (low, high) = self._of, self._videos_of(shard)
        videos = np.arange(low, high)
        chunk, chunks, fit = (each[low:high] for each in self._chunks)
        first = (shard - of["shard"][low:high]) * fit
        counts = np.minimum(chunks - first, fit) * chunk
        source = np.repeat(videos, counts)
        within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        size = np.repeat(chunk, counts)
        number = np.repeat(first, counts) + within // size
        start = self._starts(videos, counts, source, number)
        tiles = self._tiles(videos, counts, within % size)
        texts = {name: self._texts(name, videos, counts) for name in _TEXTS}
        frames, stride = self.cut.frames, of["stride"][source]
        taken = np.clip(-(-(of["video_frames"][source] - start) // np.maximum(stride, 1)), 0, frames)
        refused = self.table["reason"].is_valid().to_numpy()[source]
        columns: dict[str, Any] = {
            "clip": [
                name + clip_suffix(at, step, tile)
                for name, at, step, tile in zip(texts.pop("name"), start.tolist(), stride.tolist(), tiles, strict=True)
            ],
            "shard": np.full(len(source), shard, np.int32),
            "position": np.arange(len(source), dtype=np.int32),
            "start": start,
            "frames": np.full(len(source), frames, np.int32),
            "padded": np.where(refused, 0, frames - taken).astype(np.int32),
            "tile": tiles,
            **texts,
        }
        columns |= {name: of[name][source] for name in PLAN_SCHEMA.names if name not in columns}
        return pa.table(columns, PLAN_SCHEMA).to_pandas()

    def straddling(self, shard: int) -> set[str]:
        """Videos of a shard (as in column `video`) that other shards hold clips of, too."""
        low, high = self._videos_of(shard)
        _, chunks, fit = self._chunks
        cut = low + np.flatnonzero(chunks[low:high] > fit[low:high])
        return {str(self.table["video"][video].as_py()) for video in cut.tolist()}

    def outline(self) -> Outline:
        """What the part adds up to: of its own shards, from the first."""
        size, chunks, fit = self._chunks
        begin = self._of["shard"] - self._of["shard"][0]
        runs = -(-chunks // fit)  # shards that hold clips of the video
        video = np.repeat(np.arange(len(runs)), runs)
        within = np.arange(len(video)) - np.repeat(np.cumsum(runs) - runs, runs)
        shard = begin[video] + within
        clips = np.minimum(chunks[video] - within * fit[video], fit[video]) * size[video]
        shards = int(shard[-1]) + 1
        refused = self.table["reason"].is_valid().to_numpy()
        continued = np.zeros(shards, bool)
        continued[shard[within > 0]] = True
        return Outline(
            clips=np.bincount(shard, clips, shards).astype(np.int32),
            refused=np.bincount(begin[refused], minlength=shards).astype(np.int32),
            begins=np.bincount(begin, minlength=shards).astype(np.int32),
            continued=continued,
            remote=any("://" in self.table["object"][place].as_py() for place in np.flatnonzero(runs > 1).tolist()),
        )

    def refused(self, shards: range) -> Counter[str]:
        """Clips in a run of shards that have failed before they are made, by reason."""
        inside = (self._of["shard"] >= shards.start) & (self._of["shard"] < shards.stop)
        return Counter(reason for reason in self.table["reason"].filter(pa.array(inside)).to_pylist() if reason)

    def _videos_of(self, shard: int) -> tuple[int, int]:
        """The run of videos that have clips in a shard: the first, and the one after the last."""
        low, high = (int(np.searchsorted(self._of["shard"], shard, side)) for side in ("left", "right"))
        if low == high or self._of["position"][low] > 0:
            low -= 1  # one that began in an earlier shard goes on here, and is not the first that begins in this one
        return low, high

    def _texts(self, column: str, videos: np.ndarray, counts: np.ndarray) -> np.ndarray:
        texts = self.table[column].slice(int(videos[0]), len(videos)).to_pylist()
        repeated: np.ndarray = np.repeat(np.array(texts, object), counts)
        return repeated

    def _starts(self, videos: np.ndarray, counts: np.ndarray, source: np.ndarray, number: np.ndarray) -> np.ndarray:
        """First frame of each clip, int64."""
        frames, stride = self.cut.frames, self._of["stride"].astype(np.int64)
        if not self.cut.per_video:
            found: np.ndarray = number * frames * stride[source]
            return found
        ends = np.cumsum(counts).tolist()
        found = np.zeros(len(source), np.int64)
        reasons = self.table["reason"].is_valid().to_numpy()
        for video, begin, end in zip(videos.tolist(), [0, *ends[:-1]], ends, strict=True):
            if not reasons[video]:
                starts = clip_starts(
                    int(self._of["video_frames"][video]), frames, int(stride[video]), self.cut.per_video
                )
                found[begin:end] = starts[number[begin:end]]
        return found

    def _tiles(self, videos: np.ndarray, counts: np.ndarray, within: np.ndarray) -> list[str]:
        """The tile of each clip: '' for the whole picture."""
        tiles: list[str] = []
        for video, count in zip(videos.tolist(), counts.tolist(), strict=True):
            if not self._of["tiles"][video]:
                tiles += [""] * count
                continue
            grid = TileGrid(int(self._of["height"][video]), int(self._of["width"][video]))
            at = len(tiles)
            tiles += [grid.name(number) for number in within[at : at + count].tolist()]
        return tiles
