"""Verified gaze: the policy chooses, and a reconstructor measures whether the threshold is met.

A policy alone ends a frame where it predicts that the error is low enough, and predictions are off. Here the error is
measured after every token, so a threshold is kept, and a frame that needs nothing gets nothing (docs/method.md, section
'Verified gaze'). Frame by frame, given what was kept of earlier frames:

1. A frame whose error is at or under the threshold gets no token.
2. The policy's tokens are measured one after another, and the first that meets the threshold ends the frame. What it
   chose before it would have stopped by itself is the prefix, what comes after is the continuation: the rest of that
   block, and `go_on` more blocks of the same state.
3. Then greedy search goes on, up to the frame's cap.
4. A frame that is still missed is gazed at anew by greedy search alone: the policy's patches may have used up the cap.

So a frame ends over the threshold only where greedy search, given the same past, does not meet it within the cap. The
policy's cache and the reconstructor's past hold what was kept and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.greedy import checked_limit, smallest
from autogaze.reconstruction.base import Reconstructor, as_clips
from autogaze.reconstruction.canvas import Canvas

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

PREFIX, CONTINUATION, GREEDY = range(3)
"""Where a token comes from: the columns of Gaze.origins."""


def gaze(
    frames: Tensor | np.ndarray,
    policy: AutoGaze,
    reconstructor: Reconstructor,
    *,
    threshold: float,
    max_ratio: float | Sequence[float] = 1.0,
    stops: Any = None,
    go_on: int = 0,
    candidates: int | None = None,
) -> Gaze:
    """The verified gaze of uint8 clips [B, T, S, S, 3], with the measured error before and after every token.

    threshold: of the measured error, in the reconstructor's units. max_ratio: the cap, as the policy takes it.
    stops: where the policy would stop by itself, as predicted losses in its own units: a number, one for each frame
        [T], or [B, 1] or [B, T]. A calibration gives them. None: the threshold. It decides when search takes over, and
        nothing about what is met.
    go_on: blocks that the policy goes on for after the one in which it would have stopped.
    candidates: greedy search tries only so many patches, those that canvas finds best, and all where none of them
        lowers the error. None: all.

    The reconstructor works on the frames' device; the gaze is on the CPU, with `origins` and without unused slots. A
    clip's gaze does not depend on the rest of the batch. Raises ValueError for frames, networks and limits that do not
    fit.
    """
    # Here, not above: the policy is imported by those who have one.
    from autogaze.model.limits import frame_caps, frame_thresholds

    clips = as_clips(frames, reconstructor.vocabulary)
    if policy.vocabulary != reconstructor.vocabulary:
        raise ValueError(
            f"the policy chooses from {policy.vocabulary}, the reconstructor rebuilds from {reconstructor.vocabulary}"
        )
    if go_on < 0 or (candidates is not None and candidates < 1):
        raise ValueError(f"go_on={go_on}, candidates={candidates}: wanted go_on from 0 up, candidates from 1 up")
    limit = checked_limit(reconstructor, threshold)
    rows, length = clips.shape[:2]
    caps = frame_caps(max_ratio, length, policy.vocabulary)
    stopping = frame_thresholds(threshold if stops is None else stops, rows, length)
    assert stopping is not None
    with torch.inference_mode():
        vision = policy.encode(clips).tokens
        run = _Run(clips, policy, reconstructor, limit, caps, go_on, candidates)
        found = [run.frame(t, vision[:, t], stopping[:, t].tolist()) for t in range(length)]
    # Outside inference mode, so that users get ordinary tensors.
    by_clip = [found[t][row] for row in range(rows) for t in range(length)]
    origins = [torch.bincount(torch.tensor(each.origins, dtype=torch.int64), minlength=3) for each in by_clip]
    return Gaze(
        tokens=torch.tensor([token for each in by_clip for token in each.tokens], dtype=torch.int64),
        lengths=torch.tensor([len(each.tokens) for each in by_clip]).view(rows, length),
        losses=reconstructor.loss(torch.tensor([e for each in by_clip for e in each.after], dtype=torch.float64)),
        initial=reconstructor.loss(torch.tensor([each.before for each in by_clip], dtype=torch.float64)).view(
            rows, length
        ),
        vocabulary=policy.vocabulary,
        origins=torch.stack(origins).view(rows, length, 3),
    )


@dataclass
class _Frame:
    """One frame's gaze of one clip. before, after: errors of the search, exact in a Python float."""

    before: float
    tokens: list[int] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)

    @property
    def error(self) -> float:
        return self.after[-1] if self.after else self.before

    def forget(self) -> None:
        """Take all tokens back."""
        self.tokens, self.after, self.origins = [], [], []


