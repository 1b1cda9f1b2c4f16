"""Frames encoded as they come: keys and values of what later frames see are kept, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autogaze.device import sent
from autogaze.gaze import Gaze
from autogaze.vision.attention import RowAttention, among
from autogaze.vision.encoded import EncoderParts, TokenFeatures
from autogaze.vision.plan import Plan


class StreamedEncoder(EncoderParts, Protocol):
    """What a stream asks of its encoder, which makes the stream."""

    attention: str
    width: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def prefix_count(self) -> int: ...

    def layers_wanted(self, hidden_states: bool | Sequence[int]) -> list[int]: ...

    def as_clips(self, frames: Tensor | np.ndarray) -> Tensor: ...

    def own_gaze(self, gaze: Gaze | None, clips: Tensor, convert: str | None) -> Gaze: ...

    def run(
        self, clips: Tensor, plan: Plan, attend: RowAttention, wanted: Sequence[int], carried: Tensor | None = None
    ) -> TokenFeatures: ...


class EncoderStream:
    """Clips of frames pushed one by one. Made by `GazedEncoder.stream`; each push equals its frame of the whole.

    What is kept of a clip: with block_causal attention the keys and values of all its rows, so that memory grows with
    the stream; with first_frame those of frame 0; with newest those of the patches that still show, at most one for
    each place of the finest grid; with frame none.
    """

    def __init__(self, encoder: StreamedEncoder, batch: int = 1) -> None:
        if batch < 1:
            raise ValueError(f"batch={batch}: a stream has at least 1 clip")
        self.encoder, self.batch, self.frames = encoder, batch, 0
        layers, places = len(encoder.family.layers(encoder.model)), encoder.vocabulary.counts[-1]
        self._memory = [_Memory(layers, places) for _ in range(batch)]
        self._newest: list[TokenFeatures | None] = [None] * batch  # of each clip, the frame with tokens
        self._map = torch.zeros(batch, places, encoder.width, device=encoder.device, dtype=encoder.dtype)

    @torch.no_grad()
    def push(
        self,
        frame: Tensor | np.ndarray,
        frame_gaze: Gaze | None = None,
        hidden_states: bool | Sequence[int] = False,
        convert: str | None = None,
    ) -> TokenFeatures:
        """The tokens of the next frame of each clip.

        frame: uint8 [H, W, 3] or floats [3, H, W], for a stream of one; or either with B in front.
        frame_gaze: of B clips of one frame; None: every patch of the finest scale. The rest as in
            `GazedEncoder.encode`.

        Raises ValueError, one line, for what makes no sense; the stream is then as it was.
        """
        given = frame[None] if frame.ndim == 3 and self.batch == 1 else frame
        if given.ndim != 4 or len(given) != self.batch:
            raise ValueError(
                f"a frame of shape {list(frame.shape)}: this stream has {self.batch} clips and wants uint8"
                f" [{self.batch}, H, W, 3] or floats [{self.batch}, 3, H, W]"
            )
        encoder = self.encoder
        wanted = encoder.layers_wanted(hidden_states)
        clips = encoder.as_clips(given[:, None])
        plan = Plan.of(encoder.own_gaze(frame_gaze, clips, convert), encoder.prefix_count, self.frames)
        bounds = list(pairwise([0, *plan.ends.tolist()]))
        newest = plan.newest()[:, 0]
        if encoder.attention == "newest":
            for memory, patch in zip(self._memory, newest, strict=True):
                memory.forget(patch >= 0)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = []
            for memory, (start, end) in zip(self._memory, bounds, strict=True):
                if start < end:
                    seen = memory.with_new(layer, key[start:end], value[start:end])
                    parts.append(among(query[start:end], *seen))
            return torch.cat(parts) if parts else query

        out = encoder.run(clips, plan, attend, wanted, self._map)
        for memory, patch, (start, end) in zip(self._memory, newest, bounds, strict=True):
            if encoder.attention == "newest":
                memory.keep_shown(patch, plan.row, start)
            elif encoder.attention == "block_causal" or (encoder.attention == "first_frame" and not self.frames):
                memory.used += end - start
        self._map = out.dense()[:, 0].flatten(1, 2)
        self.frames += 1
        told = replace(out, before=tuple(self._newest))
        for clip, length in enumerate(plan.lengths[:, 0].tolist()):
            if length:
                self._newest[clip] = out  # which holds nothing of the frames before it
        return told


class _Memory:
    """Keys and values of one clip's rows that later frames see, layer by layer, in buffers that double as they fill.

    used: rows that are kept. owner: int64 [places], on the CPU: the kept row that each place of the finest grid shows,
    or -1; of newest attention.
    """

    def __init__(self, layers: int, places: int) -> None:
        self.used = 0
        self.owner = torch.full((places,), -1)
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def with_new(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept and, after it, new rows [n, H, D], which are written there but not kept yet."""
        end = self.used + len(key)
        found = []
        for buffers, new in ((self._keys, key), (self._values, value)):
            buffer = buffers[layer]
            if buffer is None or len(buffer) < end:
                larger = new.new_empty(max(end, 2 * self.used), *new.shape[1:])
                if buffer is not None:
                    larger[: self.used] = buffer[: self.used]
                buffers[layer] = buffer = larger
            buffer[self.used : end] = new
            found.append(buffer[:end])
        return found[0], found[1]

    def forget(self, covered: Tensor) -> None:
        """Keep the rows that show at a place that is not covered: bool [places]."""
        self.owner[covered] = -1
        self._take(self.owner[self.owner >= 0].unique())

    def keep_shown(self, patch: Tensor, row: Tensor, start: int) -> None:
        """Keep also, of the new rows, patches that show.

        patch: int64 [places], the new patch that each place shows, or -1. row: the row of each patch; `start` is the
        first row of this clip.
        """
        there = patch >= 0
        shown = patch[there].unique()
        if not len(shown):
            return
        self.owner[there] = self.used + torch.searchsorted(shown, patch[there])
        new = self.used + row[shown] - start
        self._take(torch.cat((torch.arange(self.used), new)), renumber=False)

    def _take(self, rows: Tensor, renumber: bool = True) -> None:
        """Keep these rows of the buffers alone, rising."""
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = buffer[sent(rows, buffer.device)]
        if renumber:
            there = self.owner >= 0
            self.owner[there] = torch.searchsorted(rows, self.owner[there])
        self.used = len(rows)
