"""Which patches an encoder learns on: a gaze for each clip, of a ratio drawn from a range.

The ratio is that of a frame's patches to its patches of the finest scale: at 0.1 a frame costs a tenth of what it costs
in full. What is drawn depends on the generator alone, and so does the gaze, beside frames and stored gaze.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.baselines import first_patches
from autogaze.draws import patch_orders
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.vision.choose import changed_most, stalest
from pipelines.train.encoder_config import GazeKind


def training_gaze(
    kind: GazeKind,
    frames: Tensor,
    stored: Gaze,
    ratios: Sequence[float],
    generators: Sequence[np.random.Generator],
    *,
    vocabulary: PatchVocabulary,
    whole_first: bool,
) -> Gaze:
    """A gaze of clips, at most so many patches in each frame; each clip has one at least.

    kind: "stored" takes the first patches of each frame of `stored`, in the order in which they were chosen; "random"
        patches of all scales, as likely as each other; "stalest" and "changed_most" are autogaze.vision.choose's.
    frames: uint8 [B, T, S, S, 3]. ratios, generators: of each clip.
    whole_first: frame 0 has all its stored patches, or all of the finest scale.
    """
    clips, count = frames.shape[:2]
    finest = vocabulary.counts[-1]
    lengths = np.repeat([[max(1, int(ratio * finest + 0.5))] for ratio in ratios], count, axis=1)
    if whole_first:
        lengths[:, 0] = finest
    if kind == "stored":
        return Gaze.cat([_stored(stored[b], lengths[b], generators[b], whole_first) for b in range(clips)])
    if kind == "random":
        return Gaze.cat([_random(lengths[b], generators[b], vocabulary, whole_first) for b in range(clips)])
    choose = stalest if kind == "stalest" else changed_most
    gaze = choose(_seen_at(frames, vocabulary.frame_size), lengths, vocabulary=vocabulary)
    # A choice may find that nothing is worth a patch.
    chosen = [gaze[b] for b in range(clips)]
    return Gaze.cat(
        [
            one if len(one.tokens) else _random(most, generator, vocabulary, whole_first)
            for one, most, generator in zip(chosen, lengths, generators, strict=True)
        ]
    )


def _stored(gaze: Gaze, lengths: np.ndarray, generator: np.random.Generator, whole_first: bool) -> Gaze:
    """The first patches of each frame of one clip's gaze. A clip that has none shows random ones."""
    most = torch.from_numpy(lengths)
    if whole_first:
        most[0] = gaze.vocabulary.size
    if not int(gaze.lengths.sum()):
        return _random(lengths, generator, gaze.vocabulary, whole_first)
    taken = torch.minimum(gaze.lengths[0], most)
    own = gaze.lengths[0]
    number = torch.arange(len(gaze.tokens)) - torch.repeat_interleave(own.cumsum(0) - own, own)  # within its frame
    kept = number < torch.repeat_interleave(taken, own)
    return Gaze(tokens=gaze.tokens[kept], lengths=taken[None], vocabulary=gaze.vocabulary)


def _random(
    lengths: np.ndarray, generator: np.random.Generator, vocabulary: PatchVocabulary, whole_first: bool
) -> Gaze:
    orders = patch_orders(generator, len(lengths), vocabulary.size)
    if whole_first:
        orders[0] = np.roll(np.arange(vocabulary.size), vocabulary.counts[-1])  # the finest patches come first
    return first_patches(torch.from_numpy(orders)[None], lengths[None], vocabulary)


def _seen_at(frames: Tensor, side: int) -> Tensor:
    """Frames at the side that patches are chosen at: uint8 [B, T, side, side, 3]."""
    if frames.shape[2:4] == (side, side):
        return frames
    pictures = frames.flatten(0, 1).movedim(-1, 1).float()
    resized: Tensor = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
    pixels = resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    return pixels.reshape(*frames.shape[:2], side, side, 3)
