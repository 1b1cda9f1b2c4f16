"""What the job's own rules make of a cluster and of a shard: actors, decoders, windows, pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.workers import share_workers
from pipelines.sizing.node import ClipCost, Node, PieceCost
from pipelines.sizing.rates import Rates
from pipelines.sizing.workload import Piece, Shard, frames_of

PIECE_FRAMES = 512


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. bytes_per_s: that a node can receive, and send; store_bytes_per_s: all of them together."""

    nodes: int
    cores: int
    gpus: int
    bytes_per_s: float
    store_bytes_per_s: float


def gaze_batch(config: PreprocessConfig) -> int:
    """Clips that are gazed at together."""
    return config.policy.batch if config.gaze == "policy" else 32


def node_of(cluster: Cluster, config: PreprocessConfig, batch: int, shards: int) -> Node:
    """A node of a cluster as the job would use it.

    Raises PipelineError where the cluster is too small for the workers that are asked for.
    """
    nodes = cluster.nodes
    workers = share_workers(config, nodes * cluster.cores, nodes * cluster.gpus, nodes)
    actors = min(workers.gaze, shards)
    on_cores = workers.device == "cpu"
    decoders = max(1, workers.decode // actors)
    gazers = max(1, workers.gaze // actors) if on_cores else 1
    return Node(
        cores=cluster.cores,
        actors=max(1, actors // nodes),
        decoders=decoders,
        gazers=gazers,
        encoders=decoders,
        on_cores=on_cores,
        batch=batch,
        window=(decoders + 2) * PIECE_FRAMES,
        at_once=2,
        in_flight=3,
        bytes_per_s=min(cluster.bytes_per_s, cluster.store_bytes_per_s / nodes),
    )


def clip_cost(rates: Rates, storage: str) -> ClipCost:
    """What a clip costs beside decoding, by how frames are stored."""
    return ClipCost(rates.jpeg if storage == "jpeg" else 0.0, rates.search, rates.pack, rates.stored[storage])


def shard_cost(shard: Shard, rates: Rates) -> tuple[PieceCost, ...]:
    """A shard in the pieces that are handed out to decoders."""
    return tuple(
        PieceCost(part.video, part.clips, part.taken, rates.decode.of(part) * _luck(part.video, rates), part.fetched)
        for piece in shard.pieces
        for part in _cut(piece)
    )


def _cut(piece: Piece) -> Iterator[Piece]:
    """Runs of whole chunks (clips of the same frames) of at most PIECE_FRAMES frames, at least one."""
    starts = piece.rows["start"].to_numpy()
    frames = int(piece.rows["frames"].iloc[0])
    begin = 0
    while begin < len(starts):
        end = begin
        while end < len(starts):
            chunk_end = end + 1
            while chunk_end < len(starts) and starts[chunk_end] == starts[end]:
                chunk_end += 1
            if end > begin and (chunk_end - begin) * frames > PIECE_FRAMES:
                break
            end = chunk_end
        rows = piece.rows.iloc[begin:end]
        taken, decoded = frames_of(rows)
        yield replace(piece, rows=rows, taken=taken, decoded=decoded)
        begin = end


def _luck(video: int, rates: Rates) -> float:
    """How much more than the average of its kind a video costs, as those that were measured do; the same every time."""
    return random.Random(video).choice(rates.decode.spread)  # noqa: S311 (no secret)
