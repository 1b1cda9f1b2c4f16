"""Greedy search with the refiner: the error of a frame for each patch it might take next.

Each try is one pass of the network over the frame. Tries are many, so `autogaze.greedy.label` is best given
`candidates=`: those that the canvas finds best, as the refiner begins as the canvas and corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from autogaze.reconstruction.refiner.memory import Memory
from autogaze.reconstruction.refiner.steps import RefinerSteps

_TOGETHER, _WIDE = 16, 64  # tries in one batch, and on a GPU: what is known of each is about a megabyte


class RefinerSearch:
    """See autogaze.reconstruction.base.Search. Errors are the losses, float64: those of `Refiner.reconstruct`."""

    def __init__(self, model: RefinerSteps, clips: Tensor) -> None:
        self._model, self._frames, self._t = model, clips, -1
        self._all = torch.arange(len(clips), device=clips.device)
        self._held = self._all
        self._memory = self._opened = model.painter.nothing(len(clips), -1, clips.device)
        self._taken = torch.zeros(len(clips), model.vocabulary.size, dtype=torch.bool, device=clips.device)
        self._views: Tensor | None = None  # of the open frame, once a patch of a clip held is tried
        self._targets: list[Tensor] = []

    @torch.no_grad()
    def open(self, t: int) -> Tensor:
        """See Search."""
        if t != self._t + 1:
            raise ValueError(f"frames are opened one after another: {self._t + 1} comes next, not {t}")
        self._t, self._memory = t, self._memory.at_frame(t)
        self._opened = self._memory
        frames = self._frames[:, t]
        # One by one on a CPU, so that a clip's features do not depend on the others.
        found = [self._model.targets(part) for part in frames.split(len(frames) if self._model.wide else 1)]
        self._targets = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return self._reopened(self._all)

    @torch.no_grad()
    def reopen(self, clips: Tensor) -> Tensor:
        """See Search."""
        self._memory = self._memory.put(clips, self._opened[clips])
        return self._reopened(clips)

    def keep(self, places: Tensor) -> None:
        """See Search."""
        self._held = self._held[places]
        if self._views is not None:
            self._views = self._views[places]

    @torch.no_grad()
    def errors(self, tokens: Tensor | None = None) -> Tensor:
        """See Search."""
        held, every = self._held, torch.arange(self._model.vocabulary.size, device=self._all.device)
        tried = every.expand(len(held), -1) if tokens is None else tokens
        taken = self._taken[held].gather(1, tried)
        errors = torch.full(tried.shape, math.inf, dtype=torch.float64, device=self._all.device)
        for place, column in self._tries(taken):
            views = self._seen()[place]
            memory = self._model.painter.painted(self._memory[held[place]], tried[place, column], views)
            errors[place, column] = self._errors_of(held[place], memory)
        return errors.masked_fill(taken, math.inf)

    def take(self, tokens: Tensor) -> None:
        """See Search."""
        painted = self._model.painter.painted(self._memory[self._held], tokens, self._seen())
        self._memory = self._memory.put(self._held, painted)
        self._taken[self._held, tokens] = True

    def _reopened(self, clips: Tensor) -> Tensor:
        self._held, self._views = clips, None
        self._taken = self._taken.index_fill(0, clips, False)
        parts = clips.split(len(clips) if self._model.wide else 1)
        return torch.cat([self._errors_of(part, self._memory[part]) for part in parts])

    def _tries(self, taken: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Places among the clips held and columns, int64 [m] each, of tries that are measured together.

        taken: bool [n, M], of what would be tried. On a GPU all tries of all clips, one after another. On a CPU those
        of a clip that are not taken, so that the numbers are those that the clip has alone.
        """
        if self._model.wide:
            every = torch.arange(taken.numel(), device=taken.device)
            for part in every.split(_WIDE):
                yield part.div(taken.shape[1], rounding_mode="floor"), part % taken.shape[1]
            return
        for place, row in enumerate(taken):
            for columns in (~row).nonzero()[:, 0].split(_TOGETHER):
                yield torch.full_like(columns, place), columns

    def _seen(self) -> Tensor:
        """The open frame of each clip held, at each scale: uint8 [n, scales, S, S, 3]."""
        if self._views is None:
            self._views = self._model.canvas.views(self._frames[self._held, self._t])
        return self._views

    def _errors_of(self, clips: Tensor, memory: Memory) -> Tensor:
        """Errors float64 [m] of memories of the open frame, each of a clip, int64 [m]."""
        targets = [features[clips] for features in self._targets]
        return self._model.errors_of(self._model.pixels(memory), self._frames[clips, self._t], targets)
