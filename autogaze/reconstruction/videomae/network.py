"""The network of the VideoMAE reconstructor: a ViT encoder of gazed patches and a decoder of whole frames.

Modules and parameters have the names of Hugging Face's ViT-MAE, as in the reference's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autogaze.attention import of_new_shapes
from autogaze.device import constant
from autogaze.gaze import Gaze
from autogaze.images import MEAN, STD, preprocess
from autogaze.reconstruction.base import require_gaze
from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.packed import Packed


class Dense(nn.Module):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(x)
        return out


class Projections(nn.Module):
    """The projections to queries, keys and values."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))


class MAEAttention(nn.Module):
    """The weights of an attention; MAELayer computes it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.attention = Projections(hidden)
        self.output = Dense(hidden, hidden)


class MAELayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, hidden: int, heads: int, intermediate: int, eps: float) -> None:
        super().__init__()
        self.head_dim = hidden // heads
        self.attention = MAEAttention(hidden)
        self.intermediate = Dense(hidden, intermediate)
        self.output = Dense(intermediate, hidden)
        self.layernorm_before = nn.LayerNorm(hidden, eps=eps)
        self.layernorm_after = nn.LayerNorm(hidden, eps=eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, n, D] of tokens [B, n, hidden]."""
        normed, parts = self.layernorm_before(x), self.attention.attention
        queries, keys, values = (
            part(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (parts.query, parts.key, parts.value)
        )
        return queries, keys, values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Tokens after the layer, of tokens x [B, n, hidden] and their attention [B, H, n, D]."""
        x = x + self.attention.output(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))
        return out


class PatchEmbeddings(nn.Module):
    """The projection of a patch's pixels."""

    def __init__(self, hidden: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, hidden, patch, stride=patch)


class Embeddings(nn.Module):
    """What the encoder adds to projected pixels: position, scale and time; and the class token."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.position_embeddings = nn.Parameter(
            sincos_positions(config.vocabulary.grids[-1], hidden), requires_grad=False
        )
        self.scale_embed = nn.Parameter(torch.zeros(len(config.scales), hidden))
        self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, hidden))
        self.patch_embeddings = PatchEmbeddings(hidden, config.patch_size)


class MAEEncoder(nn.Module):
    """The layers of the encoder."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            MAELayer(config.hidden_size, config.num_heads, config.intermediate_size, config.layer_norm_eps)
            for _ in range(config.num_layers)
        )


