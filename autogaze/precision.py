"""Contexts in which float32 arithmetic stays float32, whatever the process allows. They hold for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast in matrix products, all of which would round whole numbers."""
    with (
        _ieee(torch.backends.cuda.matmul, torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """No TF32 or bfloat16 in convolutions of float32; by default PyTorch allows cuDNN to use TF32.

    This does not hold for gradients, which are computed after the context.
    """
    with _ieee(torch.backends.cudnn.conv, torch.backends.mkldnn.conv):  # type: ignore[attr-defined]
        yield


@contextmanager
def tf32_products(allowed: bool = True) -> Iterator[None]:
    """Matrix products of float32 by TF32 on a GPU, where that is allowed: operands are rounded to 10 bits.

    What `exact_products` and `exact_convolutions` hold stays exact. Gradients follow it only if they are computed
    within it.
    """
    backend: Any = torch.backends.cuda.matmul
    before = backend.fp32_precision
    try:
        if allowed:
            backend.fp32_precision = "tf32"
        yield
    finally:
        backend.fp32_precision = before


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
