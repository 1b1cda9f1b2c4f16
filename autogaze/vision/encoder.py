"""A vision transformer on gazed patches only: packed rows, no padding, weights as transformers loaded them.

encoder = load("/models/siglip2-base", scales=(32, 64, 112, 224))
out = encoder.encode(frames, gaze)         # out.tokens [M, D], out.clip, out.frame, out.id, out.dense(), out.pool()
stream = encoder.stream()
for frame, frame_gaze in camera:
    out = stream.push(frame, frame_gaze)
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.device import constant, sent, usable_device
from autogaze.gaze import Gaze
from autogaze.hub import PREPROCESSOR
from autogaze.images import check_frames, require_numbers
from autogaze.patches import PatchVocabulary
from autogaze.quiet import quiet
from autogaze.vision import loading
from autogaze.vision.attention import MODES, RowAttention, Segments
from autogaze.vision.convert import by_coverage
from autogaze.vision.embeddings import GazeEmbeddings
from autogaze.vision.encoded import TokenFeatures
from autogaze.vision.families import Family, TransformerLayer
from autogaze.vision.plan import Plan
from autogaze.vision.rows import cut_rows
from autogaze.vision.stream import EncoderStream

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALES = (32, 64, 112, 224)

"""Attention of a layer, by its number: queries, keys and values [N, H, D] of the packed rows to [N, H, D]."""


def load(
    path_or_id: str | os.PathLike[str],
    scales: Sequence[int] = SCALES,
    attention: str = "block_causal",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GazedEncoder:
    """A vision transformer of a Hugging Face checkpoint, a folder or a hub id: its vision tower, whatever else it has.

    scales: sides in pixels that frames are seen at, rising, each a multiple of the encoder's patch, or its own size.
    attention: "block_causal" (a frame sees itself and all before), "frame" (itself), "first_frame" (itself and frame
        0), "newest" (itself and what of the frames before still shows around it).
    dtype: float32, bfloat16 or float16, of weights and arithmetic. device: nothing is chosen silently.

    Raises CheckpointError (a ValueError), one line, for what is no vision transformer known here, incomplete or not
    there, and where transformers is not installed; ValueError for scales, attention, device or dtype that do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}: wanted one of {', '.join(map(str, DTYPES))}")
    if attention not in MODES:
        raise ValueError(f"attention={attention!r}: wanted one of {', '.join(MODES)}")
    device = usable_device(device)
    found = loading.read(path_or_id, dtype)
    embeddings = None if found.embeddings is None else found.embeddings.to(device)
    encoder = GazedEncoder(found.family, found.model.to(device), found.normalisation, scales, attention, embeddings)
    encoder.preprocessor = found.preprocessor
    return encoder


