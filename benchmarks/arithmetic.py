"""What gazing comes to in floating-point operations and bytes, and how long a device takes for them at its best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from autogaze.gaze import Gaze
from autogaze.model import AutoGazeConfig

FRAMES = 16


class Pass(NamedTuple):
    """One call of the decoder: tokens it reads and tokens already read, int64 [rows] each; whether they are frames."""

    new: np.ndarray
    past: np.ndarray
    prefill: bool


def decoder_passes(gaze: Gaze, config: AutoGazeConfig) -> Iterator[Pass]:
    """The calls that rows in step take (autogaze/model/generation.py), those that have ended their frame reading 0."""
    past = carry = np.zeros(gaze.clips, np.int64)
    for slots, tokens in zip(gaze.frame_slots().T.numpy(), gaze.lengths.T.numpy(), strict=True):
        new = carry + config.num_vision_tokens
        yield Pass(new, past, True)
        past, blocks = past + new, -(-slots // config.block_size)
        for block in range(1, int(blocks.max())):
            new = config.block_size * (block < blocks)
            yield Pass(new, past, False)
            past = past + new
        carry = tokens - config.block_size * (blocks - 1)


class Work(NamedTuple):
    """FLOP, of rows together."""

    encoder: float
    linear: float
    prefill: float
    decode: float


def work(gaze: Gaze, config: AutoGazeConfig) -> Work:
    """Causal pairs in attention, all layers on all tokens: docs/method.md, section 'Arithmetic'."""
    hidden, vision = config.hidden_size, config.num_vision_tokens
    inputs = 3 * config.patch_size**2 + config.conv_depth * 27 * hidden + hidden
    encoder = 2 * gaze.clips * gaze.num_frames * vision * hidden * inputs
    parts = {True: 0.0, False: 0.0}
    linear = 0.0
    for step in decoder_passes(gaze, config):
        pairs = step.new * step.past + step.new * (step.new + 1) / 2
        parts[step.prefill] += 4 * config.num_layers * hidden * float(pairs.sum())
        linear += 2 * layer_weights(config) * float(step.new.sum())
        linear += 2 * head_weights(config) * int((step.new > 0).sum())
    return Work(encoder, linear, parts[True], parts[False])


def layer_weights(config: AutoGazeConfig) -> int:
    return config.num_layers * config.hidden_size * (4 * config.hidden_size + 3 * config.intermediate_size)


def head_weights(config: AutoGazeConfig) -> int:
    return config.hidden_size * config.block_size * (config.vocab_size + 1)


def rate(run: Callable[[], Any], amount: float, device: str = "cpu") -> float:
    """`amount` per second of `run`: CPU seconds, or of a GPU the wall's."""
    gpu = device.startswith("cuda")
    clock, best = (time.perf_counter if gpu else time.process_time), float("inf")
    for _ in range(5):
        wait(device)
        began = clock()
        for _ in range(10):
            run()
        wait(device)
        best = min(best, (clock() - began) / 10)
    return amount / best


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.no_grad()
def ordinary_kernels(gaze: Gaze, config: AutoGazeConfig) -> Work:
    """FLOP/s of the four parts in PyTorch's own kernels on one thread, attention masked, mid-clip."""
    hidden, grid, heads = config.hidden_size, config.input_size // config.patch_size, config.num_heads
    past = (FRAMES * config.num_vision_tokens + len(gaze.tokens) // gaze.clips) // 2
    image, kernel = torch.randn(1, hidden, FRAMES + 2, grid, grid), torch.randn(hidden, hidden, 3, 3, 3)
    x, weight = torch.randn(config.num_vision_tokens, hidden), torch.randn(config.intermediate_size, hidden)

    def attention(new: int) -> float:
        queries = torch.randn(1, heads, new, config.head_dim)
        keys = torch.randn(1, heads, past + new, config.head_dim)
        mask = torch.zeros(1, 1, new, past + new)
        flop = 4 * hidden * new * (past + new)
        return rate(lambda: F.scaled_dot_product_attention(queries, keys, keys, attn_mask=mask), flop)

    return Work(
        rate(lambda: F.conv3d(image, kernel, padding=(0, 1, 1)), 2 * FRAMES * grid**2 * 27 * hidden**2),
        rate(lambda: F.linear(x, weight), 2 * x.numel() * config.intermediate_size),
        attention(config.num_vision_tokens),
        attention(config.block_size),
    )


@torch.no_grad()
def gpu_floor(gaze: Gaze, config: AutoGazeConfig, device: str, dtype: torch.dtype) -> float:
    """The least seconds for a batch: each decoder pass reads weights and its rows' keys and values once, or computes.

    At the rates the device has in copying 1 GiB and in multiplying 8192x8192 matrices of that type.
    """
    side, cells = (8192, 2**30) if device.startswith("cuda") else (512, 2**22)
    source = torch.zeros(cells, dtype=torch.uint8, device=device)
    target, square = torch.empty_like(source), torch.randn(side, side, device=device, dtype=dtype)
    copy = rate(lambda: target.copy_(source), 2 * cells, device)
    multiply = rate(lambda: square @ square, 2 * side**3, device)
    cell = 2 * config.num_layers * config.hidden_size * dtype.itemsize  # key and value of a token
    weights = (layer_weights(config) + head_weights(config)) * dtype.itemsize
    seconds = work(gaze, config).encoder / multiply
    for step in decoder_passes(gaze, config):
        pairs = float((step.new * step.past + step.new * (step.new + 1) / 2).sum())
        flop = 4 * config.num_layers * config.hidden_size * pairs + 2 * layer_weights(config) * float(step.new.sum())
        flop += 2 * head_weights(config) * len(step.new)
        read = weights + cell * float((step.past + step.new)[step.new > 0].sum())
        seconds += max(read / copy, flop / multiply)
    print(f"  {dtype}: copies {copy / 1e9:,.0f} GB/s, multiplies {multiply / 1e12:,.1f} TFLOP/s")
    return seconds
