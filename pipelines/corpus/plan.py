"""manifest + config -> plan: one row per clip of a job, each already given its output shard and its place in it.

A pure function: the same manifest and config give the same plan on any machine, so a shard can be made by any worker,
twice, or after a crash, and come out the same. A video that could not be opened by the scan has one row too, already
failed, so that every video has an outcome.

With clip.tiles=native each chunk of frames gives one clip per tile of the picture. All tiles of a chunk lie in one
shard, one after another, so that a frame is decoded once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autogaze.tiling import TileGrid
from pipelines.errors import PipelineError
from pipelines.schema import check, setting
from pipelines.storage import store, tables

PLAN_SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),  # unique, readable, stable: names the clip everywhere
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # row number inside the shard
        pa.field("video", pa.string(), nullable=False),  # manifest uri
        pa.field("object", pa.string(), nullable=False),  # URL of the object that holds the video's bytes
        pa.field("offset", pa.int64(), nullable=False),  # where they start in it (tar members), else 0
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # first frame number in the video
        pa.field("stride", pa.int32(), nullable=False),  # frames from one sampled frame to the next
        pa.field("frames", pa.int32(), nullable=False),  # frames of the clip, repeated ones included
        pa.field("padded", pa.int32(), nullable=False),  # how many of them repeat the video's last frame
        pa.field("video_frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the whole picture, turned as for display
        pa.field("height", pa.int32(), nullable=False),
        pa.field("tile", pa.string(), nullable=False),  # "" = the whole picture; else a name of TileGrid(height, width)
        pa.field("reason", pa.string()),  # why this row has already failed; null = to be done
        pa.field("detail", pa.string()),
    ]
)

ROW_LIMIT = 2 << 30  # a shard's frames are one Arrow array, which addresses its bytes with 31 bits
_GROUP_ROWS = 16384
_LONGEST_STRIDE = 2**31 - 1
_SLUG, _HASH = 40, 16  # letters of a video's file name in its name here, and hexadecimal digits of the hash


@dataclass
class ClipConfig:
    """How videos are cut into clips."""

    frames: int = setting(16, "frames per clip", at_least=1)
    stride: int = setting(1, "take every stride-th frame of the video", at_least=1, at_most=_LONGEST_STRIDE)
    fps: float = setting(0.0, "sample at this rate instead of stride (0 = use stride)", at_least=0)
    per_video: int = setting(0, "clips per video, evenly spread (0 = the whole video)", at_least=0)
    min_frames: int = setting(1, "videos with fewer frames fail as too_short", at_least=1)
    tiles: Literal["whole", "native"] = setting(
        "whole", "whole: the picture squashed to 224x224; native: a clip for each 224x224 tile of it"
    )


def check_clip_config(clip: ClipConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(clip, "clip.")
    if clip.fps and clip.stride != 1:
        raise PipelineError("clip.fps and clip.stride both set: give one of them")


def clip_bytes(frames: int) -> int:
    """Bytes of one clip's decoded frames."""
    return frames * TileGrid.size**2 * 3


def video_name(uri: str, root: str, fingerprint: str) -> str:
    """A readable, stable name of a video: its file name made safe, and a hash of its path in the store and its bytes.

    The path is relative to `root`, so that moving a store from disk to S3 keeps every clip's name. The bytes tell apart
    two videos of one name in two stores, whose datasets may be trained on together. 64 bits of hash: among ten million
    videos that share a file name, two have the same name with a probability of 3 in a million.

    fingerprint: of the video's bytes (`video_fingerprint`); "" where they could not be read.
    """
    below = uri.startswith((f"{root.rstrip('/')}/", f"{root}#"))
    relative = uri[len(root) :].removeprefix("/") if below else uri.rsplit("/", 1)[-1] if uri == root else uri
    stem = re.split(r"[/#]", relative)[-1]
    stem = stem.rsplit(".", 1)[0] or stem
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:_SLUG] or "video"
    hashed = relative.encode("utf-8", "surrogateescape") + b"\0" + fingerprint.encode()
    return f"{slug}-{hashlib.sha256(hashed).hexdigest()[:_HASH]}"


def video_names(manifest: pd.DataFrame, root: str) -> list[str]:
    """The name of each video of a manifest (`video_name`), all different.

    Where two would have one name, the first by its row keeps it, and the others get a number: `...-2`, `...-3`.
    """
    names: list[str] = []
    seen: Counter[str] = Counter()
    for uri, fingerprint in zip(manifest["uri"], manifest["fingerprint"], strict=True):
        name = video_name(uri, root, fingerprint)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def video_of_clip(clip: str, start: int, stride: int, tile: str) -> str:
    """The name of the video (`video_name`) that a clip is cut from, given the rest of the clip's name."""
    return clip.removesuffix(_clip_suffix(start, stride, tile))


