"""The samples of shards in a few numbers: what a loader needs of all of a dataset before it reads any shard's rows.

A sample is a clip whose outcome is ok. A merged index carries the summary of its shards in its metadata, under
SUMMARY; of a shard's own index it is computed.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.names import video_of_clip
from pipelines.dataset.indexes import Indexes, IndexFile, block_of
from pipelines.errors import PipelineError

SUMMARY = "autogaze-samples"
"""The name under which a merged index has the summary of its shards."""
SUMMARY_COLUMNS = ("clip", "video", "start", "stride", "tile", "outcome", "sha256")
_DIGEST_BYTES = 16
_AT_ONCE = 16  # files read
_MOVES = 4  # times that files may be merged while they are read


@dataclass(frozen=True)
class SampleSummary:
    """The samples of some shards, in order: 24 bytes a shard, and 8 for each video of a shard.

    Attributes:
        samples: uint32 [S], how many each shard has.
        digests: uint8 [S, 16], of the hashes of each shard's samples.
        videos: uint32 [S], how many runs each shard has: neighbours that are of one video.
        draws: uint32 [R], of each run a hash of its video's name, by which videos are held out.
        lengths: uint32 [R], of each run its samples.
    """

    samples: np.ndarray
    digests: np.ndarray
    videos: np.ndarray
    draws: np.ndarray
    lengths: np.ndarray

    def to_text(self) -> bytes:
        """It as text, which any reader of parquet takes."""
        parts = (self.samples, self.videos, self.digests, self.draws, self.lengths)
        return base64.b64encode(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))

    def of(self, place: int) -> SampleSummary:
        """That of one of its shards."""
        begin = int(self.videos[:place].sum())
        runs, one = slice(begin, begin + int(self.videos[place])), slice(place, place + 1)
        return SampleSummary(
            self.samples[one], self.digests[one], self.videos[one], self.draws[runs], self.lengths[runs]
        )


def read_summary(indexes: Indexes, shards: int) -> SampleSummary:
    """The summary of the first `shards`, which are committed: what merged files say, and of others from their rows.

    Raises PipelineError for a damaged file, or one that is taken back meanwhile.
    """
    missing = None
    for attempt in range(_MOVES):
        files = [file for file in indexes.listing(fresh=attempt > 0).files if file.span.first < shards]
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                of_file = dict(zip(files, pool.map(lambda file: _of_file(indexes, file), files), strict=True))
        except FileNotFoundError as error:  # it was merged, or taken back, since it was listed
            missing = error
            continue
        parts = []
        for _, block in itertools.groupby(files, key=lambda file: block_of(file.span.first)):
            alone = list(block)
            if len(alone) == 1 and alone[0].span.last < shards:
                parts.append(of_file[alone[0]])
                continue
            for shard in sorted(set(itertools.chain.from_iterable(file.span.shards for file in alone))):
                if shard >= shards:
                    break
                file = indexes.listing().file_of(shard)
                assert file is not None
                parts.append(of_file[file].of(shard - file.span.first))
        return joined(parts)
    raise PipelineError(f"{missing}: missing; was it taken back just now?") from missing


def _of_file(indexes: Indexes, file: IndexFile) -> SampleSummary:
    stated = indexes.metadata(file, SUMMARY)
    try:
        if stated is not None:
            return summary_from_text(stated, len(file.span.shards))
        return joined([summarise(indexes.read(file, shard, SUMMARY_COLUMNS)) for shard in file.span.shards])
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise PipelineError(f"{file.entry.url}: damaged, or not an index: {error}") from error


def summary_from_text(text: bytes, shards: int) -> SampleSummary:
    """What `to_text` wrote of so many shards. Raises ValueError for anything else."""
    data = base64.b64decode(text, validate=True)
    head = np.frombuffer(data, "<u4", 2 * shards)
    digests = np.frombuffer(data, np.uint8, _DIGEST_BYTES * shards, 8 * shards).reshape(shards, _DIGEST_BYTES)
    rest = np.frombuffer(data, "<u4", offset=8 * shards + digests.nbytes)
    samples, videos = head.reshape(2, shards)
    draws, lengths = rest.reshape(2, int(videos.sum()))
    if int(lengths.sum()) != int(samples.sum()):
        raise ValueError("its summary is not of its samples")
    return SampleSummary(samples, digests, videos, draws, lengths)


def summarise(table: pa.Table) -> SampleSummary:
    """The summary of one shard, from the rows of its index. Raises ValueError or TypeError for a hash that is none."""
    ok = table.filter(pc.equal(table["outcome"], "ok"))
    digest = hashlib.sha256(hashes_of(ok)).digest()[:_DIGEST_BYTES]
    draws = draws_of(ok)
    begins = np.flatnonzero(np.diff(draws, prepend=~draws[:1]))
    return SampleSummary(
        samples=np.array([len(ok)], "<u4"),
        digests=np.frombuffer(digest, np.uint8)[None],
        videos=np.array([len(begins)], "<u4"),
        draws=draws[begins],
        lengths=np.diff(begins, append=len(draws)).astype("<u4"),
    )


def joined(parts: Sequence[SampleSummary]) -> SampleSummary:
    """The summary of the shards of some summaries, one after another."""
    names = [field.name for field in fields(SampleSummary)]
    if not parts:
        return _NOTHING
    return SampleSummary(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def hashes_of(ok: pa.Table) -> bytes:
    """The hashes of ok rows, 32 bytes each, one after another. Raises ValueError or TypeError for one that is none."""
    data = bytes.fromhex("".join(ok["sha256"].to_pylist()))
    if len(data) != 32 * len(ok):
        raise ValueError("a hash is not of 32 bytes")
    return data


def draws_of(ok: pa.Table) -> np.ndarray:
    """A hash of the name of each row's video: uint32 [rows]."""
    if not len(ok):
        return np.zeros(0, "<u4")
    videos = ok["video"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, firsts, which = np.unique(videos, return_index=True, return_inverse=True)
    rows = ok.select(["clip", "start", "stride", "tile"]).take(pa.array(firsts)).to_pylist()
    return np.array([_draw(video_of_clip(**row)) for row in rows], "<u4")[which]


def _draw(video: str) -> int:
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:4], "big")


_NONE = np.zeros(0, "<u4")
_NOTHING = SampleSummary(_NONE, np.zeros((0, _DIGEST_BYTES), np.uint8), _NONE, _NONE, _NONE)
