"""How near gazing on one CPU thread is to what its arithmetic takes at least: by part, in the same run.

    python benchmarks/roofline.py                  # 8 clips of drawn frames, random weights, ratio 0.1
    python benchmarks/roofline.py --batch 1

For each part of a clip's gaze: the operations that are done (the last layer's only for the states that are read), the
rate of the kernel that does them, alone and in the middle of a clip, and the seconds that takes. Beside them the gaze
itself; and the floor: every operation at the rate of a 1024x1024 product, the exponentials of softmax at that of `exp`.
The difference between the gaze and its parts is everything else: norms, rotary embedding, choosing, the cache, Python.
CPU seconds, the least of several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from arithmetic import FRAMES, decoder_passes, head_weights, rate, work
from clips import drawn

from autogaze.attention import past_and_own
from autogaze.gaze import Gaze
from autogaze.images import preprocess
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.model.winograd import causal_convolution, transformed
from autogaze.patches import VOCABULARY


def done(gaze: Gaze, config: AutoGazeConfig) -> tuple[dict[str, float], float]:
    """FLOP a clip of each part, as autogaze/model does them on a CPU; and how many exponentials softmax takes."""
    hidden, full = config.hidden_size, config.num_layers - 1
    layer = hidden * (4 * hidden + 3 * config.intermediate_size)
    encoder = work(gaze, config).encoder  # of whose 27 multiplications for an output of a convolution 12 are left
    encoder -= 2 * 15 * gaze.lengths.numel() * config.num_vision_tokens * config.conv_depth * hidden**2
    parts = {"encoder": encoder, "linear layers": 0.0, "heads": 0.0, "prefills": 0.0, "decodes": 0.0}
    exponentials = 0.0
    for step in decoder_passes(gaze, config):
        rows = float((step.new > 0).sum())
        parts["linear layers"] += 2 * float(step.new.sum()) * (full * layer + 2 * hidden**2) + 2 * rows * layer
        parts["heads"] += 2 * head_weights(config) * rows
        pairs = step.new * step.past + step.new * (step.new + 1) / 2
        read = full * float(pairs.sum()) + float(
            (step.past + step.new)[step.new > 0].sum()
        )  # the last layer: one state
        parts["prefills" if step.prefill else "decodes"] += 4 * hidden * read
        exponentials += config.num_heads * read
    return {name: flop / gaze.clips for name, flop in parts.items()}, exponentials / gaze.clips


def kernels(gaze: Gaze, config: AutoGazeConfig, batch: int) -> dict[str, float]:
    """FLOP/s of the kernel of each part, on tensors of the middle of a clip."""
    hidden, grid, heads = config.hidden_size, config.input_size // config.patch_size, config.num_heads
    vision, block = config.num_vision_tokens, config.block_size
    image, kernel = torch.randn(FRAMES, grid, grid, hidden), transformed(torch.randn(hidden, hidden, 3, 3, 3))
    bias = torch.randn(hidden)
    x, weight = torch.randn(batch * (vision + block), hidden), torch.randn(config.intermediate_size, hidden)
    state, head = torch.randn(batch, hidden), torch.randn(head_weights(config) // hidden, hidden)
    past = (FRAMES * vision + len(gaze.tokens) // gaze.clips) // 2

    def attention(new: int) -> float:
        queries = torch.randn(1, new, heads, config.head_dim).transpose(1, 2)
        held = torch.randn(2, 1, heads, past + new, config.head_dim)
        (keys, new_keys), (values, new_values) = (part.split((past, new), dim=2) for part in held)
        flop = 4 * hidden * (new * past + new * (new + 1) / 2)
        return rate(lambda: past_and_own(queries, (keys, values), (new_keys, new_values), causal=True), flop)

    return {
        "encoder": rate(lambda: causal_convolution(image, kernel, bias), 2 * FRAMES * grid**2 * 12 * hidden**2),
        "linear layers": rate(lambda: F.linear(x, weight), 2 * x.numel() * config.intermediate_size),
        "heads": rate(lambda: F.linear(state, head), 2 * head.numel() * batch),
        "prefills": attention(vision + block),
        "decodes": attention(block),
    }


def least(call: Callable[[], Any], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="clips in a call")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = AutoGaze(AutoGazeConfig()).eval()
    images = preprocess(torch.from_numpy(drawn(options.batch)), VOCABULARY.frame_size)
    gaze = policy.gaze(images, max_ratio=options.ratio)
    whole = least(lambda: policy.gaze(images, max_ratio=options.ratio), options.rounds) / options.batch
    parts, exponentials = done(gaze, policy.config)
    rates = kernels(gaze, policy.config, options.batch)
    square, some = torch.randn(1024, 1024), torch.randn(2**14)
    best, exp = rate(lambda: square @ square, 2 * 1024**3), rate(lambda: some.exp(), len(some))
    print(f"ratio {options.ratio}, batch {options.batch}, one thread: {whole:.3f} CPU s a clip")
    for name, flop in parts.items():
        speed, seconds = rates[name] / 1e9, flop / rates[name]
        print(f"  {name:14}{flop / 1e9:7.2f} GFLOP at {speed:4.0f} GFLOP/s{seconds:8.3f} s{seconds / whole:7.0%}")
    alone = sum(flop / rates[name] for name, flop in parts.items())
    floor = sum(parts.values()) / best + exponentials / exp
    print(f"  everything else{whole - alone:31.3f} s{1 - alone / whole:7.0%}")
    print(
        f"floor: {sum(parts.values()) / 1e9:.1f} GFLOP at {best / 1e9:.0f} GFLOP/s and {exponentials / 1e6:.0f} M"
        f" exponentials at {exp / 1e6:.0f} M/s, {floor:.3f} s: {floor / whole:.0%} of the gaze"
    )


if __name__ == "__main__":
    main()