class _Run:
    """B clips that are being gazed at, all at the same frame and, within it, at the same slot."""

    def __init__(
        self,
        clips: Tensor,
        policy: AutoGaze,
        reconstructor: Reconstructor,
        limit: float,
        caps: list[int],
        go_on: int,
        candidates: int | None,
    ) -> None:
        self.device, self.limit, self.caps, self.candidates = clips.device, limit, caps, candidates
        self.block = policy.config.block_size
        self.going_on = go_on * self.block
        self.proposals = policy.propose(len(clips), caps)
        self.search = reconstructor.search(clips)
        self.guide = None if candidates is None else Canvas(reconstructor.vocabulary).search(clips)
        self.held: list[int] = []  # clips that still gaze at the frame

    def frame(self, t: int, vision: Tensor, stops: list[float]) -> list[_Frame]:
        """Gaze at frame t, the next one, of all clips. vision: its tokens. stops: predicted losses, one a clip."""
        frames = [_Frame(error) for error in self.search.open(t).tolist()]
        if self.guide is not None:
            self.guide.open(t)
        self.proposals.open(vision, self.caps[t])
        self.held = list(range(len(frames)))
        self._drop([frame.error <= self.limit for frame in frames])
        self._by_policy(frames, self.caps[t], stops)
        anew = [row for row, frame in enumerate(frames) if frame.error > self.limit]
        if anew:
            self._reopen(anew)
            for row in anew:
                frames[row].forget()
            for _ in range(self.caps[t]):
                self._step(frames, {})
        self.proposals.keep([frame.tokens for frame in frames], anew)
        return frames

    def _by_policy(self, frames: list[_Frame], cap: int, stops: list[float]) -> None:
        """The policy's tokens, and greedy ones after them, until all clips have met the limit or reached the cap."""
        proposed: dict[int, list[int]] = {}  # the last block of the clips whose policy chooses
        would_stop: dict[int, int] = {}  # the slot at which a clip's policy would have stopped by itself
        for slot in range(cap):
            place = slot % self.block
            if place == 0:
                wanted = [row for row in self.held if slot < self._end(would_stop.get(row))]
                if slot and wanted:
                    self.proposals.go_on(wanted)
                proposed = self._proposed(wanted, slot, stops, would_stop) if wanted else {}
            chosen = {
                row: (block[place], PREFIX if slot < would_stop.get(row, cap) else CONTINUATION)
                for row, block in proposed.items()
                if row in self.held
            }
            self._step(frames, chosen)
            if not self.held:
                return

    def _end(self, would_stop: int | None) -> float:
        """The slot up to which a clip's policy chooses, given that at which it would have stopped."""
        return float("inf") if would_stop is None else (would_stop // self.block + 1) * self.block + self.going_on

    def _proposed(
        self, rows: list[int], slot: int, stops: list[float], would_stop: dict[int, int]
    ) -> dict[int, list[int]]:
        ids, before = self.proposals.proposed()
        places = rows if slot == 0 else range(len(rows))  # a frame's first block is proposed to all clips
        for row, place in zip(rows, places, strict=True):
            hits = [k for k, loss in enumerate(before[place].tolist()) if loss <= stops[row] and slot + k]
            if hits:  # the frame's first slot is exempt, as in plain generation
                would_stop.setdefault(row, slot + hits[0])
        return {row: ids[place].tolist() for row, place in zip(rows, places, strict=True)}

    def _step(self, frames: list[_Frame], chosen: dict[int, tuple[int, int]]) -> None:
        """One more token for each clip held: the chosen (token, origin), or the best by search.

        Clips that have met the limit then, and those whose error no token lowers, are held no longer.
        """
        if not self.held:
            return
        greedy = [row not in chosen for row in self.held]
        best = self._best(frames, chosen) if any(greedy) else []
        tokens = torch.tensor(
            [chosen[row][0] if row in chosen else best[place] for place, row in enumerate(self.held)],
            device=self.device,
        )
        # Measured by itself, so that the error has the very bits that measuring the gaze again will give.
        after = self.search.errors(tokens[:, None])[:, 0].tolist()
        if self.guide is not None:
            self.guide.errors()
        stuck = [
            by_search and not error < frames[row].error
            for row, by_search, error in zip(self.held, greedy, after, strict=True)
        ]
        tokens = tokens[[place for place, stays in enumerate(stuck) if not stays]]
        after = [error for error, stays in zip(after, stuck, strict=True) if not stays]
        self._drop(stuck)
        if not self.held:
            return
        self.search.take(tokens)
        if self.guide is not None:
            self.guide.take(tokens)
        for row, token, error in zip(self.held, tokens.tolist(), after, strict=True):
            frame = frames[row]
            frame.tokens.append(token)
            frame.after.append(error)
            frame.origins.append(chosen[row][1] if row in chosen else GREEDY)
        self._drop([error <= self.limit for error in after])

    def _best(self, frames: list[_Frame], chosen: dict[int, tuple[int, int]]) -> list[int]:
        """Of each clip held the token that leaves the least error; of those with a chosen one, any."""
        if self.guide is not None and self.candidates is not None:
            tried = smallest(self.guide.errors(), self.candidates)
            errors = self.search.errors(tried)
            least, place = errors.min(dim=1)
            helps = zip(self.held, least.tolist(), strict=True)
            if all(row in chosen or error < frames[row].error for row, error in helps):
                return tried.gather(1, place[:, None])[:, 0].tolist()
        return self.search.errors().argmin(dim=1).tolist()

    def _drop(self, done: list[bool]) -> None:
        """Hold these clips, of those held, no longer."""
        if not any(done):
            return
        places = [place for place, each in enumerate(done) if not each]
        self.held = [self.held[place] for place in places]
        kept = torch.tensor(places, dtype=torch.int64, device=self.device)
        self.search.keep(kept)
        if self.guide is not None:
            self.guide.keep(kept)

    def _reopen(self, rows: list[int]) -> None:
        """Hold these clips, without any token of the frame."""
        self.held = rows
        clips = torch.tensor(rows, device=self.device)
        self.search.reopen(clips)
        if self.guide is not None:
            self.guide.reopen(clips)
