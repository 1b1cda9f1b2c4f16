"""How many threads torch takes for work on single clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch work in this thread alone: the arrays of one clip are too small to share, and where other processes
    use the same cores, threads that wait for each other made gazing a clip take three times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
