"""Who sees whom, and attention over packed rows: no mask, no padding, nothing of size rows x rows.

A frame's rows are one segment of queries. Every mode says which rows it sees, as a range or as a list of rows:

    block_causal   itself and all frames before it
    frame          itself
    first_frame    itself and frame 0
    newest         itself and, of the frames before, each patch that still shows in the dense map

On a CPU each segment is one call of scaled_dot_product_attention. On a GPU, in half precision and without gradients,
all segments are one call of PyTorch's variable-length flash attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.vision.plan import Plan

RowAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of the layer with a number: queries, keys, values [N, H, D] of all rows -> what each row saw, [N, H, D]."""

MODES = ("block_causal", "frame", "first_frame", "newest")

Keys = tuple[int, int] | Tensor
"""Rows that are seen: first and last (exclusive), or int64 [n]."""


@dataclass(frozen=True, eq=False)
class Segments:
    """queries: first and last (exclusive) row of each frame that has rows; together all rows. keys: what it sees."""

    queries: list[tuple[int, int]]
    keys: list[Keys]

    @classmethod
    def of(cls, plan: Plan, mode: str, device: torch.device) -> Segments:
        """Of whole clips."""
        frames = plan.lengths.shape[1]
        bounds = [0, *plan.ends.tolist()]
        seen = _past_patches(plan) if mode == "newest" else {}
        queries: list[tuple[int, int]] = []
        keys: list[Keys] = []
        for place, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            clip, t = divmod(place, frames)
            first, after = bounds[clip * frames], bounds[clip * frames + 1]
            queries.append((start, end))
            if mode == "block_causal":
                keys.append((first, end))
            elif mode == "first_frame" and t and after > first:
                rows = [*range(first, after), *range(start, end)]
                keys.append((first, end) if after == start else torch.tensor(rows))
            elif mode == "newest" and place in seen and len(seen[place]):
                keys.append(torch.cat((seen[place], torch.arange(start, end))))
            else:
                keys.append((start, end))
        return cls(queries, [key if isinstance(key, tuple) else key.to(device) for key in keys])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of packed rows [N, H, D] each: [N, H, D]."""
        if not self.queries:
            return query
        half = query.dtype in (torch.float16, torch.bfloat16)
        if query.is_cuda and half and not (torch.is_grad_enabled() and query.requires_grad):
            return self._flash(query, key, value)
        parts = []
        out = None if torch.is_grad_enabled() and query.requires_grad else torch.empty_like(query)
        for (start, end), seen in zip(self.queries, self.keys, strict=True):
            rows = slice(*seen) if isinstance(seen, tuple) else seen
            part = among(query[start:end], key[rows], value[rows])
            if out is None:
                parts.append(part)
            else:
                out[start:end] = part
        return torch.cat(parts) if out is None else out

    def _flash(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # here, because it needs a GPU

        plan = VariableLengths.of(self, query.device)
        if plan.gathered is not None:
            key, value = key[plan.gathered], value[plan.gathered]
        seen = varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            plan.query_bounds,
            plan.key_starts,
            plan.most_queries,
            plan.most_keys,
            seqused_k=plan.keys_used,
        )
        assert isinstance(seen, Tensor)
        return seen


@dataclass(frozen=True, eq=False)
class VariableLengths:
    """Segments as one call of variable-length attention takes them.

    query_bounds: int32 [S + 1]. Segment i sees the keys_used[i] keys (int32 [S]) from key_starts[i] on (int32 [S + 1]):
    ranges may overlap, so that block-causal attention copies no key. gathered: rows to take as keys first; None: all.
    """

    query_bounds: Tensor
    key_starts: Tensor
    keys_used: Tensor
    most_queries: int
    most_keys: int
    gathered: Tensor | None

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> VariableLengths:
        counts = [key[1] - key[0] if isinstance(key, tuple) else len(key) for key in segments.keys]
        gathered = None
        if all(isinstance(key, tuple) for key in segments.keys):
            starts = [key[0] for key in segments.keys if isinstance(key, tuple)]
        else:
            rows = [torch.arange(*key, device=device) if isinstance(key, tuple) else key for key in segments.keys]
            gathered = torch.cat(rows)
            starts = [0, *torch.tensor(counts).cumsum(0)[:-1].tolist()]
        bounds = [0, *(end for _, end in segments.queries)]

        def small(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(
            small(bounds),
            small([*starts, starts[-1] + counts[-1]]),
            small(counts),
            max(end - start for start, end in segments.queries),
            max(counts),
            gathered,
        )


def among(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of queries [n, H, D] to keys and values [m, H, D]: [n, H, D]."""
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).squeeze(0).transpose(0, 1)


def _past_patches(plan: Plan) -> dict[int, Tensor]:
    """Of each frame with patches: the rows of older frames' patches that show around its own, rising."""
    frames = plan.lengths.shape[1]
    newest = plan.newest()
    found = {}
    for place in (plan.lengths.reshape(-1) > 0).nonzero().squeeze(1).tolist():
        patches = newest[divmod(place, frames)].unique()
        patches = patches[(patches >= 0) & (plan.place[patches.clamp(min=0)] != place)]
        found[place] = plan.row[patches]
    return found
