"""Batches on their device ahead of their step: while a GPU learns from one, the next is copied to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch

from pipelines.loading.reading import Batch

T = TypeVar("T")


def fed(batches: Iterator[Batch], device: torch.device, ahead: Callable[[Batch], None]) -> Iterator[Batch]:
    """The same batches, their frames on the device, as uint8.

    For a GPU each batch is taken one step early and copied on a stream of its own, out of pinned memory
    (LoaderConfig.pinned), so that the copy waits for nothing and nothing waits for it. A thread meanwhile does what can
    be done `ahead` with it (Task.ahead). On a CPU, where nothing else would be done meanwhile, they are as they come.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def copied(batch: Batch) -> tuple[Batch, Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            copy = replace(batch, frames=batch.frames.to(device, non_blocking=True))
        return batch, copy, stream.record_event()

    for arriving in worked_ahead(map(copied, batches), lambda one: ahead(one[1])):
        yield _arrived(*arriving, device)


def worked_ahead(items: Iterator[T], work: Callable[[T], None]) -> Iterator[T]:
    """The same items, each taken one early; a thread works on it while the one before is in use.

    What the work raises is raised in place of its item.
    """
    with ThreadPoolExecutor(1, "autogaze-ahead") as pool:
        waiting = None
        for item in items:
            following = item, pool.submit(work, item)
            if waiting is not None:
                waiting[1].result()
                yield waiting[0]
            waiting = following
        if waiting is not None:
            waiting[1].result()
            yield waiting[0]


def _arrived(pinned: Batch, copied: Batch, event: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch that was copied. pinned: where from, which must not be freed before."""
    event.synchronize()  # it began a step ago
    copied.frames.record_stream(torch.cuda.current_stream(device))
    return copied
