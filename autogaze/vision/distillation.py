"""Distillation: how far an encoder on gazed patches is from what the network makes of full frames, to learn from.

The teacher is the network on every patch of the finest scale, each frame alone: what it was trained for. The student
sees the gazed patches of all scales, with whatever attention it has. Three distances, each a mean over a clip's own
tokens, places or frames, so that a clip's loss does not depend on the clips beside it:

    own      of each gazed patch's feature to the teacher's there; a coarse patch's target is the mean of its places
    dense    of each place of the dense map, which carries the newest feature that covers it, to the teacher's there
    pooled   of each frame's pooled feature (the network's own pooling) to the teacher's

A distance is |s - t|^2 / (2 |t|^2): 1 - cosine where the lengths agree, and more where they do not. What was not seen
yet (a place, or a frame before the first patch) has no distance: nothing could be learnt from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.device import sent
from autogaze.patches import PatchVocabulary
from autogaze.vision.encoded import TokenFeatures
from autogaze.vision.encoder import GazedEncoder
from autogaze.vision.plan import covered_places

NAMES = ("own", "dense", "pooled")


@dataclass(frozen=True, eq=False)
class FullFeatures:
    """The teacher's features of F frames of each of B clips.

    at: int64 [B, F], which frames, on the CPU. places: [B, F, g * g, D], of the finest grid. pooled: [B, F, E], or None
    where they are not known.
    """

    at: Tensor
    places: Tensor
    pooled: Tensor | None

    @classmethod
    def of(cls, teacher: GazedEncoder, frames: Tensor, at: Tensor) -> FullFeatures:
        """Compute them. frames: uint8 [B, T, H, W, 3]; at: int64 [B, F]. Without gradients."""
        with torch.no_grad():
            chosen = frames[torch.arange(len(at))[:, None], at]
            out = teacher.sharing(attention="frame").encode(chosen)
            return cls(at, out.dense().flatten(2, 3), out.pool().frames)


def distances(out: TokenFeatures, full: FullFeatures) -> dict[str, Tensor]:
    """Distances by NAMES, float32 [B] each, of a student's features; zero where there is nothing to compare.

    out: of whole clips, of a vocabulary whose finest grid is the teacher's. Differentiable in it alone. "pooled" is
    left out where the teacher's pooled features are not known.
    """
    found = {"own": _own(out, full), "dense": _dense(out, full)}
    if full.pooled is not None:
        found["pooled"] = _pooled(out, full.at, full.pooled)
    return found


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """|s - t|^2 / (2 |t|^2) of features [..., D]: float32 [...]."""
    teacher = teacher.float()
    apart = (student.float() - teacher).square().sum(dim=-1)
    return apart / (2 * teacher.square().sum(dim=-1)).clamp(min=1e-12)


@lru_cache
def shares_of_places(vocabulary: PatchVocabulary) -> Tensor:
    """What each place of the finest grid counts for in the mean of each patch's: float32 [V, g * g], rows of sum 1."""
    places = covered_places(vocabulary)
    there = places >= 0
    shares = torch.zeros(vocabulary.size, vocabulary.counts[-1])
    shares.scatter_add_(1, places.clamp(min=0), there.float() / there.sum(dim=1, keepdim=True))
    return shares


def _own(out: TokenFeatures, full: FullFeatures) -> Tensor:
    plan, device = out.plan, out.tokens.device
    clips, frames = plan.lengths.shape
    number = torch.full((clips, frames), -1)
    number.scatter_(1, full.at, torch.arange(full.at.shape[1]).expand_as(full.at))
    which = number[plan.clip, plan.frame]  # of each token: the place of its frame among the teacher's
    chosen = (which >= 0).nonzero().squeeze(1)
    shares = shares_of_places(out.encoder.vocabulary).to(device)
    targets = torch.einsum("vp,bfpd->bfvd", shares, full.places.float())
    clip = sent(plan.clip[chosen], device)
    target = targets[clip, sent(which[chosen], device), sent(plan.id[chosen], device)]
    apart = distance(out.tokens[sent(chosen, device)], target)
    sums = apart.new_zeros(clips).index_add(0, clip, apart)
    return sums / torch.bincount(clip, minlength=clips).clamp(min=1)


def _dense(out: TokenFeatures, full: FullFeatures) -> Tensor:
    shown = out.shown().gather(1, full.at[..., None].expand(-1, -1, out.encoder.vocabulary.counts[-1]))
    there = sent(shown >= 0, out.tokens.device)
    if not len(out.tokens):
        return out.tokens.new_zeros(len(shown), dtype=torch.float32)
    # Not an index, whose gradient is added up in an order that differs from run to run.
    features = F.embedding(sent(shown.clamp(min=0), out.tokens.device), out.tokens)
    apart = distance(features, full.places) * there
    return apart.sum(dim=(1, 2)) / there.sum(dim=(1, 2)).clamp(min=1)


def _pooled(out: TokenFeatures, at: Tensor, target: Tensor) -> Tensor:
    begun = (out.plan.lengths.cumsum(dim=1) > 0).gather(1, at).to(target.device)
    features = out.pool().frames.gather(1, at[..., None].expand(-1, -1, target.shape[2]).to(target.device))
    return (distance(features, target) * begun).sum(dim=1) / begun.sum(dim=1).clamp(min=1)
