"""Frames of samples whose dataset stores none: decoded again from the videos they came from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from pipelines.corpus.clips import PlannedClip, decode_planned, require_unchanged
from pipelines.corpus.videos import local_copy
from pipelines.dataset.members import BadSample
from pipelines.storage.cache import LocalCache
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder


class Redecoder(AbstractContextManager["Redecoder"]):
    """Frames that a dataset does not keep, decoded again from their videos. For one thread at a time.

    A remote video is fetched whole for a clip, unless a cache holds it.
    """

    def __init__(self, decoder: str, size: int, cache: LocalCache | None) -> None:
        self.decoder = IsolatedDecoder(DecodeConfig(decoder=decoder, size=size))
        self.cache = cache

    def __exit__(self, *details: Any) -> None:
        self.decoder.close()

    def read_frames(self, row: dict[str, Any], out: np.ndarray) -> None:
        """The frames of a sample into `out`: uint8 [T, S, S, 3], as preprocess decoded them. Raises BadSample."""
        try:
            with local_copy(
                row["object"], row["object_offset"], row["bytes"], row["fingerprint"], self.cache
            ) as source:
                require_unchanged(source, row["fingerprint"])
                failed = decode_planned(self.decoder, source, [PlannedClip.of_row(row)], out[None])
                if failed:
                    raise failed[0]
        except FileNotFoundError:
            raise BadSample(f"its video {row['object']} is missing") from None
        except VideoError as error:
            raise BadSample(f"its video {row['object']} cannot be decoded: {error.reason} ({error.detail})") from None
