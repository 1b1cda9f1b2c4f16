"""Video bytes -> frames: some decoders behind one small interface, every failure with a named reason.

    info = probe(Source("video.mp4"))                                   # in this process
    for i, frames in decode_clips(source, [[0, 1], [8, 9]], config):    # opens the video once
        ...                                                             # frames: uint8 [2, 224, 224, 3], or VideoError

    with IsolatedDecoder(config) as decoder:                            # pipelines.video.isolated: the same two calls
        decoder.probe(source)                                           # in a child process, which may crash, hang or
        ...                                                             # run out of memory

What holds for every decoder:
- Frame n is the n-th frame, from 0, that a decode of the whole video delivers, in the order they are shown.
- A clip is frames or a VideoError. Nothing is substituted: a clip that depends on damaged data fails, others do not.
- The outcomes of a call depend on the video's bytes and the clips asked for; not on other videos, nor on timing, except
  for IsolatedDecoder's time limit, which must pass twice in a row. With pyav a clip's outcome does not depend on the
  other clips either, as long as the decoder notices the damage.
- Damage that the decoder does not notice cannot fail: one wrong bit often just decodes to a wrong picture.
- Only a fault of the video becomes a VideoError. Any other exception is a bug, or a fault of the machine.
- Sources are local files; the caller fetches them.

decord, torchcodec and torchcodec-cuda are optional (`pip install -e '.[decord]'`). PyAV always probes, and decodes what
torchcodec-cuda leaves to it, which is counted. Each comes with its own ffmpeg: decord and torchcodec in one process
crash it. IsolatedDecoder keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.video.backends import backend, outcomes, ready_backend
from pipelines.video.base import (
    DECODERS,
    REASONS,
    DecodeConfig,
    Native,
    Source,
    VideoError,
    VideoInfo,
    frame_shape,
)
from pipelines.video.isolated import IsolatedDecoder

__all__ = [
    "DECODERS",
    "REASONS",
    "DecodeConfig",
    "IsolatedDecoder",
    "Source",
    "VideoError",
    "VideoInfo",
    "decode_clips",
    "decoder_fingerprint",
    "probe",
]


LONGEST_TIMEOUT_S = 86400
"""A day: decoder_timeout_s may be no more."""


def probe(source: Source) -> VideoInfo:
    """The facts of a video, from its header, its index and its first frame. Raises VideoError.

    The whole stream is read (not decoded) only where the header does not give the exact number of frames, and decoded
    only where time stamps do not give it either (AVI with B-frames, raw streams). Of a container whose data may end
    inside a picture the last group of pictures is decoded.
    """
    from pipelines.video import pyav  # a process that decodes in a child has no use for libav

    return pyav.probe(source)


def decode_clips(
    source: Source, clips: Sequence[Sequence[int]], config: DecodeConfig, native: Native | None = None
) -> Iterator[tuple[int, np.ndarray | VideoError]]:
    """Decode clips, each a sequence of frame numbers, in this process; the video is opened once.

    Yields (i, frames of clips[i]) as uint8 [len(clips[i]), size, size, 3] RGB, upright as displayed, or
    (i, VideoError), once per clip, by ascending first frame. A clip may name frames in any order, and more than once.
    With native=(height, width) frames come unscaled: uint8 [len(clips[i]), height, width, 3], and a clip
    with a frame of another size fails as size_changed.
    Raises ValueError for a clip without frames or with a negative one.
    """
    frames: dict[int, np.ndarray] = {}

    def buffer(i: int) -> np.ndarray:
        if i not in frames:
            frames[i] = np.empty((len(clips[i]), *frame_shape(config, native)), np.uint8)
        return frames[i]

    for i, error in outcomes(ready_backend(config.decoder), source, clips, config, buffer, native):
        decoded = frames.pop(i, None)
        if error is not None:
            yield i, error
        else:
            assert decoded is not None
            yield i, decoded


def decoder_fingerprint(config: DecodeConfig) -> str:
    """The back end and the versions that decide its pixels, for example "pyav-18.1.0/libavcodec-62.28.102".

    Raises ImportError, one line that says what to install, if the back end is not there.
    """
    return backend(config.decoder).fingerprint()
