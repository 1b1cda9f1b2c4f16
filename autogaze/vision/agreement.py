"""How far features of gazed frames agree with those of full frames: what a network loses, not what a picture loses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.vision.encoded import TokenFeatures


@dataclass(frozen=True, eq=False)
class Agreement:
    """Mean cosines with the features of full frames, of each clip: float32 [B], in [-1, 1].

    tokens: of the finest scale's gazed patches, each with its place in the full frame; NaN where a clip has none.
    dense: of the dense maps, all places of all frames. A place that nothing has covered yet counts as 0.
    pooled: of the clips' pooled features; 0 for a clip without tokens.
    """

    tokens: Tensor
    dense: Tensor
    pooled: Tensor


def agreement(full: TokenFeatures, gazed: TokenFeatures) -> Agreement:
    """full: every patch of the finest scale, each frame alone (attention "frame"). Raises ValueError."""
    clips, frames = full.plan.lengths.shape
    if gazed.plan.lengths.shape != (clips, frames):
        raise ValueError(
            f"full frames of {[clips, frames]} clips and frames, gazed ones of {list(gazed.plan.lengths.shape)}"
        )
    target = full.dense()
    scale, row, column = (part.to(gazed.tokens.device) for part in gazed.plan.located)
    fine = scale == len(gazed.encoder.vocabulary.scales) - 1
    frame, clip = gazed.frame - gazed.plan.start, gazed.clip[fine]
    own = cosine(gazed.tokens[fine], target[clip, frame[fine], row[fine], column[fine]])
    counts = torch.bincount(clip, minlength=clips)
    sums = own.new_zeros(clips).index_add(0, clip, own)
    return Agreement(
        torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan),
        cosine(gazed.dense(), target).flatten(1).mean(dim=1),
        cosine(gazed.pool().clips, full.pool().clips),
    )


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of features [..., D], pair by pair, in float32: [...]. Of a feature that is zero it is 0."""
    return F.cosine_similarity(one.float(), other.float(), dim=-1)


@dataclass(frozen=True)
class Retrieval:
    """How well gazed clips find themselves among all clips. Of clips that are equally near, any may come first.

    first: share of clips that are nearest to themselves (rank 1), in [0, 1]; by chance 1 / clips.
    reciprocal: mean over clips of 1 / rank of the clip itself, in (0, 1].
    """

    first: float
    reciprocal: float


def retrieval(gazed: Tensor, full: Tensor) -> Retrieval:
    """Rank all clips by the cosine of their full feature with a gazed one; each [B, D], row b of both the same clip.

    A clip without tokens, whose feature is zero, is as near to all. Raises ValueError for fewer than 2 clips.
    """
    if len(full) < 2 or gazed.shape != full.shape:
        raise ValueError(
            f"gazed features {list(gazed.shape)}, full ones {list(full.shape)}: wanted as many, of 2 clips or more"
        )
    near = F.normalize(gazed.double(), dim=1) @ F.normalize(full.double(), dim=1).T
    own = near.diagonal()[:, None]
    better, equal = (near > own).sum(dim=1), (near == own).sum(dim=1)  # itself among the equal
    ranks = torch.arange(1, len(full) + 1, device=near.device)
    held = (ranks > better[:, None]) & (ranks <= (better + equal)[:, None])
    reciprocal = (held / ranks).sum(dim=1) / equal
    return Retrieval(float((held[:, 0] / equal).mean()), float(reciprocal.mean()))


def every_nth_frame(clips: int, frames: int, tokens: int, vocabulary: PatchVocabulary) -> Gaze:
    """Temporal subsampling as a gaze: frames evenly spaced, the first among them, in full, as many as `tokens` allow.

    At least one frame. Raises ValueError if the clip has no frame.
    """
    if frames < 1:
        raise ValueError("a clip has at least 1 frame")
    count = min(frames, max(1, tokens // vocabulary.counts[-1]))
    taken = {round(n * frames / count) for n in range(count)}
    finest = list(range(vocabulary.offsets[-1], vocabulary.size))
    return Gaze.from_lists([[finest if t in taken else [] for t in range(frames)]] * clips, vocabulary=vocabulary)
