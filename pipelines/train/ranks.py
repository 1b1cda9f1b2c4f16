"""The processes that train one model together, and what they agree on: sums, decisions, barriers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process as rank `rank` of `world`, on its device. All methods are collectives: every rank calls them.

    With a world of 1 they need no process group, and return what they were given.
    """

    rank: int
    world: int
    device: torch.device

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the ranks, in float64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def decide(self, decision: Callable[[], T]) -> T:
        """What `decision` returns on rank 0: for questions to storage, which may answer two ranks differently."""
        decided = [decision() if self.rank == 0 else None]
        if self.world > 1:
            dist.broadcast_object_list(decided, src=0)
        return cast(T, decided[0])

    def gather(self, mine: T) -> list[T]:
        """What each rank has, in order of ranks, on every rank."""
        if self.world == 1:
            return [mine]
        gathered: list[T | None] = [None] * self.world
        dist.all_gather_object(gathered, mine)
        return cast(list[T], gathered)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()
