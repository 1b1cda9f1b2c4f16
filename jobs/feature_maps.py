"""What an encoder sees of a clip, as pictures for the report: features of full frames beside those of gazed patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autogaze.gaze import Gaze
from autogaze.vision import GazedEncoder
from autogaze.vision.agreement import cosine
from autogaze.vision.colours import Colours
from pipelines.inspection.features import not_finite

NOT_SHOWN = 128  # grey level of a place that no gazed patch has shown yet


@dataclass(frozen=True)
class FeatureMaps:
    """Dense maps of one clip in the colours of the principal components of its full frames' features.

    full, gazed: uint8 [T, g, g, 3], a pixel for each finest patch; in `gazed` places nothing has shown yet are grey.
    cosine: [T], of the two maps of each frame, places not shown counting as 0. tokens: patches that were encoded.
    """

    full: np.ndarray
    gazed: np.ndarray
    cosine: list[float]
    tokens: int

    @property
    def mean(self) -> float:
        """Over the frames."""
        return sum(self.cosine) / len(self.cosine)


def feature_maps(encoder: GazedEncoder, frames: np.ndarray, gaze: Gaze, convert: str = "") -> FeatureMaps:
    """Of frames uint8 [T, S, S, 3] and their gaze. Full frames are seen singly, gazed patches as the encoder is set.

    convert: as in `GazedEncoder.encode`, '' for None. Raises ValueError for a gaze of other patches, and for features
    that are NaN or infinite.
    """
    whole = encoder.sharing(attention="frame").encode(frames[None])
    seen = encoder.encode(frames[None], gaze, convert=convert or None)
    if not bool(whole.tokens.isfinite().all() and seen.tokens.isfinite().all()):
        raise ValueError(not_finite(encoder))
    full, gazed = whole.dense()[0], seen.dense()[0]
    colours = Colours.of(full)
    shown = (seen.shown()[0] >= 0).view(gazed.shape[:-1]).to(gazed.device)
    picture = colours(gazed)
    picture[~shown] = NOT_SHOWN
    return FeatureMaps(
        colours(full).cpu().numpy(),
        picture.cpu().numpy(),
        cosine(gazed, full).flatten(1).mean(dim=1).tolist(),
        len(seen.tokens),
    )
