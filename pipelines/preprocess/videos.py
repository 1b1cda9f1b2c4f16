"""The videos of a shard: each is fetched once, ahead of the decoders, and let go after its last clip."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock
from typing import Any

from pipelines.corpus.clips import require_unchanged
from pipelines.corpus.videos import local_copy
from pipelines.preprocess.rows import Failure
from pipelines.storage.cache import LocalCache
from pipelines.video.base import Source, VideoError


class ShardVideo:
    """A video, for the pieces of it that a shard holds.

    Attributes:
        lost: number of a piece that cost a decoder for good; pieces after it need not be tried.
        failure: how a clip of it failed so; all after it fail with it.

    Args:
        row: of the plan, one of its clips.
        cache: keeps a copy of it for other shards; None: it is not kept.
        pieces: how often it is used, and `done` called.
    """

    def __init__(self, row: Mapping[str, Any], cache: LocalCache | None, pieces: int) -> None:
        self.place = str(row["object"]), int(row["offset"]), int(row["bytes"])
        self.fingerprint = str(row["fingerprint"])
        self.failure: Failure | None = None
        self.lost: int | None = None
        self._cache, self._left, self._lock = cache, pieces, Lock()
        self._copy, self._bad = ExitStack(), False
        self._fetch: Future[Source] | None = None

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Fetch it, in a thread, unless that was begun."""
        if self._fetch is None:
            self._fetch = pool.submit(self._opened)

    def source(self) -> Source:
        """Its bytes on this machine. Raises VideoError: it is gone, or is not what was planned. StoreError."""
        assert self._fetch is not None
        return self._fetch.result()

    def bad(self) -> None:
        """It cannot be decoded: no copy of it is kept."""
        self._bad = True

    def done(self) -> None:
        """A piece needs it no longer."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        if self._fetch is not None and not self._fetch.cancel() and self._fetch.exception() is None:
            self._close()

    def _opened(self) -> Source:
        try:
            source = self._copy.enter_context(local_copy(*self.place, self.fingerprint, self._cache))
        except FileNotFoundError:
            raise VideoError("missing", "removed since it was planned") from None
        try:
            require_unchanged(source, self.fingerprint)
        except BaseException:
            self._bad = True
            self._close()
            raise
        return source

    def _close(self) -> None:
        if not self._bad:
            self._copy.close()
            return
        try:
            with self._copy:
                raise VideoError("unreadable", "")  # within which a copy is forgotten
        except VideoError:
            return


def video_cache(limit_mb: int) -> LocalCache:
    """Where a node keeps the remote videos that several of its shards need."""
    return LocalCache(os.path.join(tempfile.gettempdir(), f"autogaze-videos-{os.getuid()}"), limit_mb)


def clear_video_cache() -> None:
    """Remove this node's copies: the job that needed them is done. Another job on the node fetches its videos again."""
    video_cache(0).clear()
