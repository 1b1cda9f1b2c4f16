"""Shards over the actors of a cluster, as Ray Data hands them out, in simulated time.

Each actor has up to `in_flight` shards at a time, of which it makes the first; one that has finished a shard is given
the next of the queue. So at the end some actors wait while others have a shard left that they have not begun.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy


@dataclass(frozen=True)
class Schedule:
    """Who made which shard, and when: arrays of a number for each shard.

    Attributes:
        worker, node: the actor that made it, and where that was.
        ends: when it was committed, in seconds since the first began.
    """

    worker: np.ndarray
    node: np.ndarray
    ends: np.ndarray

    @property
    def seconds(self) -> float:
        """Until the last commit."""
        return float(self.ends.max(initial=0.0))

    def last_of_workers(self) -> np.ndarray:
        """When each actor that had a shard committed its last."""
        last = np.zeros(int(self.worker.max(initial=-1)) + 1)
        np.maximum.at(last, self.worker, self.ends)
        return last


def schedule_shards(
    seconds: Callable[[int], float] | Sequence[float], shards: int, nodes: int, actors: int, in_flight: int
) -> Schedule:
    """Make shards 0 to `shards` - 1. seconds: what each takes of an actor. actors: on all nodes together."""
    cost = seconds if callable(seconds) else seconds.__getitem__
    env = simpy.Environment()
    inboxes = [simpy.Store(env) for _ in range(actors)]
    made_by, ends = np.zeros(shards, np.int64), np.zeros(shards)
    queue = iter(range(shards))

    def hand_out(worker: int) -> None:
        shard = next(queue, None)
        if shard is not None:
            inboxes[worker].put(shard)

    def work(worker: int) -> Generator[simpy.Event, int, None]:
        while True:
            shard = yield inboxes[worker].get()
            yield env.timeout(cost(shard))
            made_by[shard], ends[shard] = worker, env.now
            hand_out(worker)

    for worker in range(actors):
        env.process(work(worker))
    for _ in range(in_flight):
        for worker in range(actors):
            hand_out(worker)
    env.run()
    return Schedule(made_by, made_by % nodes, ends)
