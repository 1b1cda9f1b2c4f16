"""Decode steps as CUDA graphs: one launch in place of a hundred small kernels.

A graph always reads and writes the same memory. So there is one for each cache and number of keys (rounded up), and
each step copies its inputs to where the graph reads them. Between steps, the host only learns which rows go on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache as cached

import torch
from torch import Tensor

from autogaze.model.cache import PaddedCache
from autogaze.model.decoder import Decoder
from autogaze.model.sampling import Sampling, choose

Block = tuple[Tensor, Tensor, Tensor | None]
"""Of the next block: ids int64 [A, K], predicted losses [A, K], and log-probabilities [A, K] where they are sampled."""


class KeptSteps:
    """Keeps the graphed steps of earlier calls, since capturing is slow. Other weights make them useless.

    It keeps those of the last two numbers of rows: usually a batch and a smaller last one. A copy or a pickle of it is
    empty, since graphs belong to this process and this memory.
    """

    def __init__(self) -> None:
        self._weights: list[int] = []
        self._kept: dict[tuple[int, int | None], GraphedSteps] = {}  # the last used comes last

    def __reduce__(self) -> tuple[type[KeptSteps], tuple[()]]:
        return KeptSteps, ()

    def steps(self, decoder: Decoder, rows: int, room: int, sampling: Sampling | None) -> GraphedSteps:
        """Steps on an empty cache with room for at least `room` tokens in each of its rows."""
        weights = [parameter.data_ptr() for parameter in decoder.parameters()]
        if weights != self._weights:
            self._kept.clear()
            self._weights = weights
        key = rows, None if sampling is None else sampling.top_k or 0
        steps = self._kept.pop(key, None)
        if steps is None or steps.cache.capacity < room:
            steps = None  # frees its memory before the new cache is allocated
            for oldest in list(self._kept)[:-1]:
                del self._kept[oldest]
            weight = decoder.lm_head.weight
            cache = PaddedCache(decoder.config, rows, room, weight.device, weight.dtype)
            steps = GraphedSteps(decoder, cache, sampling)
        self._kept[key] = steps
        steps.reset(sampling)
        return steps


class GraphedSteps:
    """The decode steps of one cache. A step reads a block of K patches in every row, and chooses the next K.

    sampling: how patches are chosen. Seeds and temperature are inputs, so they may change from call to call.
    """

    def __init__(self, decoder: Decoder, cache: PaddedCache, sampling: Sampling | None) -> None:
        self.decoder, self.cache = decoder, cache
        self.sampling = None if sampling is None else replace(sampling, temperature=1.0, seeds=0)
        rows, block = len(cache.lengths), decoder.config.block_size
        device = cache.keys.device
        self._ids, self._places, self._positions = (
            torch.zeros(rows, block, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._taken = torch.zeros(rows, decoder.config.vocab_size, dtype=torch.bool, device=device)
        self._seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self._temperature = torch.ones((), device=device)
        self._wanted = torch.full((rows, 1), block - 1, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Block]] = {}
        self._memory = cache.keys.data_ptr()

    def reset(self, sampling: Sampling | None) -> None:
        """Empty the cache, and set the temperature."""
        self.cache.lengths = [0] * len(self.cache.lengths)
        if sampling is not None:
            self._temperature.fill_(sampling.temperature)

    def step(self, counts: list[int], ids: Tensor, taken: Tensor, seeds: Tensor | None, starts: list[int]) -> Block:
        """Read blocks `ids` [B, K] and choose the next of every row, whose ids are marked in `taken`, bool [B, ids].

        counts: tokens of each row, K or 0. starts: the position of each row's first token.
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
        if seeds is not None:
            self._seeds.copy_(seeds)
        if end not in self._graphs:
            self._taken.copy_(taken)
            self._graphs[end] = self._capture(end)
        self._taken.copy_(taken)
        graph, (next_ids, before, log_probs) = self._graphs[end]
        graph.replay()
        self.cache.end(range(len(counts)), counts)
        taken.copy_(self._taken)
        return next_ids.clone(), before.clone(), None if log_probs is None else log_probs.clone()

    def run(self, end: int) -> Block:
        """One step on the inputs where the graph reads them."""
        self.cache.set_places(self._places, self._wanted, end)
        x = self.decoder.embed(self._ids)
        hidden = self.decoder(x, self._positions, self.cache.attend, self._wanted)[:, -1]
        scores, seeds = self.decoder.scores(hidden), None
        if self.sampling is not None:
            scores, seeds = scores / self._temperature, self._seeds
        ids, log_probs = choose(scores, self._taken, self.sampling, seeds)
        self._taken.scatter_(1, ids, True)
        return ids, self.decoder.losses(hidden), log_probs

    def _capture(self, end: int) -> tuple[torch.cuda.CUDAGraph, Block]:
        # The first run is not captured: kernels load and libraries set themselves up then, which a capture forbids.
        # What it writes to the cache, the replay writes again.
        # The graphs of a cache share their memory. They run one after the other, and their results are copied at once.
        device = self.cache.keys.device
        stream, pool = _side_stream(device), next((graph.pool() for graph, _ in self._graphs.values()), None)
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.run(end)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                block = self.run(end)
        return graph, block


@cached
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for first runs and captures. There is only one, since libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)