class GazedEncoder(nn.Module):
    """A loaded vision transformer. Made by `load`; its weights are `model`, transformers' own, to train or to save.

    embeddings: learnt ones of scale and time, where the checkpoint has some, or training adds them.
    preprocessor: the checkpoint's preprocessor_config.json, which `save_pretrained` writes again.

    Weights need no gradients until `requires_grad_()`; then `encode` has them where they are on.
    """

    def __init__(
        self,
        family: Family,
        model: Any,
        normalisation: loading.Normalisation,
        scales: Sequence[int] = SCALES,
        attention: str = "block_causal",
        embeddings: GazeEmbeddings | None = None,
    ) -> None:
        super().__init__()
        if attention not in MODES:
            raise ValueError(f"attention={attention!r}: wanted one of {', '.join(MODES)}")
        self.family, self.model, self.normalisation, self.attention = family, model, normalisation, attention
        config = model.config
        self.vocabulary = _vocabulary(scales, config, family.name)
        self.heads = int(config.num_attention_heads)
        self.width = int(config.hidden_size)
        self.embeddings = embeddings
        self.preprocessor: bytes | None = None
        if embeddings is not None:
            embeddings.require(self.vocabulary)
        self._kept: tuple[object, _Tables] | None = None

    def sharing(self, scales: Sequence[int] | None = None, attention: str | None = None) -> GazedEncoder:
        """Another encoder on the same weights, of other scales or attention. Raises ValueError as `load` does."""
        chosen = self.attention if attention is None else attention
        wanted = self.vocabulary.scales if scales is None else scales
        shared = GazedEncoder(self.family, self.model, self.normalisation, wanted, chosen, self.embeddings)
        shared.preprocessor = self.preprocessor
        return shared

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint that `load` and transformers read; learnt embeddings are a file that only `load` reads."""
        with quiet(importlib.import_module("transformers")):
            self.model.save_pretrained(folder)
        if self.embeddings is not None:
            self.embeddings.write(Path(folder))
        if self.preprocessor is not None:
            (Path(folder) / PREPROCESSOR).write_bytes(self.preprocessor)

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of everything that changes results: weights with names, family, scales, attention, pixels."""
        facts = [self.family.name, self.vocabulary.scales, self.vocabulary.patch_size, self.attention]
        hashed = hashlib.sha256(json.dumps([*facts, self.normalisation, str(self.dtype), self.heads]).encode())
        learnt = {} if self.embeddings is None else self.embeddings.state_dict(prefix="gaze_embeddings.")
        for name, tensor in [*sorted(self.model.state_dict().items()), *sorted(learnt.items())]:
            tensor = tensor.detach().cpu().contiguous()
            hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return hashed.hexdigest()

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def rows_at_once(self) -> int:
        """Rows that go through a matrix product together: enough to be fast, and few enough to bound memory."""
        return 4096 if self.device.type == "cpu" else 65536

    def extra_repr(self) -> str:
        scales = "+".join(map(str, self.vocabulary.scales))
        return f"{self.family.name}, scales {scales}/{self.vocabulary.patch_size}, attention {self.attention}"

    # -- encoding ------------------------------------------------------------------------------------------------

    def encode(
        self,
        frames: Tensor | np.ndarray,
        gaze: Gaze | None = None,
        hidden_states: bool | Sequence[int] = False,
        convert: str | None = None,
    ) -> TokenFeatures:
        """Token features of the gazed patches of clips.

        frames: uint8 [B, T, H, W, 3], RGB of any size, squashed to the scales; or floats [B, T, 3, H, W] in the
            encoder's own normalisation (`normalisation`).
        gaze: of these clips, in the encoder's vocabulary; None: every patch of the finest scale. Frames may be empty.
        hidden_states: True for the embeddings and what each layer gives; or numbers of those wanted, as in a list:
            -2 is what the last layer but one gives.
        convert: "coverage" takes a gaze of another vocabulary, and encodes the patches of this one that show the same
            places (autogaze/vision/convert.py).

        A clip's tokens do not depend on the clips beside it. Raises ValueError, one line, for what makes no sense.
        """
        clips = self.as_clips(frames)
        plan = Plan.of(self.own_gaze(gaze, clips, convert), self.prefix_count)
        segments = Segments.of(plan, self.attention, self.device)
        return self.run(clips, plan, lambda _, *rows: segments.attend(*rows), self.layers_wanted(hidden_states))

    def stream(self, batch: int = 1) -> EncoderStream:
        """Encode frames as they come, of `batch` clips at once; equal to the whole clips."""
        return EncoderStream(self, batch)

    @property
    def prefix_count(self) -> int:
        """Tokens that each frame with patches has beside them: a class token, registers."""
        prefix = self.family.prefix(self.model)
        return 0 if prefix is None else len(prefix)

    # -- parts ---------------------------------------------------------------------------------------------------

    def as_clips(self, frames: Tensor | np.ndarray) -> Tensor:
        """Frames as `encode` takes them, checked, on the device: uint8 or floats [B, T, H, W, 3]. Raises ValueError."""
        clips = check_frames(frames).to(self.device)
        if clips.dtype == torch.uint8:
            return clips
        require_numbers(clips, "normalised pixels")
        return clips.movedim(2, -1)

    def own_gaze(self, gaze: Gaze | None, clips: Tensor, convert: str | None) -> Gaze:
        """The gaze of clips in this encoder's vocabulary; see `encode`. Raises ValueError."""
        if convert not in (None, "coverage"):
            raise ValueError(f"convert={convert!r}: wanted None, or 'coverage'")
        count, frames = clips.shape[:2]
        if gaze is None:
            finest = torch.arange(self.vocabulary.offsets[-1], self.vocabulary.size)
            lengths = torch.full((count, frames), len(finest))
            return Gaze(tokens=finest.repeat(count * frames), lengths=lengths, vocabulary=self.vocabulary)
        if not isinstance(gaze, Gaze):
            raise ValueError(
                f"the gaze is a {type(gaze).__name__}: wanted a Gaze; of lists of ids, one for each frame of each"
                " clip, Gaze.from_lists makes it"
            )
        if gaze.lengths.shape != (count, frames):
            raise ValueError(
                f"the frames are {count} clips of {frames} frames, the gaze is of {gaze.clips} of {gaze.num_frames}"
            )
        if gaze.vocabulary == self.vocabulary:
            return gaze
        if convert == "coverage":
            return by_coverage(gaze, self.vocabulary)
        raise ValueError(
            f"the gaze is of scales {_named(gaze.vocabulary)}, the encoder of {_named(self.vocabulary)}: their ids mean"
            " other patches; gaze in the encoder's vocabulary, load the encoder with these scales, or ask for"
            " convert='coverage'"
        )

    def layers_wanted(self, hidden_states: bool | Sequence[int]) -> list[int]:
        """Numbers from 0 (embeddings) to that of the last layer. Raises ValueError for one that is not there."""
        layers = len(self.family.layers(self.model))
        if isinstance(hidden_states, bool):
            return list(range(layers + 1)) if hidden_states else []
        if not isinstance(hidden_states, Sequence):
            raise ValueError(f"hidden_states={hidden_states!r}: wanted True, or a list of numbers, as [-2]")
        found = [number if number >= 0 else layers + 1 + number for number in hidden_states]
        if any(not 0 <= number <= layers for number in found):
            raise ValueError(f"hidden_states={list(hidden_states)}: there are {layers + 1}, 0 (embeddings) to {layers}")
        return found

    def run(
        self, clips: Tensor, plan: Plan, attend: RowAttention, wanted: Sequence[int], carried: Tensor | None = None
    ) -> TokenFeatures:
        """The tokens of a plan of clips, as `as_clips` gives them.

        attend: attention of each layer. wanted: hidden states, from `layers_wanted`. carried: see `TokenFeatures`.
        """
        layers = self.family.layers(self.model)
        learns = torch.is_grad_enabled() and (
            clips.requires_grad or any(weight.requires_grad for weight in self.parameters())
        )
        tables = self._tables(learns)
        step = plan.rows if learns else self.rows_at_once
        row = sent(plan.row, self.device)

        def patches(x: Tensor) -> Tensor:
            return x[row] if self.prefix_count else x

        x = self.embedded(clips, plan, tables, step)
        states = {0: patches(x)} if 0 in wanted else {}
        turn = tables.turned(plan)
        for number, layer in enumerate(layers):
            x = self._layer(layer, x, turn, lambda *rows, n=number: attend(n, *rows), step)
            if number + 1 in wanted:
                states[number + 1] = patches(x)
        norm = self.family.final_norm(self.model)
        if norm is not None:
            x = _by_rows(norm, step, x)
        return TokenFeatures(
            tokens=patches(x),
            plan=plan,
            hidden_states=[states[number] for number in wanted],
            prefix=self._prefix_of(x, plan),
            encoder=self,
            carried=carried,
        )

    def embedded(self, clips: Tensor, plan: Plan, tables: _Tables | None = None, step: int | None = None) -> Tensor:
        """Embeddings of all rows of a plan of clips, as `as_clips` gives them: [N, D]."""
        tables = self._tables(False) if tables is None else tables
        step = self.rows_at_once if step is None else step
        frames = clips.flatten(0, 1)
        mean, std = (constant(part, self.device) for part in self.normalisation)
        weight, bias = self.family.patch(self.model)

        def embed(place: Tensor, ids: Tensor, frame: Tensor) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):  # pixels are exact, whatever the network computes in
                rows = cut_rows(frames, place, ids, self.vocabulary, mean, std).to(weight.dtype)
            found = F.linear(rows, weight, bias)
            ids, frame = sent(ids, self.device), sent(frame, self.device)
            if tables.positions is not None:
                # Not an index, whose gradient is added up in an order that differs from run to run.
                found = found + F.embedding(ids, tables.positions)
            return found if self.embeddings is None else found + self.embeddings.of_frames(frame)

        x = _by_rows(embed, step, plan.place, plan.id, plan.frame)
        prefix = self.family.prefix(self.model)
        if prefix is not None:
            frames_with = len(plan.prefix_rows)
            rows = sent(torch.cat((plan.row, plan.prefix_rows.reshape(-1))), self.device)
            # One row after another as the plan has them: the inverse of where each goes.
            x = torch.cat((x, prefix.repeat(frames_with, 1).to(x.dtype)))[rows.argsort()]
        norm = self.family.first_norm(self.model)
        return x if norm is None else _by_rows(norm, step, x)

    def _layer(
        self,
        layer: TransformerLayer,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        step: int,
    ) -> Tensor:
        """One layer on packed rows [N, D]."""

        def project(x: Tensor) -> Tensor:
            normed = layer.norm1(x)
            return torch.stack([part(normed) for part in (layer.query, layer.key, layer.value)], dim=1)

        def finish(x: Tensor, seen: Tensor) -> Tensor:
            seen = layer.out(seen)
            x = x + (seen if layer.scale1 is None else layer.scale1(seen))
            changed = layer.mlp(layer.norm2(x))
            finished: Tensor = x + (changed if layer.scale2 is None else layer.scale2(changed))
            return finished

        query, key, value = _by_rows(project, step, x).unflatten(2, (self.heads, -1)).unbind(1)
        if turn is not None:
            query, key = _turned(query, *turn), _turned(key, *turn)
        seen = attend(query, key, value).flatten(1)
        del query, key, value
        return _by_rows(finish, step, x, seen)

    def _prefix_of(self, x: Tensor, plan: Plan) -> Tensor:
        """The frames' own tokens [B, T, P, D]; zero where a frame has no patch."""
        count = self.prefix_count
        tokens = x.new_zeros(plan.lengths.numel(), count, x.shape[1])
        if count:
            there = sent(plan.lengths.reshape(-1) > 0, x.device)
            tokens = tokens.masked_scatter(there[:, None, None], x[sent(plan.prefix_rows.reshape(-1), x.device)])
        return tokens.view(*plan.lengths.shape, count, x.shape[1])

    def _tables(self, learns: bool) -> _Tables:
        """Positions of all ids, kept while the weights they come from do not change; not kept while learning."""
        if learns:
            return _Tables.of(self)
        weights = [*self.model.embeddings.parameters(), *([] if self.embeddings is None else [self.embeddings.scale])]
        state = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (state, _Tables.of(self))
        return self._kept[1]


