"""What ranks agree on together: sums, decisions, barriers. With one rank, each is the value itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


def summed(values: list[float], device: torch.device, world: int) -> list[float]:
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def agree(decide: Callable[[], tuple[int, int]], rank: int, world: int, device: torch.device) -> tuple[int, int]:
    """What rank 0 decides. All ranks must take the same, and storage may answer two of them differently."""
    decided = [decide() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(decided, src=0)
    assert decided[0] is not None
    return decided[0]


def gathered(mine: T, world: int) -> list[T]:
    """What each rank has, on every rank."""
    if world == 1:
        return [mine]
    every: list[T | None] = [None] * world
    dist.all_gather_object(every, mine)
    return cast(list[T], every)


def barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
