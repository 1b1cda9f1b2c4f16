"""What the job's own rules make of a cluster and of a shard: actors, decoders, windows, pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelines.corpus.plan import clip_bytes
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.decoding import Decoding, in_pieces
from pipelines.preprocess.graph import IN_FLIGHT, SHARDS_AT_ONCE
from pipelines.preprocess.layout import NodeRoom, lay_out
from pipelines.preprocess.workers import share_workers
from pipelines.sizing.machines import ClipCost, Machine, PieceCost, ShardCost
from pipelines.sizing.rates import Rates
from pipelines.sizing.workload import Piece, Shard, frames_of
from pipelines.video.base import DecodeConfig

RAY_CORES = 0.17
"""Core seconds a second of Ray's own processes on a node, and of the command that drives the job: measured by
benchmarks/sizing_check.py.
"""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. bytes_per_s: that a node can receive, and send; store_bytes_per_s: all of them together."""

    nodes: int
    cores: int
    gpus: int
    bytes_per_s: float
    store_bytes_per_s: float


def machine_of(cluster: Cluster, config: PreprocessConfig, batch: int, shards: int) -> tuple[Machine, int]:
    """A node of a cluster as the job would use it, and how many actors there are on all of them.

    Raises PipelineError where the cluster is too small for the workers that are asked for.
    """
    nodes = cluster.nodes
    workers = share_workers(config, nodes * cluster.cores, nodes * cluster.gpus, nodes)
    layout = lay_out(workers.wanted, shards, [NodeRoom(cluster.cores, cluster.gpus)] * nodes)
    machine = Machine(
        cores=cluster.cores,
        actors=-(-layout.actors // nodes),
        decoders=layout.decoders,
        gazers=layout.gazers,
        on_cores=workers.device == "cpu",
        batch=batch,
        window=Decoding(DecodeConfig(), decoders=layout.decoders).memory,
        at_once=SHARDS_AT_ONCE,
        in_flight=IN_FLIGHT,
        bytes_per_s=min(cluster.bytes_per_s, cluster.store_bytes_per_s / nodes),
        beside=RAY_CORES,
    )
    return machine, layout.actors


def clip_cost(rates: Rates, storage: str) -> ClipCost:
    """What a clip costs beside decoding, by how frames are stored."""
    jpeg, times = rates.jpeg if storage == "jpeg" else 0.0, rates.together
    search = rates.search * (times if rates.device == "cpu" else 1.0)
    return ClipCost(times * jpeg, search, times * rates.write, times * rates.shard, rates.stored[storage], rates.start)


def shard_cost(shard: Shard, rates: Rates) -> ShardCost:
    """A shard in the pieces that are handed out to decoders."""
    return tuple(
        PieceCost(
            part.video,
            part.clips,
            part.clips * clip_bytes(rates.frames),
            rates.together * rates.decode.of(part) * _luck(part.video, rates),
            part.fetched,
        )
        for piece in shard.pieces
        for part in _cut(piece)
    )


def _cut(piece: Piece) -> Iterator[Piece]:
    for rows in in_pieces(piece.rows):
        taken, decoded = frames_of(rows)
        yield replace(piece, rows=rows, taken=taken, decoded=decoded)


def _luck(video: int, rates: Rates) -> float:
    """How much more than the average of its kind a video costs, as those that were measured do; the same every time."""
    return random.Random(video).choice(rates.decode.spread)  # noqa: S311 (no secret)
