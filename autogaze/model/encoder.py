"""The vision encoder: 196 tokens of each frame, which depend on it and, per convolution, on the two frames before it.

A patch embedding, one or more causal 3x3x3 convolutions, and a position embedding that is the same for every frame
(docs/method.md, section 'Network'). Parameter names and shapes are the reference's. Convolutions whose kernel is one
patch or one pixel are computed as the matrix products they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.model.config import AutoGazeConfig
from autogaze.model.winograd import causal_convolution, transformed
from autogaze.precision import exact_convolutions

PAST = 2
"""Earlier frames that a causal convolution sees: its temporal kernel less one."""


class CausalBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(hidden, hidden, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, hidden, PAST + T, h, w], earlier frames first -> [B, hidden, T, h, w]."""
        with exact_convolutions():
            return F.relu(self.conv3d(x))


class Encoder(nn.Module):
    """Frames [B, T, 3, S, S], preprocessed -> [B, T, tokens, hidden], row by row of the patch grid."""

    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.patch_size = patch
        self.temporal_conv = nn.Conv3d(3, hidden, (1, patch, patch), stride=(1, patch, patch))
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(CausalBlock(hidden) for _ in range(config.conv_depth))
        self.out_proj = nn.Conv3d(hidden, hidden, 1)

    def forward(self, frames: Tensor, past: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The tokens, and `past` for the following frames: of each block the last PAST of its inputs.

        past: None before a clip's first frame, where the convolutions see zeros.
        """
        x = self._patches(frames).permute(0, 4, 1, 2, 3)
        clips, grid = len(frames), x.shape[-1]
        kept = []
        for number, block in enumerate(self.blocks):
            before = x.new_zeros(clips, x.shape[1], PAST, grid, grid) if past is None else past[number]
            x = torch.cat((before, x), dim=2)
            kept.append(x[:, :, -PAST:])
            x = block(x)
        return self._projected(x.permute(0, 2, 3, 4, 1)), kept

    def whole_clips(self, frames: Tensor) -> Tensor:
        """The tokens of whole clips, as a CPU computes them fastest: clip by clip, convolutions by Winograd's way.

        Without gradients. In float32 they differ from those of `forward` by rounding; in other precisions, also by
        autocast, not at all.
        """
        single = frames.dtype == torch.float32 and not torch.is_autocast_enabled(frames.device.type)
        if not single or frames.shape[-1] // self.patch_size % 2 or torch.is_grad_enabled():
            return self.forward(frames)[0]
        convolutions = [block.conv3d for block in self.blocks if isinstance(block, CausalBlock)]
        weights = [transformed(convolution.weight) for convolution in convolutions]
        tokens = []
        for clip in frames:
            x = self._patches(clip[None])[0]
            for convolution, weight in zip(convolutions, weights, strict=True):
                assert convolution.bias is not None
                x = causal_convolution(x, weight, convolution.bias).relu_()
            tokens.append(self._projected(x[None]))
        return torch.cat(tokens)

    def _patches(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, S, S] -> their patches, embedded, [B, T, h, w, hidden]."""
        clips, num_frames, channels, side, _ = frames.shape
        grid, patch = side // self.patch_size, self.patch_size
        patches = frames.view(clips, num_frames, channels, grid, patch, grid, patch)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(clips, num_frames, grid, grid, -1)
        x: Tensor = self.norm(F.linear(patches, self.temporal_conv.weight.flatten(1), self.temporal_conv.bias))
        return x

    def _projected(self, x: Tensor) -> Tensor:
        """[B, T, h, w, hidden] -> tokens [B, T, h * w, hidden]."""
        return F.linear(x.flatten(2, 3), self.out_proj.weight.flatten(1), self.out_proj.bias)


class Connector(nn.Module):
    """Adds the position embedding, the same for every frame."""

    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(config.num_vision_tokens, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.pos_embed
