"""Decode steps as CUDA graphs: the whole of a step, a hundred small kernels, is launched at once.

A graph reads and writes fixed memory, so it is captured once for a cache and a number of keys (rounded up), and its
inputs are copied in. Between two steps the host only learns which rows go on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.model.cache import PaddedCache
from autogaze.model.decoder import Decoder
from autogaze.model.sampling import Sampling, choose

Block = tuple[Tensor, Tensor, Tensor | None]
"""Of the next block: ids int64 [A, K], predicted losses [A, K], and log-probabilities [A, K] where they are sampled."""


class GraphedSteps:
    """The decode steps of one cache: read a block of K patches in every row, choose the next K."""

    def __init__(self, decoder: Decoder, cache: PaddedCache, sampling: Sampling | None) -> None:
        self.decoder, self.cache, self.sampling = decoder, cache, sampling
        rows, block = len(cache.lengths), decoder.config.block_size
        device = cache.keys.device
        self._ids, self._places, self._positions = (
            torch.zeros(rows, block, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._taken = torch.zeros(rows, decoder.config.vocab_size, dtype=torch.bool, device=device)
        self._seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self._wanted = torch.full((rows, 1), block - 1, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Block]] = {}
        self._memory = cache.keys.data_ptr()

    def step(self, counts: list[int], ids: Tensor, taken: Tensor, seeds: Tensor | None, starts: list[int]) -> Block:
        """As `Generation._step`: the next block of every row, whose ids become part of `taken`."""
        if self.cache.keys.data_ptr() != self._memory:  # it has grown, and what was captured knows its old place
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
        """The step itself, on the fixed inputs."""
        self.cache.set_places(self._places, self._wanted, end)
        x = self.decoder.embed(self._ids)
        hidden = self.decoder(x, self._positions, self.cache.attend, self._wanted)[:, -1]
        seeds = None if self.sampling is None else self._seeds
        ids, log_probs = choose(self.decoder.scores(hidden), self._taken, self.sampling, seeds)
        self._taken.scatter_(1, ids, True)
        return ids, self.decoder.losses(hidden), log_probs

    def _capture(self, end: int) -> tuple[torch.cuda.CUDAGraph, Block]:
        # Kernels load and libraries set themselves up on first use, which a capture does not allow. The run writes to
        # the cache what the replay will write there again.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(end)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            block = self.run(end)
        return graph, block
