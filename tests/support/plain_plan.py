"""The plan written out row by row: the oracle of the plan that is computed, and the plan of datasets of format 2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from autogaze.tiling import TileGrid
from pipelines.corpus.names import clip_suffix, video_name
from pipelines.corpus.plan import (
    CHUNK_LIMIT,
    LONGEST_STRIDE,
    PLAN_SCHEMA,
    ClipConfig,
    check_clip_config,
    clip_bytes,
    clip_starts,
)
from pipelines.storage import tables

_GROUP_ROWS = 16384


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


def make_plan(
    manifest: pd.DataFrame, root: str, clip: ClipConfig, shard_clips: int, part_videos: int = 1 << 60
) -> pd.DataFrame:
    """All clips of a job: rows in order of shard and position, columns of PLAN_SCHEMA.

    Args:
        manifest: one row per video (pipelines.corpus.manifest.MANIFEST_SCHEMA), any order.
        root: URL of the store, which clip names are relative to.
        part_videos: videos of a part of the plan, each of which begins with a shard.
    """
    check_clip_config(clip)
    manifest = manifest.sort_values(["object", "uri"], kind="stable", ignore_index=True)
    rows = []
    shard, filled = 0, 0
    for number, (video, name) in enumerate(zip(manifest.to_dict("records"), video_names(manifest, root), strict=True)):
        chunks = list(_chunks(video, name, clip))
        total = sum(len(chunk) for chunk in chunks)
        if filled and (filled + total > shard_clips or number % part_videos == 0):
            shard, filled = shard + 1, 0
        for chunk in chunks:
            if filled and filled + len(chunk) > shard_clips:
                shard, filled = shard + 1, 0
            for row in chunk:
                rows.append(row | {"shard": shard, "position": filled})
                filled += 1
    return tables.as_table(pd.DataFrame(rows, columns=PLAN_SCHEMA.names), PLAN_SCHEMA).to_pandas()


def _chunks(video: dict, name: str, clip: ClipConfig) -> Iterator[list[dict]]:
    """The clips of a video, those that are decoded together in one list."""
    turned = video["rotation"] % 180 == 90
    width, height = (video["height"], video["width"]) if turned else (video["width"], video["height"])
    reason, detail = (None, None) if video["status"] == "ok" else (str(video["reason"]), str(video["detail"]))
    if reason is None and video["frames"] < clip.min_frames:
        reason, detail = "too_short", f"{video['frames']} frames, clip.min_frames is {clip.min_frames}"
    names = [""]
    if clip.tiles == "native" and reason is None:
        grid = TileGrid(height, width)
        names = [grid.name(tile) for tile in range(grid.count)]
        if grid.count * clip_bytes(clip.frames) >= CHUNK_LIMIT:
            reason, detail = "too_large", f"{grid.count} tiles of {clip.frames} frames; fewer clip.frames would fit"
            names = [""]
    stride = clip.stride
    if clip.fps:
        # Untrusted bytes say what a video's rate is.
        stride = max(1, round(min(video["fps"] / clip.fps, LONGEST_STRIDE))) if video["fps"] > 0 else 1
    starts = clip_starts(int(video["frames"]), clip.frames, stride, clip.per_video) if reason is None else np.zeros(1)
    for start in starts.astype(int).tolist():
        real = min(max(-(-(video["frames"] - start) // stride), 0), clip.frames)
        yield [
            {
                "clip": name + clip_suffix(start, stride, tile),
                "video": video["uri"],
                **{key: video[key] for key in ("object", "offset", "bytes", "fingerprint", "fps")},
                "start": start,
                "stride": stride,
                "frames": clip.frames,
                "padded": 0 if reason else clip.frames - real,
                "video_frames": video["frames"],
                "width": width,
                "height": height,
                "tile": tile,
                "reason": reason,
                "detail": detail,
            }
            for tile in names
        ]


def plan_bytes(plan: pd.DataFrame) -> bytes:
    """The plan as the parquet of datasets of format 2, in row groups of whole shards."""
    last_of_shard = np.flatnonzero(np.diff(plan["shard"].to_numpy(), append=-1)) + 1
    starts = [0]
    for end in last_of_shard[:-1]:
        if end - starts[-1] >= _GROUP_ROWS:
            starts.append(int(end))
    return tables.to_bytes(plan, PLAN_SCHEMA, starts)
