"""Packing a shard: clip after clip into a tar, in the memory of one clip, and the index of what was packed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

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
        self._sink, self._schema = _Hashing(sink), schema
        # A sink of ours, since a file does not say what was written to it: tarfile calls only write and tell.
        self._tar = tarfile.open(fileobj=cast(IO[bytes], self._sink), mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._records: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any], clip: PackedClip) -> None:
        """Write the next clip, in order of position. row: of the plan."""
        record: dict[str, Any] = {name: row[name] for name in CARRIED} | dict(clip.columns)
        self._records.append(record)
        if not clip.members:
            return
        begin = self._sink.begin()
        # Without its shard and position: a clip's bytes are the same wherever the plan puts it.
        described = {name: value for name, value in record.items() if name not in ("shard", "position")}
        described |= {name: row[name] for name in ("video_frames", "fps", "width", "height")} | dict(clip.described)
        text = json.dumps(described, ensure_ascii=False, sort_keys=True).encode()
        for suffix, data in [("json", text), *clip.members]:
            member = tarfile.TarInfo(f"{row['clip']}.{suffix}")  # TarInfo's own defaults: mtime 0, uid 0, mode 644
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # it keeps one for each file
        record.update(offset=begin, size=self._sink.tell() - begin, sha256=self._sink.digest())

    def finish(self) -> int:
        """Write the end of the archive; how many bytes it has."""
        self._tar.close()
        return self._sink.tell()

    def index(self) -> bytes:
        """The index of the clips that were added, as the bytes of a parquet file."""
        return tables.to_bytes(pd.DataFrame(self._records, columns=self._schema.names), self._schema)


class _Hashing:
    """A file that is only written to, and hashes what was written since `begin`."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink, self._at, self._hash = sink, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self._hash.update(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def begin(self) -> int:
        self._hash = hashlib.sha256()
        return self._at

    def digest(self) -> str:
        return self._hash.hexdigest()


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
