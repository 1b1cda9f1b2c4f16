"""Frames of samples whose dataset stores none: decoded again from their videos."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from autogaze.draws import numbered_generator
from pipelines.corpus.clips import PlannedClip, decode_planned, require_unchanged
from pipelines.corpus.videos import local_copy
from pipelines.dataset.members import BadSample
from pipelines.storage.cache import LocalCache
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder, index_folder

_PLACE = 3  # what is drawn, after seed, epoch and sample; 1 and 2 are pipelines/train/augment.py's


def drawn_place(
    row: dict[str, Any], seed: int, epoch: int, sample: int, *, starts: bool, max_stride: int
) -> dict[str, Any]:
    """A row of Samples.table for other frames of its video, by seed, epoch and sample alone.

    starts: it begins anywhere a whole clip fits. max_stride: it takes every n-th frame, n from 1 to this, as far as a
    whole clip fits; 0: as planned. A video that is shorter than the planned clip gives that one.
    """
    first, second = numbered_generator(seed, epoch, sample, _PLACE).random(2)
    steps, length = row["frames"] - 1, row["video_frames"]
    longest = (length - 1) // steps if steps else max_stride  # the stride at which a clip just fits
    stride = 1 + int(first * min(max_stride, longest)) if max_stride and longest >= 1 else row["stride"]
    last = length - 1 - steps * stride  # the last start at which a clip fits
    if last < 0:
        return row
    start = int(second * (last + 1)) if starts else min(row["start"], last)
    return row | {"start": start, "stride": stride}


class Redecoder(AbstractContextManager["Redecoder"]):
    """Decodes frames that a dataset does not keep from their videos. For one thread at a time.

    A remote video is fetched whole for each clip, unless there is a cache.

    Args:
        decoder: the dataset's.
        size: S, the side of a frame.
        cache: of remote videos, or None.
    """

    def __init__(self, decoder: str, size: int, cache: LocalCache | None) -> None:
        self.decoder = IsolatedDecoder(DecodeConfig(decoder=decoder, size=size, index_dir=index_folder()))
        self.cache = cache

    def __exit__(self, *details: Any) -> None:
        self.decoder.close()

    def decode_into(self, row: dict[str, Any], out: np.ndarray) -> None:
        """The frames of a sample into `out`: uint8 [T, S, S, 3], as preprocess decoded them. Raises BadSample.

        row: of Samples.table.
        """
        video = row["object"]
        try:
            with local_copy(video, row["object_offset"], row["bytes"], row["fingerprint"], self.cache) as source:
                require_unchanged(source, row["fingerprint"])
                failed = decode_planned(self.decoder, source, [PlannedClip.of_row(row)], out[None])
                if failed:
                    raise failed[0]
        except FileNotFoundError:
            raise BadSample(f"its video {video} is missing") from None
        except VideoError as error:
            raise BadSample(f"its video {video} cannot be decoded: {error.reason} ({error.detail})") from None
        except OSError as error:
            raise BadSample(f"its video {video} cannot be read: {error}") from error
