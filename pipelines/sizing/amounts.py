"""What a job reads and writes: bytes, and requests of a store. Arithmetic, on what the simulation says of fetches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.corpus.planning import PART_VIDEOS
from pipelines.dataset.indexes import BLOCK
from pipelines.sizing.workload import Workload
from pipelines.storage.s3 import PART_BYTES


@dataclass(frozen=True)
class Amounts:
    """What a job moves.

    Attributes:
        read: bytes of videos that the scan and the job fetch; 0 of local ones.
        stored: bytes of the dataset, by how frames are stored.
        puts, gets: requests, where videos and dataset are in an object store. Retries and listings do not count.
    """

    read: float
    stored: dict[str, float]
    puts: int
    gets: int


def amounts(workload: Workload, stored: Mapping[str, float], storage: str, fetched: float, actors: int) -> Amounts:
    """What a job moves.

    Args:
        stored: bytes a clip, by how frames are stored; `storage`: how they are.
        fetched: times that the job fetches a remote video, the scan left out; 0 where none is.
        actors: that read the plan.
    """
    shard = workload.clips / max(workload.shards, 1) * stored[storage]
    pieces = 1 if shard <= PART_BYTES else math.ceil(shard / PART_BYTES) + 2  # with beginning and end of an upload
    parts = math.ceil(workload.videos / PART_VIDEOS)
    times = fetched + 1 if fetched else 0.0
    return Amounts(
        read=workload.bytes * times,
        stored={name: workload.clips * size for name, size in stored.items()},
        # Of each shard its tar and its index, of a thousand shards an index again; of a part manifest and plan.
        puts=workload.shards * (pieces + 1) + workload.shards // BLOCK + 2 * parts,
        # Each actor reads the parts of the plan that its shards lie in.
        gets=round(workload.videos * times) + min(workload.shards, parts * actors) + workload.shards // BLOCK * BLOCK,
    )
