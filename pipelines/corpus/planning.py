"""manifest + config -> plan, part by part: each video's clips, and where the first of them lies.

What is kept from one part to the next are four numbers, and eight bytes of each video's name.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from autogaze.tiling import TileGrid
from pipelines.corpus.names import VideoNames
from pipelines.corpus.plan import CHUNK_LIMIT, LONGEST_STRIDE, ClipConfig, check_clip_config, clip_bytes, clip_starts
from pipelines.corpus.plan_part import VIDEO_SCHEMA, Cut, PlanPart
from pipelines.corpus.plan_reader import VideoPlan
from pipelines.errors import PipelineError

PART_VIDEOS = 16384
"""Videos of a part: two megabytes of memory for whoever needs one of its shards."""
_EXACT = 2.0**50  # up to here clip_starts' evenly spread numbers are all different, whatever rounding does to them


class Planner:
    """Plans the videos of a job, part by part.

    Args:
        root: URL of the store, which clip names are relative to.
        clip, shard_clips: how videos are cut, and how many clips a shard holds.
        after: the plan that this one goes on from, with shards and clips after its last.
    Raises PipelineError for a value out of range.
    """

    def __init__(self, root: str, clip: ClipConfig, shard_clips: int, after: VideoPlan | None = None) -> None:
        check_clip_config(clip)
        if shard_clips < 1:
            raise PipelineError(f"shard.clips={shard_clips}: must be at least 1")
        self.cut = Cut(clip.frames, clip.per_video, shard_clips)
        self._clip, self._names = clip, VideoNames(root)
        self._clips = self._shards = 0
        if after is not None:
            self._clips, self._shards = after.clips, after.shards
            self._names.know(after.names())

    def part(self, manifest: pa.Table) -> PlanPart:
        """The next part: of these rows of the manifest, in their order."""
        facts = manifest.select(["offset", "bytes", "rotation", "fps", "frames", "width", "height"])
        of = {name: facts[name].to_numpy() for name in facts.column_names}
        turned = of["rotation"] % 180 == 90
        width, height = np.where(turned, of["height"], of["width"]), np.where(turned, of["width"], of["height"])
        reasons = self._reasons(manifest, of["frames"])
        tiles = self._tiles(height, width, reasons)
        refused = np.array([reason is not None for reason, _ in reasons], bool)
        stride = self._strides(of["fps"])
        clips = np.where(refused, 1, self._counts(of["frames"], stride) * np.maximum(tiles, 1))
        shard, position = self._pack(clips, np.maximum(tiles, 1))
        columns = {
            "video": manifest["uri"],
            "name": self._names.of(manifest["uri"].to_pylist(), manifest["fingerprint"].to_pylist()),
            **{name: manifest[name] for name in ("object", "offset", "bytes", "fingerprint", "fps")},
            "video_frames": of["frames"],
            "width": width,
            "height": height,
            "stride": stride,
            "tiles": tiles,
            "clips": clips,
            "clip": self._clips + np.cumsum(clips) - clips,
            "shard": shard,
            "position": position,
            "reason": pa.array([reason for reason, _ in reasons], pa.string()),
            "detail": pa.array([detail for _, detail in reasons], pa.string()),
        }
        self._clips += int(clips.sum())
        table = pa.table([columns[name] for name in VIDEO_SCHEMA.names], names=VIDEO_SCHEMA.names).cast(VIDEO_SCHEMA)
        return PlanPart(table, self.cut)

    def _reasons(self, manifest: pa.Table, frames: np.ndarray) -> list[tuple[str | None, str | None]]:
        """Why each video has already failed, and a detail; None and None for one that is to be done."""
        least = self._clip.min_frames
        found: list[tuple[str | None, str | None]] = []
        columns = (manifest[name].to_pylist() for name in ("status", "reason", "detail"))
        for status, reason, detail, count in zip(*columns, frames.tolist(), strict=True):
            if status != "ok":
                found.append((str(reason), str(detail)))
            elif count < least:
                found.append(("too_short", f"{count} frames, clip.min_frames is {least}"))
            else:
                found.append((None, None))
        return found

    def _tiles(self, height: np.ndarray, width: np.ndarray, reasons: list[tuple[str | None, str | None]]) -> np.ndarray:
        """Tiles of each picture, 0 where it is taken whole. A picture of too many is given its reason."""
        tiles = np.zeros(len(height), np.int64)
        if self._clip.tiles == "whole":
            return tiles
        for row, (reason, _) in enumerate(reasons):
            if reason is not None:
                continue
            count = TileGrid(int(height[row]), int(width[row])).count
            if count * clip_bytes(self._clip.frames) >= CHUNK_LIMIT:
                what = f"{count} tiles of {self._clip.frames} frames; fewer clip.frames would fit"
                reasons[row] = "too_large", what
            else:
                tiles[row] = count
        return tiles

    def _strides(self, fps: np.ndarray) -> np.ndarray:
        if not self._clip.fps:
            return np.full(len(fps), self._clip.stride, np.int64)
        with np.errstate(over="ignore"):  # untrusted bytes say what a video's rate is
            wanted = np.rint(np.minimum(fps / self._clip.fps, LONGEST_STRIDE))
        strides: np.ndarray = np.where(fps > 0, np.maximum(wanted, 1), 1).astype(np.int64)
        return strides

    def _counts(self, frames: np.ndarray, stride: np.ndarray) -> np.ndarray:
        """How many starts `clip_starts` gives for each video."""
        span, most = self.cut.frames * stride, self.cut.per_video
        counts: np.ndarray = -(-np.maximum(frames, 1) // span)
        if not most:
            return counts
        last = np.maximum(frames - (span - stride + 1), 0)
        counts = np.minimum(last + 1, most)
        for row in np.flatnonzero(last.astype(np.float64) * counts >= _EXACT).tolist():
            counts[row] = len(clip_starts(int(frames[row]), self.cut.frames, int(stride[row]), most))
        return counts

    def _pack(self, clips: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and position of each video's first clip: see pipelines.corpus.plan_part. sizes: clips of a chunk."""
        room, shard, filled = self.cut.shard_clips, self._shards, 0
        shards, positions = [], []
        for count, size in zip(clips.tolist(), sizes.tolist(), strict=True):
            if filled and filled + count > room:
                shard, filled = shard + 1, 0
            shards.append(shard)
            positions.append(filled)
            if filled + count <= room:
                filled += count
            else:
                full, rest = divmod(count // size - 1, max(1, room // size))
                shard, filled = shard + full, (rest + 1) * size
        self._shards = shard + 1
        return np.array(shards, np.int64), np.array(positions, np.int64)
