"""What a training step of the reconstructor takes of a GPU's memory, without a GPU: by arithmetic, and by fake tensors.

    python benchmarks/training_memory.py                          # released size (ViT-L), batches that fit 80 GB
    python benchmarks/training_memory.py --clips 8 --ratio 0.1 --dtype float32

Fake tensors have shapes and types, and no numbers: PyTorch runs two steps on them, forward, backward and Adam, and what
is held at any moment is added up. Neither it nor the arithmetic knows what kernels take for themselves, what the
allocator wastes, or the teachers. Every clip has 16 frames, the same share of patches gazed, and two frames rebuilt;
the paper draws the share between 0.01 and 0.5, and a row is as long as the longest of its batch.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from results import Results
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.packed import Packed
from autogaze.reconstruction.videomae.reconstructor import VideoMAE

FRAMES, REBUILT = 16, (3, 12)
GB = 1e9


class GpuVideoMAE(VideoMAE):
    """A reconstructor that computes as on a GPU."""

    wide = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[8, 24], help="of a micro-batch")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of patches gazed")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="float32, bfloat16 (autocast)")
    parser.add_argument("--limit", type=float, default=80.0, help="GB that a batch is to fit in")
    parser.add_argument("--narrow", action="store_true", help="a tiny network, to try the benchmark itself")
    Results.add_option(parser)
    options = parser.parse_args()
    results = Results(options.json)
    config = VideoMAEConfig(**NARROW) if options.narrow else VideoMAEConfig()
    inputs, slots = tokens_of(options.ratio)
    print(f"{inputs:,} tokens of the encoder and {slots:,} of the decoder for each clip; GB = 1e9 bytes")
    print(f"{'dtype':10}{'recompute':>10}{'clips':>7}{'arithmetic, GB':>16}{'fake tensors, GB':>18}")
    for dtype in options.dtype:
        for recompute in (False, True):
            found = {}
            for clips in options.clips:
                found[clips] = peak(config, clips, options.ratio, getattr(torch, dtype), recompute) / GB
                counted = arithmetic(config, clips, inputs, slots, dtype, recompute) / GB
                print(f"{dtype:10}{recompute!s:>10}{clips:7}{counted:16.2f}{found[clips]:18.2f}", flush=True)
                facts = {"dtype": dtype, "recompute": recompute, "clips": clips, "arithmetic_gb": counted}
                results.add("memory of a training step", "GB", found[clips], **facts)
            if len(found) > 1:
                (low, least), *_, (high, most) = sorted(found.items())
                each = (most - least) / (high - low)
                fit = int((options.limit - least) / each) + low
                print(f"{'':20}each further clip {each:.2f} GB: {fit} clips fit {options.limit:g} GB")
                results.add("batch that fits", "clips", fit, dtype=dtype, recompute=recompute, gb=options.limit)


NARROW = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}
NARROW |= {f"decoder_{name}": value for name, value in NARROW.items()}


def tokens_of(ratio: float) -> tuple[int, int]:
    """Tokens of a clip in encoder and decoder."""
    each = VOCABULARY.cap(ratio)
    return 1 + FRAMES * each, 1 + (FRAMES - len(REBUILT)) * each + len(REBUILT) * VOCABULARY.size


def arithmetic(config: VideoMAEConfig, clips: int, inputs: int, slots: int, dtype: str, recompute: bool) -> float:
    """Bytes at the peak: weights, gradients and Adam's moments in float32, and what the backward pass is kept.

    A layer of width h and inner width f keeps of a token, in float32 units of 4 bytes: what goes in (h), the residual
    between its halves (h), and in the products' type what goes into each product and attention: two normed inputs,
    queries, keys, values, the attended (6 h), and before and after GELU (2 f). With `recompute` what goes in stays,
    beside all of that for one layer at a time.
    """
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in VideoMAE(config).parameters())
    product = 2 if dtype == "bfloat16" else 4
    kept, largest = 0.0, 0.0
    for tokens, layers, hidden, inner in (
        (inputs, config.num_layers, config.hidden_size, config.intermediate_size),
        (slots, config.decoder_num_layers, config.decoder_hidden_size, config.decoder_intermediate_size),
    ):
        whole = tokens * (2 * 4 * hidden + product * (6 * hidden + 2 * inner))
        kept += layers * (tokens * 4 * hidden if recompute else whole)
        largest = max(largest, whole)
        kept += product * tokens * tokens  # the mask of its attention
    return 16 * weights + clips * (kept + (2 * largest if recompute else largest))


def peak(config: VideoMAEConfig, clips: int, ratio: float, dtype: torch.dtype, recompute: bool) -> float:
    """Bytes that tensors hold at most in two steps; from the first one on Adam has its moments."""
    each = VOCABULARY.cap(ratio)
    orders = np.random.default_rng(0).random((clips * FRAMES, VOCABULARY.size)).argsort(axis=1)[:, :each]
    gaze = Gaze(tokens=torch.from_numpy(orders.ravel().copy()), lengths=torch.full((clips, FRAMES), each))
    rows = range(clips)
    real = Packed.of([gaze], rows, [REBUILT for _ in rows], VOCABULARY, torch.device("cpu"))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = GpuVideoMAE(config).train()
        model.recompute = recompute
        packed = Packed(**{name: fake.from_tensor(value) for name, value in vars(real).items()})
        frames = torch.empty(clips, FRAMES, VOCABULARY.frame_size, VOCABULARY.frame_size, 3, dtype=torch.uint8)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
        step = step_of(model, optimizer, frames, packed, dtype)
        held = Held([*model.parameters(), frames, *vars(packed).values()])
        with held:
            step()
            step()
    return float(held.most)


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within its block, as long as each lives, views once.

    (torch.distributed._tools.mem_tracker does the same and says what they are for, in minutes at this size.)
    """

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._count(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count([leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)])
        return result

    def _count(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                size = storage.nbytes()
                self._known[storage] = size
                self.now += size
                weakref.finalize(storage, self._free, size)
        self.most = max(self.most, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def step_of(
    model: VideoMAE, optimizer: torch.optim.Optimizer, frames: torch.Tensor, packed: Packed, dtype: torch.dtype
) -> Callable[[], None]:
    clip = torch.arange(len(frames)).repeat_interleave(len(REBUILT))
    number = torch.tensor(REBUILT * len(frames))

    def step() -> None:
        video = model.normalised(frames)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            rebuilt = model.rebuild(video, packed)
            loss = model.frame_loss(rebuilt.float(), video[clip, number].float()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
