"""Batches on their device ahead of their step: while a GPU learns from one, the frames of the next are copied to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pipelines.loading.reading import Batch


def fed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, their frames on the device, as uint8.

    For a GPU each batch is taken one step early and copied on a stream of its own, out of pinned memory
    (LoaderConfig.pinned), so that the copy waits for nothing and nothing waits for it. On a CPU they are as they come.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = replace(batch, frames=batch.frames.to(device, non_blocking=True))
        following = batch, copied, stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = following
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(pinned: Batch, copied: Batch, event: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch that was copied. pinned: where from, which must not be freed before."""
    event.synchronize()  # it began a step ago
    copied.frames.record_stream(torch.cuda.current_stream(device))
    return copied
