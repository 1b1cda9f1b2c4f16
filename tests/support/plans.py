"""Manifests and plans for tests, without a scan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.plan_reader import VideoPlan
from pipelines.corpus.plan_writer import write_plan
from pipelines.corpus.planning import PART_VIDEOS, Planner
from pipelines.corpus.scan import scan
from pipelines.storage import tables

_FACTS: dict[str, Any] = {
    "offset": 0,
    "bytes": 1000,
    "version": "1",
    "fingerprint": "f",
    "container": "mp4",
    "codec": "h264",
    "width": 64,
    "height": 48,
    "rotation": 0,
    "fps": 25.0,
    "frames": 16,
    "duration": 1.0,
    "status": "ok",
    "reason": None,
    "detail": None,
    "passed_over": None,
    "mirrored": False,
    "fps_source": "",
    "duration_source": "",
}


def manifest_of(videos: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A manifest of videos, each by its uri and what is not as usual."""
    rows = [_FACTS | {"object": video["uri"]} | dict(video) for video in videos]
    return pd.DataFrame(rows, columns=MANIFEST_SCHEMA.names)


def plan_of(
    folder: Path | str,
    manifest: pd.DataFrame,
    root: str,
    clip: ClipConfig,
    shard_clips: int,
    part_videos: int = PART_VIDEOS,
) -> VideoPlan:
    """The plan of a dataset, written into it."""
    ordered = tables.as_table(manifest.sort_values(["object", "uri"]), MANIFEST_SCHEMA)
    return write_plan(str(folder), Planner(root, clip, shard_clips), [ordered], part_videos=part_videos)


def about_of(plan: VideoPlan) -> dict[str, Any]:
    """What dataset.json says of a plan."""
    return {"plan": plan.about(), "videos": plan.videos, "clips": plan.clips, "shards": plan.shards}


def planned(manifest: pd.DataFrame, root: str, clip: ClipConfig, shard_clips: int) -> pd.DataFrame:
    """All clips of a plan that is not written anywhere."""
    part = Planner(root, clip, shard_clips).part(
        tables.as_table(manifest.sort_values(["object", "uri"]), MANIFEST_SCHEMA)
    )
    return pd.concat([part.clips_of(shard) for shard in range(len(part.outline().clips))], ignore_index=True)


def scan_frame(input: str, previous: pd.DataFrame | None = None, **more: Any) -> pd.DataFrame:
    """The manifest of an input, scanned. previous: an earlier one."""
    before = () if previous is None else [tables.as_table(previous, MANIFEST_SCHEMA)]
    return pa.concat_tables(scan(input, before, **more)).to_pandas()
