"""Packing a shard: clip after clip into a tar, in the memory of one clip, and the index of what was packed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pandas as pd
import pyarrow as pa

from pipelines.storage import tables

CARRIED = ("clip", "shard", "position", "video", "start", "stride", "frames", "padded", "tile")
"""Columns of an index that are those of the plan."""


@dataclass(frozen=True)
class PackedClip:
    """A planned clip as a shard holds it.

    Attributes:
        columns: of its index row, beside those that the plan gives and `offset`, `size` and `sha256`.
        members: (suffix, bytes) in their order in the tar; without any the clip is in the index only.
        described: what its JSON says beside index and plan.
    """

    columns: Mapping[str, Any]
    members: Sequence[tuple[str, bytes]] = ()
    described: Mapping[str, Any] = field(default_factory=dict)


class ShardWriter:
    """Writes the tar of one shard of any dataset into a file, clip by clip.

    Args:
        sink: an empty file. It is not closed.
        schema: of the index: PLACE_SCHEMA and more.
    """

    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        self._sink, self._schema, self._at = sink, schema, 0
        self._records: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any], clip: PackedClip) -> None:
        """Write the next clip, in order of position. row: of the plan."""
        record: dict[str, Any] = {name: row[name] for name in CARRIED} | dict(clip.columns)
        self._records.append(record)
        if not clip.members:
            return
        # Without its shard and position: a clip's bytes are the same wherever the plan puts it.
        described = {name: value for name, value in record.items() if name not in ("shard", "position")}
        described |= {name: row[name] for name in ("video_frames", "fps", "width", "height")} | dict(clip.described)
        text = json.dumps(described, ensure_ascii=False, sort_keys=True).encode()
        begin, digest = self._at, hashlib.sha256()
        for suffix, data in [("json", text), *clip.members]:
            for part in _member(f"{row['clip']}.{suffix}", data):
                digest.update(part)
                self._write(part)
        record.update(offset=begin, size=self._at - begin, sha256=digest.hexdigest())

    def finish(self) -> int:
        """Write the end of the archive; how many bytes it has."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._at % tarfile.RECORDSIZE))
        return self._at

    def index(self) -> bytes:
        """The index of the clips that were added, as the bytes of a parquet file."""
        return tables.to_bytes(pd.DataFrame(self._records, columns=self._schema.names), self._schema)

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._at += len(data)


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """A file of a tar: its header, its bytes, and what fills its last block. What tarfile.TarFile writes, which keeps
    something of each file.
    """
    member = tarfile.TarInfo(name)  # TarInfo's own defaults: mtime 0, uid 0, mode 644
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def pack_shard(rows: pd.DataFrame, clips: Iterable[PackedClip], schema: pa.Schema) -> tuple[bytes, bytes]:
    """Tar bytes and index bytes of one shard, for shards that fit in memory.

    Args:
        rows: the shard's rows of the plan, in order of position.
        clips: one per row.
        schema: of the index.
    """
    sink = io.BytesIO()
    writer = ShardWriter(sink, schema)
    for row, clip in zip(rows.to_dict("records"), clips, strict=True):
        writer.add(row, clip)
    writer.finish()
    return sink.getvalue(), writer.index()