class _Tables:
    """What depends on a patch's id alone: positions [V, D] or None, cosines and sines [V, head_dim] or None."""

    def __init__(self, positions: Tensor | None, rotation: tuple[Tensor, Tensor] | None) -> None:
        self.positions, self.rotation = positions, rotation

    @classmethod
    def of(cls, encoder: GazedEncoder) -> _Tables:
        family, model, grids = encoder.family, encoder.model, encoder.vocabulary.grids
        added = [family.positions(model, grid) for grid in grids]
        turned = [family.rotation(model, grid) for grid in grids]
        positions = torch.cat([part for part in added if part is not None]) if added[0] is not None else None
        if encoder.embeddings is not None:
            scales = encoder.embeddings.of_ids(encoder.vocabulary)
            positions = scales if positions is None else positions + scales
        if turned[0] is None:
            return cls(positions, None)
        cosines, sines = zip(*(part for part in turned if part is not None), strict=True)
        cosine, sine = (torch.cat(part).to(encoder.device, encoder.dtype) for part in (cosines, sines))
        return cls(positions, (cosine, sine))

    def turned(self, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of all rows, [N, 1, head_dim]; the frames' own tokens are not turned."""
        if self.rotation is None:
            return None
        found = []
        for table, still in zip(self.rotation, (1.0, 0.0), strict=True):
            rows = table.new_full((plan.rows, table.shape[1]), still)
            rows[sent(plan.row, table.device)] = table[sent(plan.id, table.device)]
            found.append(rows[:, None])
        return found[0], found[1]


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, half against half: [N, H, D]."""
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat((-second, first), dim=-1) * sine).to(x.dtype)


def _by_rows(change: Callable[..., Tensor], step: int, *inputs: Tensor) -> Tensor:
    """change(*inputs), `step` rows at a time. What is held beside inputs and result does not grow with the rows."""
    count = len(inputs[0])
    if count <= max(step, 1):
        return change(*inputs)
    out: Tensor | None = None
    for start in range(0, count, step):
        part = change(*(rows[start : start + step] for rows in inputs))
        if out is None:
            out = part.new_empty(count, *part.shape[1:])
        out[start : start + step] = part
    assert out is not None
    return out


def _vocabulary(scales: Sequence[int], config: Any, name: str) -> PatchVocabulary:
    """A scale that the patches do not divide is taken where it is the network's own size, of which it too sees less."""
    patch, own = config.patch_size, getattr(config, "image_size", None)
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) != 1:
        raise ValueError(f"patches of {patch} pixels: only square ones are supported")
    side = int(sides.pop())
    if any(int(scale) % side and scale != own for scale in scales):
        near = sorted({scale if scale == own else max(side, round(scale / side) * side) for scale in scales})
        raise ValueError(
            f"scales {'+'.join(map(str, scales))} do not fit this {name}, whose patches have {side} pixels: each must"
            f" be a multiple of {side}; the nearest are {'+'.join(map(str, near))}"
        )
    return PatchVocabulary(tuple(scales), side)


def _named(vocabulary: PatchVocabulary) -> str:
    return f"{'+'.join(map(str, vocabulary.scales))}/{vocabulary.patch_size} ({vocabulary.size} ids)"
