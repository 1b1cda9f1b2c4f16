"""CUDA graphs: one launch in place of a hundred small kernels.

A graph always reads and writes the same memory, and whatever Python decided when it was captured stays decided. So the
work of a graph takes its inputs from tensors that stay where they are and leaves its results in such tensors, and a
step that differs in shapes, such as in the number of keys it reads, is another graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache as cached
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from autogaze.model.cache import PaddedCache
from autogaze.model.decoder import Decoder
from autogaze.model.sampling import choose

Kind = TypeVar("Kind")


class Graphs:
    """Does pieces of work on fixed memory: kernel by kernel for the first time, and as a graph from then on.

    They share the memory of what they compute on the way, so they run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: dict[Hashable, Any] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do it. key: what tells this work from other work done here."""
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        else:
            self._graphs[key] = self._capture(work)

    def clear(self) -> None:
        """Forget all graphs: memory that they know has moved."""
        self._graphs.clear()

    def _capture(self, work: Callable[[], None]) -> Any:
        # The first time nothing is captured: kernels load and libraries set themselves up then, which a capture
        # forbids. The capture itself computes nothing.
        stream, pool = _side_stream(self.device), next((graph.pool() for graph in self._graphs.values()), None)
        with torch.cuda.device(self.device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        return graph


class Kept(Generic[Kind]):
    """Keeps what has graphs from call to call, since capturing is slow.

    It keeps those of the last two keys: usually of a batch and of a smaller last one. A copy or a pickle of it is
    empty, since graphs belong to this process and this memory.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Kind] = {}  # the last used comes last

    def __reduce__(self) -> tuple[type[Kept[Kind]], tuple[()]]:
        return type(self), ()

    def take(self, key: Hashable, fits: Callable[[Kind], bool], make: Callable[[], Kind]) -> Kind:
        """What is kept under a key, if it fits, or else a new one."""
        found = self._kept.pop(key, None)
        if found is not None and not fits(found):
            found = None  # frees its memory before the new one is allocated
        if found is None:
            for oldest in list(self._kept)[:-1]:
                del self._kept[oldest]
            found = make()
        self._kept[key] = found
        return found

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()


class KeptSteps(Kept["GraphedSteps"]):
    """Of a decoder's steps. Their graphs read its weights, so weights in other memory make them useless."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: list[int] = []

    def steps(self, decoder: Decoder, rows: int, room: int) -> GraphedSteps:
        """Steps on an empty cache with room for at least `room` tokens in each of its rows."""
        weights = [parameter.data_ptr() for parameter in decoder.parameters()]
        if weights != self._weights:
            self.clear()
            self._weights = weights
        weight = decoder.lm_head.weight

        def make() -> GraphedSteps:
            return GraphedSteps(decoder, PaddedCache(decoder.config, rows, room, weight.device, weight.dtype))

        steps = self.take(rows, lambda steps: steps.cache.capacity >= room, make)
        steps.cache.lengths = [0] * rows
        return steps


class GraphedSteps:
    """The decode steps of one cache. A step reads a block of K patches in every row, and chooses the best next K."""

    def __init__(self, decoder: Decoder, cache: PaddedCache) -> None:
        self.decoder, self.cache = decoder, cache
        rows, block = len(cache.lengths), decoder.config.block_size
        device = cache.keys.device
        self._ids, self._places, self._positions = (
            torch.zeros(rows, block, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._before = torch.zeros(rows, block, device=device)
        self._taken = torch.zeros(rows, decoder.config.vocab_size, dtype=torch.bool, device=device)
        self._wanted = torch.full((rows, 1), block - 1, device=device)
        self._graphs = Graphs(device)
        self._memory = cache.keys.data_ptr()

    def step(self, counts: list[int], ids: Tensor, taken: Tensor, starts: list[int]) -> tuple[Tensor, Tensor]:
        """Read blocks `ids` [B, K]. Chooses the next of every row, [B, K], and predicts the loss before each, [B, K].

        counts: tokens of each row, K or 0. starts: the position of each row's first token. taken: bool [B, ids], what a
        row has; what it chooses is marked there.
        """
        if self.cache.keys.data_ptr() != self._memory:  # it has grown: the graphs write to where it was
            self._graphs.clear()
            self._memory = self.cache.keys.data_ptr()
        places, end = self.cache.plan(counts, ids.shape[1])
        within = torch.arange(ids.shape[1])
        first = torch.tensor([start if count else 0 for start, count in zip(starts, counts, strict=True)])
        self._ids.copy_(ids)
        self._places.copy_(places, non_blocking=True)
        self._positions.copy_(first[:, None] + within, non_blocking=True)
        self._taken.copy_(taken)
        self._graphs.run(end, lambda: self._run(end))
        self.cache.end(range(len(counts)), counts)
        taken.copy_(self._taken)
        return self._ids.clone(), self._before.clone()

    def _run(self, end: int) -> None:
        """One step on the inputs where the graph reads them."""
        self.cache.set_places(self._places, self._wanted, end)
        x = self.decoder.embed(self._ids)
        hidden = self.decoder(x, self._positions, self.cache.attend, self._wanted)[:, -1]
        ids, _ = choose(self.decoder.scores(hidden), self._taken, None, None)
        self._taken.scatter_(1, ids, True)
        self._ids.copy_(ids)
        self._before.copy_(self.decoder.losses(hidden))


@cached
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for first runs and captures. There is only one, since libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)
