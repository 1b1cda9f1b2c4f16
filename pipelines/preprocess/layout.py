"""How the workers of a job are laid out: how many actors, and how many decoders and gazers (or encoders) each has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class NodeRoom(NamedTuple):
    """CPUs and GPUs of a node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """Workers of a whole cluster.

    Attributes:
        decoders, gazers: how many.
        cpus, gpus: that all of them together ask for.
        on_gpu: whether gazers are on GPUs; then each has an actor to itself.
    """

    decoders: int
    gazers: int
    cpus: float
    gpus: float = 0.0
    on_gpu: bool = False


@dataclass(frozen=True)
class Layout:
    """So many actors, each with so many decoders and gazers, that each ask Ray for so many CPUs and GPUs."""

    actors: int
    decoders: int
    gazers: int
    cpus: float
    gpus: float = 0.0


def lay_out(wanted: Wanted, shards: int, nodes: Sequence[NodeRoom]) -> Layout:
    """Lay out the workers of a job that is to make so many shards.

    A shard is made by one actor on one node, so there are no more actors than shards. Where these are few, an actor has
    more workers, as many as a node has room for; where nodes are small, each has an actor.
    """
    most = wanted.gazers if wanted.on_gpu else max(wanted.gazers, len(nodes))
    actors = max(1, min(most, shards))
    gpus, share = wanted.gpus / actors if not wanted.on_gpu else wanted.gpus / wanted.gazers, 1.0
    while sum(_room(node, wanted.cpus / actors * share, gpus) for node in nodes) < actors and share > 1 / 1024:
        share *= 0.95
    decoders, gazers = (max(1, int(count / actors * share + 1e-9)) for count in (wanted.decoders, wanted.gazers))
    return Layout(actors, decoders, 1 if wanted.on_gpu else gazers, wanted.cpus / actors * share, gpus)


def _room(node: NodeRoom, cpus: float, gpus: float) -> int:
    """Actors that fit on a node."""
    room = node.cpus / cpus if cpus else math.inf
    if gpus:
        room = min(room, node.gpus / gpus)
    return int(min(room + 1e-9, 1e6))