def _clip_suffix(start: int, stride: int, tile: str) -> str:
    """What a clip's name adds to its video's."""
    return f"-{start:06d}" + (f"-s{stride}" if stride != 1 else "") + (f"-{tile}" if tile else "")


def clip_starts(frames: int, clip_frames: int, stride: int, per_video: int) -> np.ndarray:
    """First frame numbers [clips] int64 of a video's clips, ascending.

    per_video=0: consecutive clips that cover every sampled frame; the last one may run past the end.
    per_video=N: up to N distinct starts spread evenly over the starts at which a whole clip fits.
    """
    span = clip_frames * stride
    if per_video == 0:
        return np.arange(0, max(frames, 1), span, dtype=np.int64)
    last = max(frames - (span - stride + 1), 0)
    return np.unique(np.linspace(0, last, min(per_video, last + 1)).round().astype(np.int64))


def frame_numbers(start: int, stride: int, frames: int, video_frames: int) -> np.ndarray:
    """Frame numbers [frames] int64 of a clip; past the end the last frame repeats."""
    return np.minimum(start + np.arange(frames, dtype=np.int64) * stride, max(video_frames - 1, 0))


def make_plan(manifest: pd.DataFrame, root: str, clip: ClipConfig, shard_clips: int) -> pd.DataFrame:
    """The plan of a job: rows in order of shard and position, columns of SCHEMA.

    Args:
        manifest: one row per video (pipelines.corpus.manifest.MANIFEST_SCHEMA), any order.
        root: URL of the store, which clip names are relative to.
    Raises:
        PipelineError: a value out of range.
    """
    check_clip_config(clip)
    if shard_clips < 1:
        raise PipelineError(f"shard.clips={shard_clips}: must be at least 1")
    manifest = manifest.sort_values("uri", kind="stable", ignore_index=True)
    turned = manifest["rotation"].to_numpy() % 180 == 90
    coded = manifest[["width", "height"]].to_numpy(np.int32)
    widths, heights = np.where(turned[:, None], coded[:, ::-1], coded).T.tolist()
    per_video: list[np.ndarray] = []
    grids: list[TileGrid | None] = []
    strides = np.ones(len(manifest), dtype=np.int64)
    reasons: list[tuple[str | None, str | None]] = []
    for row, video in enumerate(manifest.itertuples(index=False)):
        reason, detail = (None, None) if video.status == "ok" else (str(video.reason), str(video.detail))
        if reason is None and video.frames < clip.min_frames:
            reason, detail = "too_short", f"{video.frames} frames, clip.min_frames is {clip.min_frames}"
        grid = TileGrid(heights[row], widths[row]) if clip.tiles == "native" and reason is None else None
        if grid is not None and grid.count * clip_bytes(clip.frames) >= ROW_LIMIT:
            reason, detail = "too_large", f"{grid.count} tiles of {clip.frames} frames; fewer clip.frames would fit"
            grid = None
        grids.append(grid)
        if clip.fps:
            # Untrusted bytes say what a video's rate is.
            strides[row] = max(1, round(min(video.fps / clip.fps, _LONGEST_STRIDE))) if video.fps > 0 else 1
        else:
            strides[row] = clip.stride
        starts = clip_starts(int(video.frames), clip.frames, int(strides[row]), clip.per_video)
        per_video.append(starts if reason is None else np.zeros(1, dtype=np.int64))
        reasons.append((reason, detail))
    # Chunks: the frames that are decoded together. One chunk is one clip, or one clip per tile.
    source = np.repeat(np.arange(len(manifest)), [len(starts) for starts in per_video])
    start = np.concatenate(per_video) if per_video else np.zeros(0, dtype=np.int64)
    tiles = np.array([1 if grid is None else grid.count for grid in grids], dtype=np.int64)[source]
    shard = np.repeat(_pack(tiles, shard_clips), tiles)
    number = np.arange(len(shard))
    position = number - np.searchsorted(shard, shard)
    tile = number - np.repeat(np.cumsum(tiles) - tiles, tiles)
    source, start = np.repeat(source, tiles), np.repeat(start, tiles)
    names = ["" if (grid := grids[i]) is None else grid.name(n) for i, n in zip(source, tile.tolist(), strict=True)]
    stride = strides[source]
    video_frames = manifest["frames"].to_numpy(np.int64)[source]
    taken = np.clip(-(-(video_frames - start) // np.maximum(stride, 1)), 0, clip.frames)
    keys = video_names(manifest, root)
    reason_column = pd.Series([reasons[i][0] for i in source], dtype=object)
    plan = pd.DataFrame(
        {
            "clip": [
                keys[i] + _clip_suffix(first, step, tile_name)
                for i, first, step, tile_name in zip(source, start, stride, names, strict=True)
            ],
            "shard": shard.astype(np.int32),
            "position": position.astype(np.int32),
            "video": manifest["uri"].to_numpy(object)[source],
            "object": manifest["object"].to_numpy(object)[source],
            "offset": manifest["offset"].to_numpy(np.int64)[source],
            "bytes": manifest["bytes"].to_numpy(np.int64)[source],
            "fingerprint": manifest["fingerprint"].to_numpy(object)[source],
            "start": start,
            "stride": stride.astype(np.int32),
            "frames": np.full(len(start), clip.frames, dtype=np.int32),
            "padded": np.where(reason_column.isna(), clip.frames - taken, 0).astype(np.int32),
            "video_frames": video_frames,
            "fps": manifest["fps"].to_numpy(np.float64)[source],
            "width": np.array(widths, dtype=np.int32)[source],
            "height": np.array(heights, dtype=np.int32)[source],
            "tile": names,
            "reason": reason_column,
            "detail": pd.Series([reasons[i][1] for i in source], dtype=object),
        }
    )
    return plan


def _pack(sizes: np.ndarray, room: int) -> np.ndarray:
    """Shard of each chunk, int64 [chunks]: whole chunks while they fit; one that never would has a shard of its own."""
    shards, shard, filled = [], 0, 0
    for size in sizes.tolist():
        if filled and filled + size > room:
            shard, filled = shard + 1, 0
        filled += size
        shards.append(shard)
    return np.array(shards, dtype=np.int64)


def plan_bytes(plan: pd.DataFrame) -> bytes:
    """The plan as parquet, in row groups of whole shards, for PlanReader."""
    last_of_shard = np.flatnonzero(np.diff(plan["shard"].to_numpy(), append=-1)) + 1
    starts = [0]
    for end in last_of_shard[:-1]:
        if end - starts[-1] >= _GROUP_ROWS:
            starts.append(int(end))
    return tables.to_bytes(plan, PLAN_SCHEMA, starts)


class PlanReader:
    """One shard's rows of a plan at a time, for a worker: it reads the row group that holds them, and keeps the last.

    A row group holds many shards, since each costs kilobytes of metadata, and not all, since a plan may have millions
    of rows.
    """

    def __init__(self, url: str) -> None:
        self._url, self._file = url, pq.ParquetFile(store.open_read(url))
        groups, shard = range(self._file.num_row_groups), PLAN_SCHEMA.get_field_index("shard")
        statistics = [self._file.metadata.row_group(group).column(shard).statistics for group in groups]
        self._last_shards = [int(of_shard.max) for of_shard in statistics]
        self._group, self._rows = -1, pd.DataFrame()

    def shard(self, number: int) -> pd.DataFrame:
        """Rows of a shard, in order of position, numbered from 0. Raises StoreError."""
        rows = self._group_of(number)
        return rows[rows["shard"] == number].reset_index(drop=True)

    def straddling(self, number: int) -> set[str]:
        """Videos of a shard (as in column `video`) that other shards hold clips of, too. Raises StoreError.

        At most its first and its last, since a plan goes video by video. Where a row group ends, so may what this
        reader sees of a video: it is then counted in.
        """
        rows = self._group_of(number)
        videos, places = rows["video"].to_numpy(), np.flatnonzero(rows["shard"] == number)
        found = set()
        for end, beyond, outermost in (
            (places[0], places[0] - 1, self._group == 0),
            (places[-1], places[-1] + 1, self._group == len(self._last_shards) - 1),
        ):
            seen = 0 <= beyond < len(videos)
            if (seen and videos[beyond] == videos[end]) or not (seen or outermost):
                found.add(str(videos[end]))
        return found

    def _group_of(self, number: int) -> pd.DataFrame:
        group = int(np.searchsorted(self._last_shards, number))
        if group != self._group:
            self._rows = store.retrying(lambda: self._file.read_row_group(group).to_pandas(), self._url)
            self._group = group
        return self._rows
