"""Greedy search with the learned reconstructor: the error of a frame for each patch it might take next.

The errors are exact. Causality makes them affordable: earlier frames are encoded and decoded once, and the keys and
values of every layer are kept. For each candidate, only the frame's own few gazed tokens go through the encoder again,
and its 265 slots through the decoder, all candidates in batches of the same size.

Clips are searched one by one, with shapes that depend on the clip alone, so that labels have the same bits whatever
batch or worker made them. The candidates of one clip fill a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.attention import KeysValues, of_new_shapes, past_and_own

if TYPE_CHECKING:
    from autogaze.reconstruction.videomae.network import VideoMAENetwork

_TOGETHER = {"cpu": 16, "cuda": 265}  # candidates in one batch: as many as a CPU's cache holds, or as fill a GPU


class VideoMAESearch:
    """See autogaze.reconstruction.base.Search. Errors are the losses themselves, float32."""

    def __init__(self, model: VideoMAENetwork, clips: Tensor) -> None:
        self._model = model
        self._all = [_ClipSearch(model, clip) for clip in clips]
        self._held = list(self._all)

    @torch.no_grad()
    def open(self, t: int) -> Tensor:
        """See Search."""
        self._held = list(self._all)
        with self._model.own_precision():
            return torch.stack([clip.open(t) for clip in self._held])

    def keep(self, places: Tensor) -> None:
        """See Search."""
        self._held = [self._held[place] for place in places.tolist()]

    @torch.no_grad()
    def errors(self, tokens: Tensor | None = None) -> Tensor:
        """See Search."""
        parts = [None] * len(self._held) if tokens is None else list(tokens)
        with self._model.own_precision():
            return torch.stack([clip.errors(part) for clip, part in zip(self._held, parts, strict=True)])

    def take(self, tokens: Tensor) -> None:
        """See Search."""
        for clip, token in zip(self._held, tokens.tolist(), strict=True):
            clip.take(token)

    @torch.no_grad()
    def reopen(self, clips: Tensor) -> Tensor:
        """See Search."""
        self._held = [self._all[number] for number in clips.tolist()]
        with self._model.own_precision():
            return torch.stack([clip.reopen() for clip in self._held])


@dataclass
class _Past:
    """What later tokens see of earlier ones: keys and values [1, H, m, D] of each layer."""

    layers: list[KeysValues]

    def extend(self, new: list[KeysValues]) -> None:
        self.layers = [
            (torch.cat((keys, more_keys), dim=2), torch.cat((values, more_values), dim=2))
            for (keys, values), (more_keys, more_values) in zip(self.layers, new, strict=True)
        ]


class _ClipSearch:
    """The search of one clip, uint8 [T, S, S, 3] on any device."""

    def __init__(self, model: VideoMAENetwork, frames: Tensor) -> None:
        self.model, self.frames, self.t = model, frames, -1
        self.device = model.decoder.mask_token.device
        self.chosen: list[int] = []
        self.inputs: Tensor  # [V, hidden] of the encoder, of the open frame
        self.slots: Tensor  # [V, hidden] of the decoder

    def open(self, t: int) -> Tensor:
        model = self.model
        if t == 0:
            cls = model.cls(1)
            cls, encoder = _read(model.vit.encoder.layer, cls, None)
            cls = model.decoder.decoder_embed(model.vit.layernorm(cls)) + model.decoder.decoder_pos_embed[:, :1]
            _, decoder = _read(model.decoder.decoder_layers, cls, None)
            self.encoder, self.decoder = _Past(encoder), _Past(decoder)
        elif self.chosen:
            # The previous frame becomes part of the past, with the patches it took alone.
            ids = torch.tensor([self.chosen], device=self.device)
            x, encoder = _read(model.vit.encoder.layer, self.inputs[ids], self.encoder)
            x = model.decoder.decoder_embed(model.vit.layernorm(x)) + self.slots[ids]
            _, decoder = _read(model.decoder.decoder_layers, x, self.decoder)
            self.encoder.extend(encoder)
            self.decoder.extend(decoder)
        self.t, self.chosen = t, []
        image = model.normalised(self.frames[t][None])
        every = torch.arange(model.vocabulary.size, device=self.device)
        pixels = model.patches(image)[0]
        self.inputs = model.embed(pixels, every, torch.full_like(every, t))
        self.slots = model.slot_positions(t)
        self.original = image.float()
        self.original_patches = pixels[-model.vocabulary.counts[-1] :].float()
        self.targets = model.frame_loss.targets(self.original)
        return self.reopen()

    def reopen(self) -> Tensor:
        self.chosen = []
        return self._errors_of(torch.zeros(1, 0, dtype=torch.int64, device=self.device))[0]

    def take(self, token: int) -> None:
        self.chosen.append(token)

    def errors(self, tokens: Tensor | None) -> Tensor:
        """Errors [V], or [M] of the tokens [M]; infinite for a token that is taken already."""
        size, taken = self.model.vocabulary.size, set(self.chosen)
        wanted = list(range(size)) if tokens is None else tokens.tolist()
        free = [place for place, token in enumerate(wanted) if token not in taken]
        errors = torch.full((len(wanted),), math.inf, device=self.device)
        if free:
            sets = torch.tensor([[*self.chosen, wanted[place]] for place in free], device=self.device)
            errors[torch.tensor(free, device=self.device)] = self._errors_of(sets)
        return errors

    def _errors_of(self, sets: Tensor) -> Tensor:
        """Error [C] of the frame for sets of its tokens, int64 [C, k]."""
        together = _TOGETHER.get(self.device.type, _TOGETHER["cpu"])
        return torch.cat([self._errors_together(part) for part in sets.split(together)])

    def _errors_together(self, sets: Tensor) -> Tensor:
        model = self.model
        x = model.decoder.mask_token.expand(len(sets), model.vocabulary.size, -1)
        if sets.shape[1]:
            tokens = _through(model.vit.encoder.layer, self.inputs[sets], self.encoder)
            tokens = model.decoder.decoder_embed(model.vit.layernorm(tokens))
            x = x.scatter(1, sets[..., None].expand(-1, -1, tokens.shape[2]), tokens)
        finest = slice(model.vocabulary.offsets[-1], None)
        x = _through(model.decoder.decoder_layers, x + self.slots, self.decoder, finest)
        patches = model.predict(x).float()
        loss = model.frame_loss
        if not loss.teachers:
            # The mean over patches is that over pixels, so the frame need not be put together.
            grid = self._as_original(patches)
            return loss.l1 * (grid - self.original_patches).abs_().flatten(1).mean(dim=1)
        frames = self.original.expand(len(sets), -1, -1, -1)
        errors: Tensor = loss(model.unpatchify(patches), frames, self._repeated(len(sets)))
        return errors

    def _as_original(self, patches: Tensor) -> Tensor:
        """Predicted patches, (y, x, channel), in the order of the original's, (channel, y, x)."""
        size = self.model.vocabulary.patch_size
        by_channel: Tensor = patches.unflatten(2, (size * size, 3)).transpose(2, 3)
        return by_channel.flatten(2)

    def _repeated(self, count: int) -> list[Tensor]:
        return [features.expand(count, -1, -1) for features in self.targets]


@of_new_shapes()
def _read(layers: nn.ModuleList, x: Tensor, past: _Past | None) -> tuple[Tensor, list[KeysValues]]:
    """Tokens x [1, n, hidden] after the layers, where they see the past and each other; and their keys and values."""
    read: list[KeysValues] = []
    layer: Any
    for number, layer in enumerate(layers):
        queries, keys, values = layer.project(x)
        read.append((keys, values))
        own = keys, values
        attended = (
            F.scaled_dot_product_attention(queries, *own)
            if past is None
            else past_and_own(queries, past.layers[number], own)
        )
        x = layer.finish(x, attended)
    return x, read


@of_new_shapes()
def _through(layers: nn.ModuleList, x: Tensor, past: _Past, wanted: slice | None = None) -> Tensor:
    """Tokens x [C, n, hidden] of C candidates after the layers; after the last one, only the wanted tokens."""
    layer: Any
    for number, layer in enumerate(layers):
        queries, keys, values = layer.project(x)
        if wanted is not None and number == len(layers) - 1:
            queries, x = queries[:, :, wanted], x[:, wanted]
        x = layer.finish(x, past_and_own(queries, past.layers[number], (keys, values)))
    return x
