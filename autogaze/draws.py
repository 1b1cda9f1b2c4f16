"""What is drawn at random for a clip: shares of frames, orders of patches, frames to rebuild.

All of it is made from uniform numbers of numpy's Philox, whose stream is the same in every version. Numpy's other
distributions and its shuffles are not used: they may change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

FIRST, LATER = 10, 3
"""Dirichlet weights of a clip's first frame, which has everything to show, and of the others (paper, appendix B)."""


def clip_generator(key: str, seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of one clip for one purpose. Raises ValueError if the seed is negative."""
    digest = hashlib.sha256(f"{purpose}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return numbered_generator(seed, int.from_bytes(digest, "big"))


def numbered_generator(*numbers: int) -> np.random.Generator:
    """Random numbers that depend on these whole numbers alone. Raises ValueError if one is negative."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def frame_shares(generator: np.random.Generator, frames: int) -> np.ndarray:
    """A Dirichlet draw with weights FIRST, LATER, LATER, ...: float64 [frames], with sum 1."""
    # A gamma variate of a whole-numbered shape is a sum of exponential ones; normalised, they are a Dirichlet draw.
    first = -np.log1p(-generator.random(FIRST)).sum()
    later = -np.log1p(-generator.random((frames - 1, LATER))).sum(axis=1)
    shares: np.ndarray = np.concatenate([[first], later])
    return shares / float(shares.sum())


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """A number between low and high, both positive, whose logarithm is uniform."""
    return math.exp(math.log(low) + generator.random() * (math.log(high) - math.log(low)))


def patch_orders(generator: np.random.Generator, frames: int, patches: int) -> np.ndarray:
    """All patch ids of each frame in random order, each order equally likely: int64 [frames, patches]."""
    return generator.random((frames, patches)).argsort(axis=1)


def draw_frames(generator: np.random.Generator, candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the candidate frame numbers (all, if they are fewer), rising."""
    order = generator.random(len(candidates)).argsort(kind="stable")
    return sorted(candidates[place] for place in order[:count].tolist())
