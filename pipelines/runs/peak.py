"""The measured matrix throughput of a device: the denominator of a run's model FLOP utilisation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Peak:
    """The rate of a device's matrix products: flops in operations a second; name says what was measured."""

    flops: float
    name: str


def measure_peak(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.3) -> Peak:
    """The best rate of one large matrix product that is repeated for some seconds; a process measures it once."""
    return _measured(device, dtype, seconds, torch.get_num_threads())


@cache
def _measured(device: torch.device, dtype: torch.dtype, seconds: float, threads: int) -> Peak:
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1024
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        began = time.perf_counter()
        torch.mm(left, right)
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    where = torch.cuda.get_device_name(device) if cuda else f"cpu, {threads} thread{'s' * (threads > 1)}"
    return Peak(2 * size**3 / best, f"{str(dtype).removeprefix('torch.')} matmul {size} on {where}")