class ViT(nn.Module):
    """The encoder with its embeddings and its last norm."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = MAEEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class MAEDecoder(nn.Module):
    """The decoder: mask token, embeddings, layers, and the projection to pixels."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        hidden = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(config.vocabulary.grids[-1], hidden), requires_grad=False
        )
        self.decoder_scale_embed = nn.Parameter(torch.zeros(len(config.scales), hidden))
        self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, hidden))
        self.decoder_embed = nn.Linear(config.hidden_size, hidden)
        self.decoder_layers = nn.ModuleList(
            MAELayer(hidden, config.decoder_num_heads, config.decoder_intermediate_size, config.layer_norm_eps)
            for _ in range(config.decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(hidden, config.patch_size**2 * 3)


@of_new_shapes()
def transformer_layers(
    layers: nn.ModuleList, x: Tensor, counts: Sequence[int], seen: Tensor | None, recompute: bool = False
) -> Tensor:
    """Tokens [B, 1 + N, hidden] after the layers: the class token, then `counts` tokens of each frame.

    A frame's tokens see the class token and all tokens up to the frame's end that are `seen`, bool [B, N] (None: all).
    The class token sees only itself. recompute: see VideoMAENetwork.
    """
    ends = np.cumsum([1, *counts]).tolist()
    keys_seen = None
    if seen is not None:
        keys_seen = torch.cat((seen.new_ones(len(seen), 1), seen), dim=1)[:, None, None]

    def after(layer: MAELayer, x: Tensor) -> Tensor:
        queries, keys, values = layer.project(x)
        attended = [values[:, :, :1]]  # attention to one token is its value
        for begin, end in pairwise(ends):
            if end == begin:
                continue
            mask = None if keys_seen is None else keys_seen[..., :end]
            attended.append(
                F.scaled_dot_product_attention(
                    queries[:, :, begin:end], keys[:, :, :end], values[:, :, :end], attn_mask=mask
                )
            )
        return layer.finish(x, torch.cat(attended, dim=2))

    return _through(layers, x, after, recompute)


@of_new_shapes()
def packed_layers(layers: nn.ModuleList, x: Tensor, mask: Tensor, recompute: bool = False) -> Tensor:
    """Tokens [R, n, hidden] after the layers, which attend once each under one mask [R, 1, n, n], added to scores.

    More arithmetic and far fewer kernels than frame by frame.
    """

    def after(layer: MAELayer, x: Tensor) -> Tensor:
        return layer.finish(x, F.scaled_dot_product_attention(*layer.project(x), attn_mask=mask))

    return _through(layers, x, after, recompute)


def _through(layers: nn.ModuleList, x: Tensor, after: Callable[[MAELayer, Tensor], Tensor], recompute: bool) -> Tensor:
    """Tokens after the layers. recompute: keep what goes into each layer, and compute the rest again for gradients."""
    for layer in layers:
        assert isinstance(layer, MAELayer)
        if recompute and torch.is_grad_enabled():
            # Computed again with the same attention: see `of_new_shapes`.
            x = checkpoint(after, layer, x, use_reentrant=False, preserve_rng_state=False, context_fn=_again)
        else:
            x = after(layer, x)
    return x


def _again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), of_new_shapes()


def to_pixels(frames: Tensor) -> Tensor:
    """Normalised frames [..., 3, S, S] -> uint8 [..., S, S, 3] on the CPU."""
    mean, std = constant((MEAN, STD), frames.device)[..., None, None]
    pixels: Tensor = ((frames.float() * std + mean + 1) * 127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).movedim(-3, -1).cpu().contiguous()


def sincos_positions(grid: int, hidden: int) -> Tensor:
    """ViT-MAE's fixed positions [1, 1 + grid * grid, hidden]: zeros for the class token, then row by row."""
    if hidden % 4:
        raise ValueError(f"hidden size {hidden}: sine and cosine positions of rows and columns need a multiple of 4")
    frequencies = 1.0 / 10000 ** (torch.arange(hidden // 4, device="cpu", dtype=torch.float64) / (hidden // 4))
    angles = torch.arange(grid, device="cpu", dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    # Columns first, as the original, whose first half is of the width.
    places = torch.cat((axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)), dim=2)
    return torch.cat((torch.zeros(1, hidden, dtype=torch.float64, device="cpu"), places.flatten(0, 1))).float()[None]


class VideoMAENetwork(nn.Module):
    """Encoder and decoder: `forward` rebuilds frames of clips from their gaze, `rebuild` those of packed rows.

    The other methods are their steps, which greedy search (autogaze/reconstruction/videomae/search.py) takes singly.

    loss: the error of a rebuilt frame; by default l1 alone.
    recompute: with gradients, keep only what goes into each layer, and compute the rest again when it is needed: a
        third more arithmetic, and memory for larger batches.
    """

    recompute = False

    def __init__(self, config: VideoMAEConfig, loss: FrameLoss | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, config.vocabulary
        self.vit, self.decoder = ViT(config), MAEDecoder(config)
        self._loss = [FrameLoss() if loss is None else loss]  # in a list, so that its teachers are no submodules
        self._initialise()

    @property
    def frame_loss(self) -> FrameLoss:
        """The error of a rebuilt frame."""
        return self._loss[0]

    @property
    def wide(self) -> bool:
        """Whether whole batches are computed in few large steps, as GPUs need it, or in many small exact ones."""
        return self.vit.layernorm.weight.device.type != "cpu"

    def compile_layers(self) -> None:
        """Have torch.compile fuse what is between the attentions of all layers. Names of weights stay."""
        for layers in (self.vit.encoder.layer, self.decoder.decoder_layers):
            for layer in layers:
                for name in ("project", "finish"):
                    setattr(layer, name, torch.compile(getattr(layer, name), dynamic=True))

    def own_precision(self) -> torch.autocast:
        """Switches off the caller's autocast, so that errors do not depend on it."""
        return torch.autocast(self.vit.layernorm.weight.device.type, enabled=False)

    def normalised(self, frames: Tensor) -> Tensor:
        """uint8 [..., S, S, 3] -> [..., 3, S, S], as the network was trained on, on its device."""
        return preprocess(frames, self.vocabulary.frame_size, self.vit.layernorm.weight.device)

    def forward(self, video: Tensor, gaze: Gaze, at: Sequence[int]) -> Tensor:
        """Rebuild frames `at` of normalised clips [B, T, 3, S, S] from a gaze: [B, F, 3, S, S] in the order of `at`.

        Raises ValueError if the gaze is not of these clips or `at` names no frames.
        """
        clips, frames = video.shape[:2]
        self.check_gaze(gaze, clips, frames, at)
        if self.wide:
            rows = range(clips)
            packed = Packed.of([gaze], rows, [at for _ in rows], self.vocabulary, video.device)
            rebuilt: Tensor = self.rebuild(video, packed).unflatten(0, (clips, len(at)))
            return rebuilt
        ids, real, lengths = self._slots(gaze)
        every = bool(real.all())  # asked of the gaze, which is the host's
        ids, real = ids.to(video.device), real.to(video.device)
        frame = torch.repeat_interleave(torch.arange(frames), lengths).to(video.device)
        patches = self.patches(video)  # [B, T, V, pixels]; of these, only the gazed ones are embedded
        row = torch.arange(clips, device=video.device)[:, None]
        x = self.embed(patches[row, frame, ids], ids, frame)
        seen = None if every else real
        x = self._encode(x, lengths.tolist(), seen)

        wanted = set(at)
        parts, part_seen, counts = [], [], []
        begin = lengths.cumsum(0) - lengths
        for t in range(frames):
            slots = slice(int(begin[t]), int(begin[t] + lengths[t]))
            if t in wanted:
                whole = self.decoder.mask_token.to(x.dtype).expand(clips, self.vocabulary.size, -1)
                # Unused slots are written behind the last patch, which is then cut off.
                target = ids[:, slots].masked_fill(~real[:, slots], self.vocabulary.size)
                whole = torch.cat((whole, whole[:, :1]), dim=1)
                whole = whole.scatter(1, target[..., None].expand(-1, -1, whole.shape[2]), x[:, 1:][:, slots])[:, :-1]
                parts.append(whole + self.slot_positions(t))
                part_seen.append(real.new_ones(clips, self.vocabulary.size))
            else:
                parts.append(x[:, 1:][:, slots] + self.slot_positions(t)[ids[:, slots]])
                part_seen.append(real[:, slots])
            counts.append(parts[-1].shape[1])
        finest = self.vocabulary.counts[-1]
        ends = np.cumsum([1, *counts])
        places = torch.tensor([place for t in at for place in range(ends[t + 1] - finest, ends[t + 1])])
        cls = x[:, :1] + self.decoder.decoder_pos_embed[:, :1]
        x = torch.cat((cls, *parts), dim=1)
        x = transformer_layers(
            self.decoder.decoder_layers,
            x,
            counts,
            None if seen is None else torch.cat(part_seen, dim=1),
            self.recompute,
        )
        x = self.predict(x[:, places.to(x.device)])
        return self.unpatchify(x.unflatten(1, (len(at), finest)))

    def rebuild(self, video: Tensor, packed: Packed) -> Tensor:
        """The frames [n, 3, S, S] that packed rows rebuild, row by row, of normalised clips [C, T, 3, S, S]."""
        patches = self.patches(video).flatten(0, -2)
        x = self.embed(patches[packed.patch], packed.ids, packed.frame)
        x = torch.cat((self.cls(len(x)), x), dim=1)
        dtype = x.dtype if not torch.is_autocast_enabled(x.device.type) else torch.get_autocast_dtype(x.device.type)
        x = packed_layers(self.vit.encoder.layer, x, packed.mask(dtype), self.recompute)
        x = self.decoder.decoder_embed(self.vit.layernorm(x))
        # No slot holds a class token, so its number 0 stands for the mask token.
        slots = F.embedding(packed.source, x.flatten(0, 1), padding_idx=0)
        slots = torch.where((packed.source == 0)[..., None], self.decoder.mask_token.to(x.dtype), slots)
        slots = slots + F.embedding(packed.slot_ids, self._decoder_positions())
        slots = slots + F.embedding(packed.slot_frame, self.decoder.time_embed)
        x = torch.cat((x[:, :1] + self.decoder.decoder_pos_embed[:, :1], slots), dim=1)
        x = packed_layers(self.decoder.decoder_layers, x, packed.slot_mask(dtype), self.recompute)
        return self.unpatchify(self.predict(x.flatten(0, 1)[packed.rebuilt]))

    def patches(self, video: Tensor) -> Tensor:
        """The pixels of every patch of every scale: [..., V, 3 * patch * patch] of frames [..., 3, S, S]."""
        size, by_scale = self.vocabulary.patch_size, []
        flat = video.flatten(0, -4)
        for scale, grid in zip(self.vocabulary.scales, self.vocabulary.grids, strict=True):
            image = flat
            if scale != video.shape[-1]:
                image = F.interpolate(flat, size=(scale, scale), mode="bicubic", align_corners=False)
            cut = image.unflatten(3, (grid, size)).unflatten(2, (grid, size)).permute(0, 2, 4, 1, 3, 5)
            by_scale.append(cut.flatten(3).flatten(1, 2))
        patches: Tensor = torch.cat(by_scale, dim=1).unflatten(0, video.shape[:-3])
        return patches

    def embed(self, patches: Tensor, ids: Tensor, frame: Tensor) -> Tensor:
        """Encoder inputs [..., hidden] of patches' pixels [..., pixels], their ids [...] and frames (broadcast)."""
        embeddings = self.vit.embeddings
        projection = embeddings.patch_embeddings.projection
        x = F.linear(patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)
        return x + self._encoder_positions()[ids] + embeddings.time_embed[frame]

    def slot_positions(self, t: int) -> Tensor:
        """The decoder's embedding of place, scale and time of the slots of frame t: [V, hidden]."""
        return self._decoder_positions() + self.decoder.time_embed[t]

    def predict(self, x: Tensor) -> Tensor:
        """Pixels of the finest patches [..., patch * patch * 3] from the decoder's tokens [..., hidden]."""
        pixels: Tensor = self.decoder.decoder_pred(self.decoder.decoder_norm(x))
        return pixels

    def unpatchify(self, x: Tensor) -> Tensor:
        """Finest patches [..., grid * grid, patch * patch * 3] -> frames [..., 3, S, S]."""
        grid, size = self.vocabulary.grids[-1], self.vocabulary.patch_size
        x = x.unflatten(-1, (size, size, 3)).unflatten(-4, (grid, grid))  # [..., rows, columns, y, x, channel]
        order = [*range(x.dim() - 5), x.dim() - 1, x.dim() - 5, x.dim() - 3, x.dim() - 4, x.dim() - 2]
        return x.permute(order).flatten(-2).flatten(-3, -2)

    def cls(self, clips: int) -> Tensor:
        """The class token of each clip: [B, 1, hidden]."""
        embeddings = self.vit.embeddings
        return (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(clips, -1, -1)

    def _encode(self, x: Tensor, counts: Sequence[int], seen: Tensor | None) -> Tensor:
        """Decoder inputs [B, 1 + N, decoder hidden] of embedded tokens [B, N, hidden], the class token first."""
        x = torch.cat((self.cls(len(x)), x), dim=1)
        x = transformer_layers(self.vit.encoder.layer, x, counts, seen, self.recompute)
        embedded: Tensor = self.decoder.decoder_embed(self.vit.layernorm(x))
        return embedded

    def _encoder_positions(self) -> Tensor:
        """The encoder's embedding of place and scale of each patch: [V, hidden]."""
        embeddings, finest = self.vit.embeddings, self.vocabulary.grids[-1]
        grid = embeddings.position_embeddings[0, 1:].T.unflatten(1, (finest, finest))[None]
        parts = [
            F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)[0].flatten(1).T + scale
            for size, scale in zip(self.vocabulary.grids, embeddings.scale_embed, strict=True)
        ]
        return torch.cat(parts)

    def _decoder_positions(self) -> Tensor:
        """The decoder's embedding of place and scale of each slot: [V, hidden].

        The reference interpolates the flattened grid in one dimension, which scrambles the coarse scales. Its weights
        were trained that way.
        """
        grid = self.decoder.decoder_pos_embed[:, 1:].transpose(1, 2)[:, :, None]
        parts = [
            F.interpolate(grid, size=(1, count), mode="bicubic", align_corners=False)[0, :, 0].T + scale
            for count, scale in zip(self.vocabulary.counts, self.decoder.decoder_scale_embed, strict=True)
        ]
        return torch.cat(parts)

    def _slots(self, gaze: Gaze) -> tuple[Tensor, Tensor, Tensor]:
        """ids [B, N] (0 where unused), which are real [B, N], and slots of each frame [T]; where the gaze is."""
        packed = Gaze(tokens=gaze.tokens, lengths=gaze.lengths, vocabulary=gaze.vocabulary).padded()
        slots, unused = packed["num_gazing_each_frame"], packed["if_padded_gazing"]
        frame = torch.repeat_interleave(torch.arange(len(slots)), slots)
        ids = (packed["gazing_pos"] - frame * self.vocabulary.size).masked_fill(unused, 0)
        return ids, ~unused, slots

    def check_gaze(self, gaze: Gaze, clips: int, frames: int, at: Sequence[int]) -> None:
        """Raise ValueError unless the gaze is of such clips and this vocabulary, and `at` names frames of them."""
        require_gaze(gaze, self.vocabulary, clips, frames, at)
        self.check_length(frames)

    def check_length(self, frames: int) -> None:
        """Raise ValueError for clips that are longer than the network has time embeddings."""
        if frames > self.config.max_num_frames:
            raise ValueError(f"clips of {frames} frames: this reconstructor takes {self.config.max_num_frames} at most")

    def _initialise(self) -> None:
        """Fresh weights as ViT-MAE's: deviation 0.02, biases 0, fixed sine and cosine positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (
            self.vit.embeddings.cls_token,
            self.vit.embeddings.scale_embed,
            self.vit.embeddings.time_embed,
            self.decoder.mask_token,
            self.decoder.decoder_scale_embed,
            self.decoder.time_embed,
        ):
            nn.init.normal_(embedding, std=0.02)
