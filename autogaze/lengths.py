"""How many tokens each frame gets when that is decided before gazing: the lengths of the paper's labels.

What is drawn for a clip depends on a seed and the clip's name alone: not on its batch, its shard or its worker.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from autogaze.draws import FIRST, LATER, clip_generator, frame_shares
from autogaze.patches import VOCABULARY, PatchVocabulary


def paper_lengths(
    keys: Sequence[str],
    frames: int,
    vocabulary: PatchVocabulary = VOCABULARY,
    *,
    low: float = 0.02,
    high: float = 0.2,
    rate: float = 10.0,
    seed: int = 0,
) -> torch.Tensor:
    """Tokens of each frame of clips named `keys`, drawn as for the paper's labels (3.2, appendix B): int64 [B, T].

    A clip's mean gazing ratio comes from the exponential distribution of `rate`, restricted to [low, high]. A Dirichlet
    draw, with weight 10 for frame 0 and 3 for each other, shares mean * T out among the frames. A frame's ratio is
    clamped to 1, and becomes a number of tokens as `vocabulary.cap` rounds: down in float32, but at least 1.

    Raises ValueError for limits, a rate, a seed or a number of frames out of range.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"the mean ratio is drawn from low..high within (0, 1], not {low}..{high}")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate must be a positive number, not {rate}")
    if frames < 1:
        raise ValueError(f"a clip has at least 1 frame, not {frames}")
    ratios = np.empty((len(keys), frames))
    for b, key in enumerate(keys):
        generator = clip_generator(key, seed, "lengths")
        # By the inverse of the restricted distribution, which takes exactly one uniform number.
        top, bottom = math.exp(-rate * low), math.exp(-rate * high)
        mean = -math.log(top - generator.random() * (top - bottom)) / rate
        ratios[b] = np.clip(frame_shares(generator, frames) * mean * frames, 0, 1)
    tokens = (ratios.astype(np.float32) * np.float32(vocabulary.size)).astype(np.int64)
    return torch.from_numpy(np.maximum(tokens, 1))


def mean_lengths(ratio: float, frames: int, vocabulary: PatchVocabulary = VOCABULARY) -> torch.Tensor:
    """Tokens of each frame at a gazing ratio, in the proportions that `paper_lengths` has on average: int64 [T].

    They add up to ratio * T * vocabulary.size, rounded. Raises ValueError if the ratio is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"a gazing ratio lies in (0, 1], not {ratio}")
    weights = np.array([FIRST] + [LATER] * (frames - 1))
    return apportion(weights, round(ratio * frames * vocabulary.size), np.full(frames, vocabulary.size))


def apportion(weights: np.ndarray, total: int, room: np.ndarray) -> torch.Tensor:
    """Share out `total` tokens in proportion to weights [T], no frame getting more than its room [T]: int64 [T].

    The shares add up to `total`, or to all the room if that is less. Tokens left after rounding down go to the frames
    with the largest remainders, of equals to the earlier. A frame without weight must have no room.
    """
    weights, room = np.asarray(weights, np.float64), np.asarray(room, np.int64)
    total = min(int(total), int(room.sum()))
    free, exact = room > 0, room.astype(np.float64)
    while free.any():
        share = weights * (total - room[~free].sum()) / weights[free].sum()
        exact = np.where(free, share, room)
        if not (free & (share > room)).any():
            break
        free &= share <= room
    whole = np.minimum(exact.astype(np.int64), room)
    rest = np.where(whole < room, exact - whole, -1.0)
    whole[np.argsort(-rest, kind="stable")[: total - whole.sum()]] += 1
    return torch.from_numpy(whole)
