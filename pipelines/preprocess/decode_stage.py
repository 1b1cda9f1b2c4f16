"""The first actor of preprocess: a shard's number -> its frames, decoded and encoded.

Without torch, so that many start fast and small. JPEGs are made here, beside the decoding child, so that a GPU never
waits for an encoder.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpus.clips import PlannedClip, decode_planned, require_unchanged
from pipelines.corpus.plan import PlanReader
from pipelines.corpus.videos import local_copy
from pipelines.dataset.frames import encode_frames
from pipelines.preprocess.stopwatch import Stopwatch
from pipelines.storage import urls
from pipelines.storage.cache import LocalCache
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.isolated import IsolatedDecoder


class DecodeStage:
    """Ray Data actor: {"shard"} -> the shard's frames, encoded frames and failures, as one row.

    A row holds: frames uint8 [K, T, S, S, 3] (K planned clips; failed ones are zero) and ok bool [K]; encoded uint8
    [bytes] with encoded_sizes int64 (the JPEGs of the ok clips, one after another); failures, JSON {row: [reason,
    detail]}.

    For two threads: while one encodes and hands over a shard, the other decodes the next, so that the child, which
    does the work that counts, is never kept waiting.
    """

    def __init__(self, dataset: str, config: DecodeConfig, storage: str, quality: int, cache_mb: int = 0) -> None:
        self.plan = PlanReader(urls.join(dataset, "plan.parquet"))
        self.config = config
        self.storage, self.quality = storage, quality
        self.decoder = IsolatedDecoder(config)
        self.cache = video_cache(cache_mb) if cache_mb else None
        self.turn = Lock()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        watch, shard = Stopwatch(), int(row["shard"])
        with self.turn, watch.time("decode"):
            began, restarts = time.time(), self.decoder.restarts
            straddling = self.plan.straddling(shard) if self.cache else set()
            frames, failures = self._decode(self.plan.shard(shard), straddling, watch)
            restarts = self.decoder.restarts - restarts
        ok = np.array([number not in failures for number in range(len(frames))], bool)
        jpegs: list[bytes] = []
        if self.storage == "jpeg":
            with watch.time("encode"):
                jpegs = [data for clip in frames[ok] for _, data in encode_frames(clip, "jpeg", self.quality)]
        return {
            "shard": shard,
            "frames": frames,
            "ok": ok,
            "encoded": np.frombuffer(b"".join(jpegs) or b"\0", np.uint8),
            "encoded_sizes": np.array([len(data) for data in jpegs] or [0], np.int64),
            "failures": json.dumps(failures),
            "began": began,
            "decode_seconds": json.dumps(watch),
            "restarts": restarts,
        }

    def _decode(
        self, rows: pd.DataFrame, straddling: set[str], watch: Stopwatch
    ) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
        """Frames [K, T, S, S, 3] of a shard's rows, and (reason, detail) of those that failed.

        straddling: the videos of which a remote copy is kept for other shards.
        """
        size = self.config.size
        frames = np.zeros((len(rows), int(rows["frames"].iloc[0]), size, size, 3), np.uint8)
        refused = rows["reason"].notna()
        failures = {int(row.position): (str(row.reason), str(row.detail)) for row in rows[refused].itertuples()}
        videos = [part for _, part in rows[~refused].groupby(["object", "offset"], sort=False)]
        caches = [self.cache if video["video"].iloc[0] in straddling else None for video in videos]
        for video, opened in _ahead(videos, caches, watch):
            numbers = [int(number) for number in video.index]
            try:
                with opened as source:
                    with watch.time("fetch"):
                        require_unchanged(source, str(video["fingerprint"].iloc[0]))
                    out = frames[numbers[0] : numbers[-1] + 1]
                    failed = decode_planned(self.decoder, source, PlannedClip.of_rows(video), out)
                    failures.update({numbers[place]: (error.reason, error.detail) for place, error in failed.items()})
            except VideoError as error:
                failures.update(dict.fromkeys(numbers, (error.reason, error.detail)))
        return frames, failures


def video_cache(limit_mb: int) -> LocalCache:
    """Where a node keeps the remote videos that several of its shards need."""
    return LocalCache(os.path.join(tempfile.gettempdir(), f"autogaze-videos-{os.getuid()}"), limit_mb)


def clear_video_cache() -> None:
    """Remove this node's copies, which only a job that goes on would use again. Other jobs fetch theirs once more."""
    video_cache(0).clear()


def _ahead(
    videos: list[pd.DataFrame], caches: list[LocalCache | None], watch: Stopwatch
) -> Iterator[tuple[pd.DataFrame, AbstractContextManager[Source]]]:
    """Each video with its local copy, the next one being fetched while this one decodes."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(_Opened, *first) for first in zip(videos[:1], caches, strict=False)]
        for number, video in enumerate(videos):
            with watch.time("fetch"):
                opened = pending.pop().result()
            if number + 1 < len(videos):
                pending.append(pool.submit(_Opened, videos[number + 1], caches[number + 1]))
            yield video, opened


class _Opened(AbstractContextManager[Source]):
    """A local copy made at once; what goes wrong with the video itself is raised on entering."""

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
