"""Keep float32 arithmetic in float32, whatever the process allows elsewhere. Process-wide while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast in matrix products: where a caller uses them, they round integers."""
    with (
        _ieee(torch.backends.cuda.matmul, torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """No TF32 or bfloat16 in convolutions of float32: PyTorch allows cuDNN to use TF32 unless told otherwise.

    Gradients are computed later, and as the process allows then.
    """
    with _ieee(torch.backends.cudnn.conv, torch.backends.mkldnn.conv):  # type: ignore[attr-defined]
        yield


@contextmanager
def _ieee(*backends: Any) -> Iterator[None]:
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
