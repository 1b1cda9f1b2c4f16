"""The first actor of encode where a gaze dataset is encoded: a shard's number -> its frames and gazes.

It does not import torch, so that many of them start fast and stay small.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames_into
from pipelines.dataset.members import BadSample
from pipelines.dataset.shards import checked_members
from pipelines.errors import PipelineError
from pipelines.preprocess.decode_stage import DecodeStage
from pipelines.preprocess.rows import DecodedShard, Failure
from pipelines.preprocess.stopwatch import Stopwatch
from pipelines.storage import store
from pipelines.video.base import DecodeConfig
from pipelines.video.isolated import IsolatedDecoder


class ReadStage:
    """Ray Data actor: a shard's number -> DecodedShard with gazes, as a row.

    Frames are those that the dataset stores; where it stores none, its videos are decoded again.

    Args:
        source: URL of the gaze dataset.
        config: of the decoder, where videos are decoded.
        cache_mb: disk for remote videos that several shards need; 0 = none are kept.
    """

    def __init__(self, source: str, config: DecodeConfig, cache_mb: int = 0) -> None:
        self.dataset = shards.open_dataset(source)
        self.videos = (
            None if self.dataset.frames_stored else DecodeStage(self.dataset.plan, config, "none", 0, cache_mb)
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.read(int(row["shard"])).to_row()

    @property
    def decoder(self) -> IsolatedDecoder | None:
        """The child that decodes videos, which ends with the actor."""
        return None if self.videos is None else self.videos.decoder

    def read(self, shard: int) -> DecodedShard:
        """The frames and gazes of a shard's clips. Raises PipelineError when its index cannot be read."""
        watch = Stopwatch()
        decoded = None if self.videos is None else self.videos.decode(shard)
        began = time.time() if decoded is None else decoded.began
        with watch.time("decode"):
            with watch.time("fetch"):
                rows, tar = self._fetch(shard)
            found = self._decode(rows, tar, decoded)
        for name, spent in ({} if decoded is None else decoded.seconds).items():
            watch[name] += spent
        restarts, fallbacks = (decoded.restarts, decoded.fallbacks) if decoded else (0, {})
        return DecodedShard(shard, *found[:2], [], began, watch, restarts, *found[2:], fallbacks=fallbacks)

    def _fetch(self, shard: int) -> tuple[list[dict[str, Any]], memoryview]:
        """The rows of a shard's index, and its tar; nothing where that is missing."""
        try:
            rows: list[dict[str, Any]] = self.dataset.read_index(shard).to_pylist()
        except FileNotFoundError as error:
            raise PipelineError(
                f"{shards.index_url(self.dataset.url, shard)}: missing; was it taken back just now?"
            ) from error
        try:
            return rows, memoryview(store.read(shards.tar_url(self.dataset.url, shard)))
        except FileNotFoundError:
            return rows, memoryview(b"")

    def _decode(
        self, rows: list[dict[str, Any]], tar: memoryview, decoded: DecodedShard | None
    ) -> tuple[np.ndarray, dict[int, Failure], list[bytes], list[str]]:
        """Frames uint8 [K, T, S, S, 3], failures by position, and of the other clips gazes and hashes."""
        size = self.dataset.vocabulary.frame_size
        frames = np.zeros((len(rows), int(rows[0]["frames"]), size, size, 3), np.uint8) if decoded is None else None
        failures: dict[int, Failure] = {}
        gazes, sources = [], []
        for position, row in enumerate(rows):
            if row["outcome"] != "ok":
                failures[position] = Failure(row["reason"], row["detail"], row["outcome"] == "filtered")
                continue
            try:
                members = checked_members(row, tar[row["offset"] :][: row["size"]])
                if frames is not None:
                    decode_frames_into(members, frames[position])
                elif decoded is not None and position in decoded.failures:
                    failures[position] = decoded.failures[position]
                    continue
                gaze = bytes(members["gaze.npz"])
            except (BadSample, KeyError) as error:
                what = "it has no gaze.npz" if isinstance(error, KeyError) else str(error)
                failures[position] = Failure("damaged", what if tar else "its tar is missing")
                continue
            gazes.append(gaze)
            sources.append(str(row["sha256"]))
        if frames is None:
            assert decoded is not None
            frames = decoded.frames
        return frames, failures, gazes, sources
