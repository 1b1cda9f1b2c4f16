"""Greedy search with the refiner: the error of a frame for each patch it might take next.

Each try is one pass of the network over the frame. Tries are many, so `autogaze.greedy.label` is best given
`candidates=`: those that the canvas finds best, as the refiner begins as the canvas and corrects it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autogaze.reconstruction.refiner.memory import Memory
from autogaze.reconstruction.refiner.steps import RefinerSteps


class RefinerSearch:
    """See autogaze.reconstruction.base.Search. Errors are the losses, float64: those of `Refiner.reconstruct`."""

    def __init__(self, model: RefinerSteps, clips: Tensor) -> None:
        self._all = [_ClipSearch(model, clip) for clip in clips]
        self._held = list(self._all)

    def open(self, t: int) -> Tensor:
        """See Search."""
        self._held = list(self._all)
        return torch.stack([clip.open(t) for clip in self._held])

    def reopen(self, clips: Tensor) -> Tensor:
        """See Search."""
        self._held = [self._all[number] for number in clips.tolist()]
        return torch.stack([clip.reopen() for clip in self._held])

    def keep(self, places: Tensor) -> None:
        """See Search."""
        self._held = [self._held[place] for place in places.tolist()]

    def errors(self, tokens: Tensor | None = None) -> Tensor:
        """See Search."""
        parts = [None] * len(self._held) if tokens is None else list(tokens)
        return torch.stack([clip.errors(part) for clip, part in zip(self._held, parts, strict=True)])

    def take(self, tokens: Tensor) -> None:
        """See Search."""
        for clip, token in zip(self._held, tokens.tolist(), strict=True):
            clip.take(token)


class _ClipSearch:
    """The search of one clip, uint8 [T, S, S, 3]."""

    def __init__(self, model: RefinerSteps, frames: Tensor) -> None:
        self.model, self.frames = model, frames
        self.memory = self.opened = model.painter.nothing(-1, frames.device)
        self.taken: set[int] = set()
        self.views: Tensor | None = None  # of the open frame, once a patch of it is tried
        self.targets: list[Tensor] = []

    @torch.no_grad()
    def open(self, t: int) -> Tensor:
        if t != self.memory.t + 1:
            raise ValueError(f"frames are opened one after another: {self.memory.t + 1} comes next, not {t}")
        self.opened, self.views = self.memory.at_frame(t), None
        self.targets = self.model.targets(self.frames[t : t + 1])
        return self.reopen()

    @torch.no_grad()
    def reopen(self) -> Tensor:
        self.memory, self.taken = self.opened, set()
        return self._errors_of([self.memory])[0]

    def take(self, token: int) -> None:
        self.memory = self._painted(token)
        self.taken.add(token)

    @torch.no_grad()
    def errors(self, tokens: Tensor | None) -> Tensor:
        """Errors [V], or [M] of the tokens [M]; infinite for a token that is taken already."""
        wanted = list(range(self.model.vocabulary.size)) if tokens is None else tokens.tolist()
        errors = torch.full((len(wanted),), math.inf, dtype=torch.float64, device=self.frames.device)
        free = [place for place, token in enumerate(wanted) if token not in self.taken]
        for begin in range(0, len(free), _TOGETHER):  # a memory is about a megabyte
            part = free[begin : begin + _TOGETHER]
            tried = self._errors_of([self._painted(wanted[place]) for place in part])
            errors[torch.tensor(part, device=errors.device)] = tried
        return errors

    def _painted(self, token: int) -> Memory:
        if self.views is None:
            self.views = self.model.canvas.views(self.frames[self.memory.t : self.memory.t + 1])[0]
        return self.model.painter.painted(self.memory, token, self.views)

    def _errors_of(self, memories: list[Memory]) -> Tensor:
        rebuilt = self.model.pixels(memories)
        frames = self.frames[self.memory.t].expand(len(memories), -1, -1, -1)
        targets = [features.expand(len(memories), -1, -1) for features in self.targets]
        return self.model.errors_of(rebuilt, frames, targets)


_TOGETHER = 16
