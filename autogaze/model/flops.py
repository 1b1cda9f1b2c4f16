"""Floating-point operations of the policy, counted from its sizes."""

from __future__ import annotations

from autogaze.model import AutoGazeConfig


def flops_per_clip(config: AutoGazeConfig, slots: float, frames: int = 16) -> float:
    """Floating-point operations of one forward pass over a clip, a multiply-add being two. docs/training.md derives it.

    slots: gaze tokens of the clip, all frames together. Norms, softmax, rotary embedding and resizing are left out.
    """
    vision = frames * config.num_vision_tokens
    width, inner = config.hidden_size, config.num_heads * config.head_dim
    patches = 2 * vision * 3 * config.patch_size**2 * width
    encoder = 2 * vision * (27 * config.conv_depth + 1) * width**2
    tokens = vision + slots
    linears = 2 * tokens * config.num_layers * (4 * width * inner + 3 * width * config.intermediate_size)
    attention = 4 * inner * config.num_layers * tokens * (tokens + 1) / 2
    heads = 2 * width * config.block_size * (config.vocab_size + 1) * slots / config.block_size
    return patches + encoder + linears + attention + heads
