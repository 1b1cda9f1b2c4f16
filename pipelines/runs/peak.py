"""The matrix throughput a device reaches, measured: what a run's utilisation is a share of."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """The rate of a device's matrix multiplication: flops in operations a second, name saying what was measured."""

    flops: float
    name: str


def measure_peak(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.3) -> Peak:
    """The best rate of a large matrix product, found by running it for a while: what model FLOP utilisation is of."""
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
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if cuda else f"cpu, {threads} thread{'s' * (threads > 1)}"
    return Peak(2 * size**3 / best, f"{str(dtype).removeprefix('torch.')} matmul {size} on {where}")
