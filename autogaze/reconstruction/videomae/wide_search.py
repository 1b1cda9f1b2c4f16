"""Greedy search with the learned reconstructor for many clips at once, as a GPU wants it.

It is the search of autogaze/reconstruction/videomae/search.py, the plain one: earlier frames are read once, and a try
is the tokens of the open frame alone. Here a try is a pair of a clip and a set of tokens, and the pairs of all clips
fill batches together. So a round of few candidates takes as many kernels as it does for a single clip. Keys and values
of earlier frames lie side by side, padded, since clips have other numbers of tokens.

Errors are those of the plain search but for rounding, which may depend on which clips are searched together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.attention import of_new_shapes

if TYPE_CHECKING:
    from autogaze.reconstruction.videomae.network import VideoMAENetwork

TOGETHER = 265
"""Pairs in one batch: as many as fill a GPU."""
_SPARE = 1.5  # times the width that the longest past needs, from which on pasts are moved together


class WideSearch:
    """See autogaze.reconstruction.base.Search. Errors are the losses themselves, float32, on the model's device."""

    def __init__(self, model: VideoMAENetwork, clips: Tensor) -> None:
        self._model, self._frames, self._t = model, clips, -1
        self._none = model.vocabulary.size  # where a clip took no token
        self._all = torch.arange(len(clips), device=clips.device)
        self._every = torch.arange(self._none, device=clips.device)
        self._held = self._all
        self._count = 0  # tokens of the open frame that each clip held has taken: the last columns of `_taken`
        self._taken = self._all.new_zeros(len(clips), 0)

    @torch.no_grad()
    def open(self, t: int) -> Tensor:
        """See Search."""
        model = self._model
        with model.own_precision():
            if t == 0:
                self._begin()
            elif self._taken.shape[1]:
                self._read_chosen()
            image = model.normalised(self._frames[:, t])
            pixels = model.patches(image)  # [B, V, pixels]
            self._inputs = model.embed(pixels, self._every, torch.full_like(self._every, t))
            self._slots = model.slot_positions(t)
            self._original = image.float()
            self._original_patches = pixels[:, -model.vocabulary.counts[-1] :].float()
            self._targets = model.frame_loss.targets(self._original)
            self._t, self._taken = t, self._taken[:, :0]
            return self._reopened(self._all)

    def keep(self, places: Tensor) -> None:
        """See Search."""
        self._held = self._held[places]

    @torch.no_grad()
    def errors(self, tokens: Tensor | None = None) -> Tensor:
        """See Search."""
        tried = self._every.expand(len(self._held), -1) if tokens is None else tokens
        chosen = self._chosen()
        sets = torch.cat((chosen[:, None].expand(-1, tried.shape[1], -1), tried[..., None]), dim=2)
        with self._model.own_precision():
            errors = self._errors_of(sets)
        return errors.masked_fill((chosen[:, None] == tried[..., None]).any(dim=2), math.inf)

    def take(self, tokens: Tensor) -> None:
        """See Search."""
        column = self._all.new_full((len(self._all), 1), self._none)
        self._taken = torch.cat((self._taken, column.index_copy(0, self._held, tokens[:, None])), dim=1)
        self._count += 1

    @torch.no_grad()
    def reopen(self, clips: Tensor) -> Tensor:
        """See Search."""
        with self._model.own_precision():
            return self._reopened(clips)

    def _reopened(self, clips: Tensor) -> Tensor:
        self._held, self._count = clips, 0
        self._taken = self._taken.index_fill(0, clips, self._none)
        return self._errors_of(clips.new_zeros(len(clips), 1, 0))[:, 0]

    def _chosen(self) -> Tensor:
        """Tokens of the open frame that the clips held have taken: int64 [n, count]."""
        return self._taken[self._held, self._taken.shape[1] - self._count :]

    # -- earlier frames ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The class token, which every token sees."""
        model, clips = self._model, len(self._all)
        cls, self._encoder = _read(model.vit.encoder.layer, model.cls(clips), None, None)
        cls = model.decoder.decoder_embed(model.vit.layernorm(cls)) + model.decoder.decoder_pos_embed[:, :1]
        _, self._decoder = _read(model.decoder.decoder_layers, cls, None, None)
        self._real = torch.ones(clips, 1, dtype=torch.bool, device=self._all.device)
        self._ragged = False

    def _read_chosen(self) -> None:
        """The frame that was open becomes part of the past, with the patches that each clip took of it alone."""
        model, real = self._model, self._taken < self._none
        ids = self._taken.masked_fill(~real, 0)
        self._real = torch.cat((self._real, real), dim=1)
        mask = _added(self._real, self._inputs.dtype)
        x = self._inputs.gather(1, ids[..., None].expand(-1, -1, self._inputs.shape[2]))
        x, self._encoder = _read(model.vit.encoder.layer, x, self._encoder, mask)
        x = model.decoder.decoder_embed(model.vit.layernorm(x)) + self._slots[ids]
        _, self._decoder = _read(model.decoder.decoder_layers, x, self._decoder, mask)
        counts = self._real.sum(dim=1).tolist()  # once a frame the host waits
        longest, shortest = max(counts), min(counts)
        if self._real.shape[1] > _SPARE * longest:
            order = (~self._real).int().argsort(dim=1, stable=True)[:, :longest]
            self._real = self._real.gather(1, order)
            self._encoder, self._decoder = (
                [_moved(both, order) for both in past] for past in (self._encoder, self._decoder)
            )
        self._ragged = self._real.shape[1] > shortest

    # -- tries -------------------------------------------------------------------------------------------------------

    def _errors_of(self, sets: Tensor) -> Tensor:
        """Errors [n, M] of the frame of each clip held for sets of its tokens, int64 [n, M, k]."""
        rows = self._held[:, None].expand(sets.shape[:2]).flatten()
        parts = zip(rows.split(TOGETHER), sets.flatten(0, 1).split(TOGETHER), strict=True)
        return torch.cat([self._errors_together(*part) for part in parts]).view(sets.shape[:2])

    def _errors_together(self, rows: Tensor, sets: Tensor) -> Tensor:
        """Errors [P] of pairs: the clip, int64 [P], and tokens of its open frame, int64 [P, k]."""
        model, size = self._model, self._none
        x = model.decoder.mask_token.expand(len(sets), size, -1)
        real = self._real[rows] if self._ragged else None
        if sets.shape[1]:
            tokens = self._inputs[rows[:, None], sets]
            tokens = _through(model.vit.encoder.layer, tokens, self._encoder, rows, real)
            tokens = model.decoder.decoder_embed(model.vit.layernorm(tokens))
            x = x.scatter(1, sets[..., None].expand(-1, -1, tokens.shape[2]), tokens)
        finest = slice(model.vocabulary.offsets[-1], None)
        x = _through(model.decoder.decoder_layers, x + self._slots, self._decoder, rows, real, finest)
        patches, loss = model.predict(x).float(), model.frame_loss
        if not loss.teachers:
            # The mean over patches is that over pixels, so the frame need not be put together.
            side = model.vocabulary.patch_size
            grid = patches.unflatten(2, (side * side, 3)).transpose(2, 3).flatten(2)  # the channel first
            difference: Tensor = (grid - self._original_patches[rows]).abs_().flatten(1)
            return loss.l1 * difference.mean(dim=1)
        targets = [features[rows] for features in self._targets]
        errors: Tensor = loss(model.unpatchify(patches), self._original[rows], targets)
        return errors


