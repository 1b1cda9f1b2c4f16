"""The clips of a gaze dataset as a stream: frames and gazes, read from its tars by ranges, some of them ahead.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.corpus.plan import clip_bytes
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames_into
from pipelines.dataset.members import BadSample
from pipelines.dataset.shards import checked_members
from pipelines.errors import PipelineError
from pipelines.preprocess.decoding import PIECE_BYTES, ClipDecoders, Decoding, Row
from pipelines.preprocess.rows import DecodedClip, Effort, Failure
from pipelines.preprocess.streams import in_order
from pipelines.storage import store

_RANGE_BYTES = 32 << 20  # read at once, but for a clip that is larger


class StoredClips:
    """Frames and gazes of a gaze dataset. Frames are those that it stores; where it stores none, its videos are decoded
    again.

    Args:
        source: URL of the gaze dataset.
        decoding: of its videos; as many threads read and decode stored frames.
    """

    def __init__(self, source: str, decoding: Decoding) -> None:
        self.dataset = shards.open_dataset(source)
        self._count = decoding.decoders
        self._videos = None if self.dataset.frames_stored else ClipDecoders(self.dataset.plan, decoding)
        self._pool = ThreadPoolExecutor(self._count, "autogaze-read")

    def close(self) -> None:
        """End its threads and children."""
        self._pool.shutdown(cancel_futures=True)
        if self._videos is not None:
            self._videos.close()

    def clips(self, shard: int, effort: Effort) -> Iterator[DecodedClip]:
        """Every clip of a shard, in order of position; of those with frames, the gaze that is stored.

        effort: what it takes is counted there. Raises PipelineError when its index cannot be read.
        """
        try:
            rows: list[dict[str, Any]] = self.dataset.read_index(shard).to_pylist()
        except FileNotFoundError as error:
            raise PipelineError(
                f"{shards.index_url(self.dataset.url, shard)}: missing; was it taken back just now?"
            ) from error
        planned = self.dataset.plan.clips_of(shard).to_dict("records")
        stored = self._stored(list(zip(planned, rows, strict=True)), effort)
        if self._videos is None:
            yield from stored
            return
        for decoded, kept in zip(self._videos.clips(shard, effort), stored, strict=True):
            yield kept if kept.failure else replace(decoded, gaze=kept.gaze, source=kept.source)

    def _stored(self, rows: Sequence[tuple[Row, Row]], effort: Effort) -> Iterator[DecodedClip]:
        """What the dataset stores of clips, with frames where it stores them. rows: of plan and index."""
        effort.seconds["decode"] += 0.0
        for clips, spent in in_order(self._pool, self._read, _ranges(rows), self._count):
            effort.add(spent)
            yield from clips

    def _read(self, part: Sequence[tuple[Row, Row]]) -> tuple[list[DecodedClip], Effort]:
        """Read the clips of one range of a tar."""
        effort, ok = Effort(), [row for _, row in part if row["outcome"] == "ok"]
        with effort.seconds.time("decode"):
            data, begin = memoryview(b""), 0
            if ok:
                with effort.seconds.time("fetch"):
                    begin = int(ok[0]["offset"])
                    data = self._bytes(int(ok[0]["shard"]), begin, int(ok[-1]["offset"]) + int(ok[-1]["size"]) - begin)
            return [self._clip(planned, row, data, begin) for planned, row in part], effort

    def _bytes(self, shard: int, begin: int, length: int) -> memoryview:
        """A range of a tar; nothing where that is missing."""
        try:
            return memoryview(store.read(shards.tar_url(self.dataset.url, shard), begin, length))
        except FileNotFoundError:
            return memoryview(b"")

    def _clip(self, planned: Row, row: Row, data: memoryview, begin: int) -> DecodedClip:
        if row["outcome"] != "ok":
            return DecodedClip(planned, None, Failure(row["reason"], row["detail"], row["outcome"] == "filtered"))
        try:
            members = checked_members(row, data[row["offset"] - begin :][: row["size"]])
            frames = None
            if self._videos is None:
                size = self.dataset.vocabulary.frame_size
                frames = np.empty((int(row["frames"]), size, size, 3), np.uint8)
                decode_frames_into(members, frames)
            return DecodedClip(planned, frames, gaze=bytes(members["gaze.npz"]), source=str(row["sha256"]))
        except (BadSample, KeyError) as error:
            what = "it has no gaze.npz" if isinstance(error, KeyError) else str(error)
            return DecodedClip(planned, None, Failure("damaged", what if data else "its tar is missing"))


def _ranges(rows: Iterable[tuple[Row, Row]]) -> Iterator[list[tuple[Row, Row]]]:
    """Runs of clips that are read at once: no more than so many bytes stored, and as many decoded as a piece."""
    part: list[tuple[Row, Row]] = []
    stored = decoded = 0
    for planned, row in rows:
        ok = row["outcome"] == "ok"
        size, frames = (int(row["size"]), clip_bytes(int(row["frames"]))) if ok else (0, 0)
        if part and (stored + size > _RANGE_BYTES or decoded + frames > PIECE_BYTES):
            yield part
            part, stored, decoded = [], 0, 0
        part.append((planned, row))
        stored, decoded = stored + size, decoded + frames
    if part:
        yield part
