"""How many threads torch uses for work on single clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use this thread alone.

    The arrays of one clip are too small to share out. Where other processes use the same cores, threads that wait for
    each other made gazing at a clip three times as slow.
    """
    import torch  # here, not above: a job is checked before it is loaded

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
