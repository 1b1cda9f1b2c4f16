"""The labels of a plan's clips, kept on disk while label files are read and a dataset is made of them.

Memory does not grow with the clips: keys and labels lie in a temporary SQLite database, which has no name in the file
system and is gone with the process, however that ends. It is in $SQLITE_TMPDIR, $TMPDIR, /var/tmp or /tmp.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.errors import PipelineError
from pipelines.labels.keys import clip_key

_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA cache_size = -65536; -- KiB
    CREATE TABLE clips (shard INTEGER, position INTEGER, path BLOB, key BLOB, video TEXT, frames INTEGER,
        stride INTEGER);
    CREATE TABLE gazes (shard INTEGER, position INTEGER, npz BLOB, PRIMARY KEY (shard, position)) WITHOUT ROWID;
"""
_INDEXES = "CREATE INDEX by_path ON clips (path); CREATE INDEX by_key ON clips (key);"
_FOUND = "SELECT shard, position, frames, stride, video FROM clips WHERE {} = ? ORDER BY shard, position LIMIT 2"


@dataclass(frozen=True)
class LabelledClip:
    """A clip that a key names: where it lies in the plan, and what a label must fit."""

    shard: int
    position: int
    frames: int
    stride: int
    video: str


class KeptLabels:
    """The clips of a plan by their keys, and the label of each. Threads may share one.

    Raises PipelineError, in each of its methods, where the disk has no room.
    """

    def __init__(self, plan: DatasetPlan) -> None:
        self._lock = Lock()
        with _room():
            # "": a temporary file that SQLite deletes as soon as it is open.
            self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            self._database.executescript(_TABLES)
            self._database.execute("BEGIN")
            for shard in range(plan.shards):
                self._database.executemany("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?)", _rows(plan, shard))
            self._database.execute("COMMIT")
            self._database.executescript(_INDEXES)
            self._database.execute("BEGIN")  # never committed: nobody reads the file but this

    def close(self) -> None:
        self._database.close()

    def by_path(self, key: str) -> list[LabelledClip]:
        """The clip whose key with the video's whole path this is; two where several have it, [] where none has."""
        return self._found("path", key)

    def by_key(self, key: str) -> list[LabelledClip]:
        """The clip whose key this is; two where several have it, [] where none has."""
        return self._found("key", key)

    def _found(self, column: str, key: str) -> list[LabelledClip]:
        with self._lock, _room():
            return [LabelledClip(*row) for row in self._database.execute(_FOUND.format(column), (_bytes(key),))]

    def keep(self, clip: LabelledClip, npz: bytes) -> bool:
        """Keep the label of a clip; False if it has another one."""
        with self._lock, _room():
            place = clip.shard, clip.position
            self._database.execute("INSERT OR IGNORE INTO gazes VALUES (?, ?, ?)", (*place, npz))
        return self.of(*place) == npz

    def of(self, shard: int, position: int) -> bytes | None:
        """The label of a clip, or None."""
        with self._lock, _room():
            query = "SELECT npz FROM gazes WHERE shard = ? AND position = ?"
            row = self._database.execute(query, (shard, position)).fetchone()
        return None if row is None else bytes(row[0])


def _rows(plan: DatasetPlan, shard: int) -> Iterator[tuple[Any, ...]]:
    names = ("position", "video", "start", "tile", "frames", "stride")
    clips = plan.clips_of(shard)
    for position, video, start, tile, frames, stride in zip(*(clips[name].tolist() for name in names), strict=True):
        path, key = (_bytes(clip_key(video, start, tile, full)) for full in (True, False))
        yield shard, position, path, key, video, frames, stride


def _bytes(key: str) -> bytes:
    """A key of a label file may be any text of JSON, half a character too, which SQLite takes for no text."""
    return key.encode("utf-8", "surrogatepass")


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise PipelineError(
            f"the labels cannot be kept in a temporary file ({error}); set TMPDIR to a folder with room for them"
        ) from error