def _added(real: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention to keys [B, n]: 0 where they are real, minus infinity elsewhere: [B, 1, 1, n]."""
    mask = torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill_(~real, -torch.inf)
    return mask[:, None, None]


def _moved(past: Tensor, order: Tensor) -> Tensor:
    """Keys and values [B, 2, H, n, D] at places int64 [B, m]."""
    return past.gather(3, order[:, None, None, :, None].expand(-1, *past.shape[1:3], -1, past.shape[4]))


@of_new_shapes()
def _read(
    layers: nn.ModuleList, x: Tensor, past: list[Tensor] | None, mask: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Tokens x [B, n, hidden] after the layers, where they see the past and each other; and the past with them.

    A past is of each layer the keys and values, [B, 2, H, m, D].
    """
    read: list[Tensor] = []
    layer: Any
    for number, layer in enumerate(layers):
        queries, *own = layer.project(x)
        both = torch.stack(own, dim=1)
        if past is not None:
            both = torch.cat((past[number], both), dim=3)
        read.append(both)
        x = layer.finish(x, F.scaled_dot_product_attention(queries, both[:, 0], both[:, 1], attn_mask=mask))
    return x, read


@of_new_shapes()
def _through(
    layers: nn.ModuleList, x: Tensor, past: list[Tensor], rows: Tensor, real: Tensor | None, wanted: slice | None = None
) -> Tensor:
    """Tokens x [P, n, hidden] of pairs after the layers; after the last one, only the wanted tokens.

    past: of all clips; each pair sees that of its own clip, int64 [P], where it is real, bool [P, m] (None: all of it).
    """
    mask = None
    if real is not None:
        mask = _added(torch.cat((real, real.new_ones(len(x), x.shape[1])), dim=1), x.dtype)
    layer: Any
    for number, layer in enumerate(layers):
        queries, *own = layer.project(x)
        if wanted is not None and number == len(layers) - 1:
            queries, x = queries[:, :, wanted], x[:, wanted]
        both = torch.cat((past[number][rows], torch.stack(own, dim=1)), dim=3)
        x = layer.finish(x, F.scaled_dot_product_attention(queries, both[:, 0], both[:, 1], attn_mask=mask))
    return x
