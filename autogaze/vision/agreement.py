"""How far features of gazed frames agree with those of full frames: what a network loses, not what a picture loses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.vision.encoded import TokenFeatures


@dataclass(frozen=True)
class Agreement:
    """Mean cosines with the features of full frames, in [-1, 1]. Places that nothing has covered yet count as 0.

    tokens: of the finest scale's gazed patches, each with its place in the full frame; None where there are none.
    dense: of the dense maps, all places of all frames.
    pooled: of the clips' pooled features.
    """

    tokens: float | None
    dense: float
    pooled: float


def agreement(full: TokenFeatures, gazed: TokenFeatures) -> Agreement:
    """full: every patch of the finest scale, each frame alone (attention "frame"). Raises ValueError."""
    if full.plan.lengths.shape != gazed.plan.lengths.shape:
        raise ValueError(
            f"full frames of {list(full.plan.lengths.shape)} clips and frames, gazed ones of"
            f" {list(gazed.plan.lengths.shape)}"
        )
    target = full.dense()
    scale, row, column = (part.to(gazed.tokens.device) for part in gazed.plan.located)
    fine = scale == len(gazed.encoder.vocabulary.scales) - 1
    frame = gazed.frame - gazed.plan.start
    own = target[gazed.clip[fine], frame[fine], row[fine], column[fine]]
    return Agreement(
        mean_cosine(gazed.tokens[fine], own) if bool(fine.any()) else None,
        mean_cosine(gazed.dense(), target),
        mean_cosine(gazed.pool().clips, full.pool().clips),
    )


def mean_cosine(one: Tensor, other: Tensor) -> float:
    """Mean cosine of features [..., D], pair by pair, in float32."""
    return float(F.cosine_similarity(one.float(), other.float(), dim=-1).mean())


def retrieval(gazed: Tensor, full: Tensor) -> float:
    """Share of clips whose gazed feature [B, D] is nearer, by cosine, to their own full feature than to any other's."""
    nearest = (F.normalize(gazed.float(), dim=1) @ F.normalize(full.float(), dim=1).T).argmax(dim=1)
    return float((nearest == torch.arange(len(full), device=nearest.device)).float().mean())


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
