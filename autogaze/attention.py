"""Attention to a past that many queries share, without copying it; and attention of ever new shapes on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, [B, H, n, D] each."""


@contextmanager
def of_new_shapes() -> Iterator[None]:
    """Leave cuDNN's attention out, for what has other shapes in every call. Process-wide while it lasts.

    PyTorch prefers cuDNN on an H100 and later, in bfloat16 and float16. For each new shape cuDNN first makes a plan: on
    an H200 that made a training step of the reconstructor, one clip, 3.8 s instead of 0.23 s. The other kernels take
    any shape at once. Backward takes the kernel that ran forward. Also a decorator.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def past_and_own(
    queries: Tensor, past: KeysValues, own: KeysValues, *, causal: bool = False, out: Tensor | None = None
) -> Tensor:
    """Attention [B, H, n, D] of queries [B, H, n, D] to a past and to their own keys [B, H, n', D].

    past: [1, H, m, D], which all share, or [B, H, m, D]. out: where the result goes, on a CPU; None: a new tensor.
    causal: query i sees the past and its own keys 0..i (n' = n); else it sees all keys. For inference: no gradients.
    On a CPU, two calls of the flash kernel are joined by the weight that each has in the softmax over both. The public
    scaled_dot_product_attention does not return that weight, so on other devices the past is copied.
    """
    if not past[0].shape[2]:
        alone = F.scaled_dot_product_attention(queries, *own, is_causal=causal)
        return alone if out is None else out.copy_(alone)
    if queries.device.type != "cpu":
        keys, values = (
            torch.cat((before.expand(len(queries), -1, -1, -1), new), dim=2)
            for before, new in zip(past, own, strict=True)
        )
        mask = None
        if causal:
            length, new = past[0].shape[2], queries.shape[2]
            mask = torch.ones(new, length + new, dtype=torch.bool, device=queries.device).tril(length)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, weight = flash(queries, *own, is_causal=causal)
    if len(past[0]) == len(queries):
        before, past_weight = flash(queries, *past)
    else:  # the past is the same for all batches, so their queries can be one long row
        row = queries.transpose(0, 1).flatten(1, 2)[None]
        before, past_weight = (_apart(part, queries) for part in flash(row, *past))
    share = torch.sigmoid(past_weight - weight).unsqueeze(-1).to(attended.dtype)
    return torch.lerp(attended, before, share, out=out)


def _apart(row: Tensor, queries: Tensor) -> Tensor:
    """[1, H, B * n, ...] -> [B, H, n, ...]."""
    by_batch: Tensor = row[0].unflatten(1, (len(queries), queries.shape[2]))
    return by_batch.transpose(0, 1)
