"""Does another decoder show what PyAV shows? Compared on some videos of a corpus, before a dataset is made with it.

A decoder on a GPU converts colours and sizes by other kernels, and finds frames its own way. So a run of frames from
the middle of each compared video is decoded by both. A colour space that was taken for another differs by far more
than rounding does. A frame that is its neighbour may differ by less, so where a video moves it is also asked which of
the frames it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpus.videos import local_copy
from pipelines.errors import PipelineError
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.isolated import IsolatedDecoder

VIDEOS, FRAMES = 16, 8
"""Videos of a corpus that are compared, and frames of each."""
MOST_MEAN, MOST_WORST = 3.0, 8.0
"""Of 255: the most that frames may differ by, in the mean of all and in the worst one. torchcodec on a CPU differs by
0.7 to 1.8 on natural video (docs/decisions.md, section 'Decoding')."""
_LOOKED_AT = 4 * VIDEOS


@dataclass(frozen=True)
class Parity:
    """What was compared: mean absolute differences of a frame's pixels, of 255.

    Attributes:
        videos, frames: compared. left: videos that the decoder left to PyAV, which were passed over.
        mean: over all compared frames. worst: of one frame, of the video `worst_video`.
        misplaced: videos most of whose frames are rather the one before or after.
    """

    decoder: str
    videos: int
    frames: int
    left: int
    mean: float
    worst: float
    worst_video: str
    misplaced: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For dataset.json."""
        return asdict(self) | {"misplaced": [*self.misplaced], "most_mean": MOST_MEAN, "most_worst": MOST_WORST}

    def require(self) -> None:
        """Raise PipelineError where frames differ by more than they may, or are other frames."""
        if self.misplaced:
            raise PipelineError(
                f"decoder={self.decoder}: of {len(self.misplaced)} of {self.videos} videos, such as "
                f"{self.misplaced[0]}, it shows other frames than PyAV; use decoder=pyav"
            )
        if self.mean > MOST_MEAN or self.worst > MOST_WORST:
            raise PipelineError(
                f"decoder={self.decoder}: its frames differ from PyAV's by {self.mean:.2f} of 255 in the mean of "
                f"{self.videos} videos, and by {self.worst:.1f} in the worst frame ({self.worst_video}); at most "
                f"{MOST_MEAN:g} and {MOST_WORST:g} are taken for the same picture: use decoder=pyav"
            )


def sampled(manifest: pd.DataFrame, most: int = _LOOKED_AT) -> list[dict[str, Any]]:
    """Rows of the videos to look at: readable ones, in an order that depends on their names alone."""
    rows = manifest[manifest["status"] == "ok"]
    order = [hashlib.sha256(str(uri).encode("utf-8", "surrogateescape")).hexdigest() for uri in rows["uri"]]
    chosen = rows.iloc[np.argsort(np.array(order))[:most]]
    return [{str(name): value for name, value in row.items()} for row in chosen.to_dict("records")]


def compare(videos: Sequence[dict[str, Any]], config: DecodeConfig, most: int = VIDEOS) -> Parity:
    """Compare a decoder with PyAV on the first `most` of these rows of a manifest that both decode.

    Raises PipelineError: the decoder cannot run here, or fails on a video that PyAV decodes.
    """
    differences: list[np.ndarray] = []
    names: list[str] = []
    misplaced: list[str] = []
    left = 0
    with ExitStack() as stack:
        other = stack.enter_context(IsolatedDecoder(config))
        pyav = stack.enter_context(IsolatedDecoder(replace(config, decoder="pyav")))
        for row in videos:
            if len(names) == most:
                break
            numbers = _frames_of(int(row["frames"]))
            place = str(row["object"]), int(row["offset"]), int(row["bytes"])
            with local_copy(*place, str(row["fingerprint"])) as source:
                before = other.fallbacks.total()
                found, wanted = _decoded(other, source, numbers), _decoded(pyav, source, numbers)
            if other.fallbacks.total() > before:
                left += 1
            elif isinstance(wanted, VideoError):
                continue
            elif isinstance(found, VideoError):
                raise PipelineError(
                    f"decoder={config.decoder}: fails on {row['uri']} ({found}), which PyAV decodes; use decoder=pyav"
                )
            else:
                differences.append(np.abs(found.astype(np.int16) - wanted).mean(axis=(1, 2, 3)))
                names.append(str(row["uri"]))
                if are_misplaced(found, wanted):
                    misplaced.append(names[-1])
    if not names:
        return Parity(config.decoder, 0, 0, left, 0.0, 0.0, "")
    worst = [float(each.max()) for each in differences]
    frames = np.concatenate(differences)
    last = int(np.argmax(worst))
    return Parity(
        decoder=config.decoder,
        videos=len(names),
        frames=len(frames),
        left=left,
        mean=round(float(frames.mean()), 4),
        worst=round(worst[last], 4),
        worst_video=names[last],
        misplaced=tuple(misplaced),
    )


def are_misplaced(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether most of the frames are rather the frame before or after than their own: uint8 [n, S, S, 3] each.

    From its own frame to its neighbour is a direction, and what a frame is off by lies along it if it is the neighbour,
    however little moves. What all pixels have in common, such as another brightness, does not count.
    """
    found, wanted = (frames.astype(np.float32) for frames in (found, wanted))
    off, wrong = found - wanted, 0
    off -= off.mean(axis=(1, 2), keepdims=True)
    for k in range(len(wanted)):
        for neighbour in (k - 1, k + 1):
            if 0 <= neighbour < len(wanted):
                step = wanted[neighbour] - wanted[k]
                step -= step.mean(axis=(0, 1))
                if float((off[k] * step).sum()) > 0.5 * float((step * step).sum()):
                    wrong += 1
                    break
    return wrong > len(wanted) / 2


def _frames_of(frames: int) -> list[int]:
    first = max(0, frames // 2 - FRAMES // 2)
    return list(range(first, min(first + FRAMES, max(frames, 1))))


def _decoded(decoder: IsolatedDecoder, source: Source, numbers: list[int]) -> np.ndarray | VideoError:
    try:
        [(_, decoded)] = decoder.decode_clips(source, [numbers])
    except ImportError as error:
        raise PipelineError(str(error)) from error
    return decoded if isinstance(decoded, VideoError) else decoded.copy()
