"""The error after each token of a gaze that came without: measured by a reconstructor, as greedy labels are."""

from __future__ import annotations

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import Reconstructor, as_clips


@torch.no_grad()
def measure_errors(frames: torch.Tensor | np.ndarray, gaze: Gaze, reconstructor: Reconstructor) -> Gaze:
    """The same tokens with the error before and after each, in the reconstructor's units.

    frames: uint8 clips [B, T, S, S, 3] that the gaze is of. A gaze made by greedy.label comes back as it was, errors
    included. Raises ValueError if the gaze is of other clips or patches.
    """
    clips = as_clips(frames, reconstructor.vocabulary)
    if gaze.vocabulary != reconstructor.vocabulary or tuple(gaze.lengths.shape) != tuple(clips.shape[:2]):
        raise ValueError(
            f"the gaze is of {tuple(gaze.lengths.shape)} clips and frames of {gaze.vocabulary}, the frames are "
            f"{tuple(clips.shape[:2])} and the reconstructor has {reconstructor.vocabulary}"
        )
    initial, losses = [], []
    for b in range(len(clips)):
        search, before, after = reconstructor.search(clips[b : b + 1]), [], []
        for t, tokens in enumerate(gaze.frames(b)):
            before.append(search.open(t))
            for token in tokens:
                one = torch.tensor([[token]], device=clips.device)
                after.append(search.errors(one)[:, 0])
                search.take(one[:, 0])
        initial.append(reconstructor.loss(torch.stack(before, dim=1)))
        losses += [reconstructor.loss(torch.cat(after))] if after else []
    return Gaze(
        tokens=gaze.tokens,
        lengths=gaze.lengths,
        losses=torch.cat(losses) if losses else torch.zeros(0),
        initial=torch.cat(initial),
        vocabulary=gaze.vocabulary,
    )
