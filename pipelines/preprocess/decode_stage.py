"""The first actor of preprocess: a shard's number -> its frames, decoded and encoded.

It does not import torch, so that many of them start fast and stay small. JPEGs are encoded here, beside the decoding
child, so that a GPU never waits for an encoder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpus.clips import PlannedClip, decode_planned, require_unchanged
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.corpus.videos import local_copy
from pipelines.dataset.frames import encode_frames
from pipelines.errors import PipelineError
from pipelines.preprocess.rows import DecodedShard, Failure
from pipelines.preprocess.stopwatch import Stopwatch
from pipelines.storage.cache import LocalCache
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.isolated import IsolatedDecoder, index_folder


class DecodeStage:
    """Ray Data actor: a shard's number -> DecodedShard, as a row.

    For two threads: while one encodes and hands over a shard, the other decodes the next. So the child, which does most
    of the work, never waits.

    Args:
        plan: of the dataset.
        config: of the decoder.
        storage: how frames are stored: see pipelines.dataset.frames.
        quality: of the JPEGs.
        cache_mb: disk for remote videos that several shards need; 0 = none are kept.
    """

    def __init__(self, plan: DatasetPlan, config: DecodeConfig, storage: str, quality: int, cache_mb: int = 0) -> None:
        self.plan = plan
        self.config = config
        self.storage, self.quality = storage, quality
        self.decoder = IsolatedDecoder(replace(config, index_dir=index_folder()))
        self.cache = video_cache(cache_mb) if cache_mb else None
        self.turn = Lock()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.decode(int(row["shard"])).to_row()

    def decode(self, shard: int) -> DecodedShard:
        """Decode a shard's clips, and encode their frames if they are stored as JPEGs."""
        watch = Stopwatch()
        with self.turn, watch.time("decode"):
            began, restarts, fallbacks = time.time(), self.decoder.restarts, self.decoder.fallbacks.copy()
            shared = self.plan.straddling(shard) if self.cache else set()
            frames, failures = self._decode(self.plan.clips_of(shard), shared, watch)
            restarts, fallbacks = self.decoder.restarts - restarts, self.decoder.fallbacks - fallbacks
        decoded = DecodedShard(shard, frames, failures, [], began, watch, restarts, fallbacks=dict(fallbacks))
        if self.storage == "jpeg":
            with watch.time("encode"):
                for clip in frames[decoded.ok]:
                    decoded.jpegs.extend(data for _, data in encode_frames(clip, "jpeg", self.quality))
        return decoded

    def _decode(self, rows: pd.DataFrame, shared: set[str], watch: Stopwatch) -> tuple[np.ndarray, dict[int, Failure]]:
        """Frames uint8 [K, T, S, S, 3] of a shard's K rows of the plan, and the failures by position.

        shared: videos that other shards need too. If they are remote, a copy is kept.
        """
        size = self.config.size
        frames = np.zeros((len(rows), int(rows["frames"].iloc[0]), size, size, 3), np.uint8)
        refused = rows["reason"].notna()
        failures = {int(row.position): Failure(str(row.reason), str(row.detail)) for row in rows[refused].itertuples()}
        videos = [part for _, part in rows[~refused].groupby(["object", "offset"], sort=False)]
        caches = [self.cache if video["video"].iloc[0] in shared else None for video in videos]
        for video, opened in _ahead(videos, caches, watch):
            positions = [int(position) for position in video.index]
            try:
                with opened as source:
                    with watch.time("fetch"):
                        require_unchanged(source, str(video["fingerprint"].iloc[0]))
                    out = frames[positions[0] : positions[-1] + 1]
                    failed = decode_planned(self.decoder, source, PlannedClip.of_rows(video), out)
                    for place, error in failed.items():
                        failures[positions[place]] = Failure(error.reason, error.detail)
            except VideoError as error:
                failures.update(dict.fromkeys(positions, Failure(error.reason, error.detail)))
            except ImportError as error:  # the decoder is not installed on this node, or its GPU is not there
                raise PipelineError(str(error)) from error
        return frames, failures


def video_cache(limit_mb: int) -> LocalCache:
    """Where a node keeps the remote videos that several of its shards need."""
    return LocalCache(os.path.join(tempfile.gettempdir(), f"autogaze-videos-{os.getuid()}"), limit_mb)


def clear_video_cache() -> None:
    """Remove this node's copies: the job that needed them is done. Another job on the node fetches its videos again."""
    video_cache(0).clear()


def _ahead(
    videos: list[pd.DataFrame], caches: list[LocalCache | None], watch: Stopwatch
) -> Iterator[tuple[pd.DataFrame, AbstractContextManager[Source]]]:
    """Each video with its local copy; the next one is fetched while this one decodes."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(_Opened, *first) for first in zip(videos[:1], caches, strict=False)]
        for number, video in enumerate(videos):
            with watch.time("fetch"):
                opened = pending.pop().result()
            if number + 1 < len(videos):
                pending.append(pool.submit(_Opened, videos[number + 1], caches[number + 1]))
            yield video, opened


class _Opened(AbstractContextManager[Source]):
    """A local copy, made when this is constructed; a video that is gone raises VideoError on entering."""

    def __init__(self, video: pd.DataFrame, cache: LocalCache | None) -> None:
        first = video.iloc[0]
        place = str(first["object"]), int(first["offset"]), int(first["bytes"])
        self.copy = local_copy(*place, str(first["fingerprint"]), cache)
        self.error: FileNotFoundError | None = None
        try:
            self.source = self.copy.__enter__()
        except FileNotFoundError as error:
            self.error = error

    def __enter__(self) -> Source:
        if self.error is not None:
            raise VideoError("missing", "removed since it was planned")
        return self.source

    def __exit__(self, *details: Any) -> None:
        if self.error is None:
            self.copy.__exit__(*details)
