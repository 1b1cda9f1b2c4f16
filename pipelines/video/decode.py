"""Video bytes -> frames: three decoders behind one small interface, every failure with a named reason.

    info = probe(Source("video.mp4"))                                   # in this process
    for i, frames in decode_clips(source, [[0, 1], [8, 9]], config):    # opens the video once
        ...                                                             # frames: uint8 [2, 224, 224, 3], or VideoError

    with IsolatedDecoder(config) as decoder:                            # the same two calls, in a child process that
        decoder.probe(source)                                           # may crash, hang or run out of memory
        ...

What holds for every decoder:
- Frame n is the n-th frame, from 0, that a decode of the whole video delivers, in the order they are shown.
- A clip is frames or a VideoError. Nothing is substituted: a clip that depends on damaged data fails, others do not.
- The outcomes of a call depend on the video's bytes and the clips asked for; not on other videos, nor on timing (but
  for IsolatedDecoder's time limit, and that only twice in a row). With pyav a clip's outcome does not depend on the
  other clips either, as long as the decoder notices the damage there is.
- Damage that the decoder overlooks cannot fail: a wrong bit inside a picture often just decodes to a wrong picture.
- Only what is wrong with the video becomes a VideoError. Any other exception is a bug, or trouble of the machine.
- Sources are local files: fetching is the caller's business.

decord and torchcodec are optional (`pip install autogaze-pipelines[decord]`); probing is always done by PyAV. Each
comes with its own ffmpeg: decord and torchcodec in one process crash it. IsolatedDecoder keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.errors import PipelineError
from pipelines.video.base import (
    DECODERS,
    REASONS,
    DecodeConfig,
    Native,
    Source,
    VideoError,
    VideoInfo,
    backend,
    frame_shape,
    outcomes,
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
    "check_timeout",
    "decode_clips",
    "decoder_fingerprint",
    "probe",
]


_LONGEST_S = 86400.0


def check_timeout(seconds: float) -> None:
    """Raise PipelineError for a decoder_timeout_s that no wait can have."""
    if not 0 < seconds <= _LONGEST_S:
        raise PipelineError(f"decoder_timeout_s={seconds}: must be more than 0 and at most {_LONGEST_S:.0f}, a day")


def probe(source: Source) -> VideoInfo:
    """The facts of a video, from its header, its index and its first frame. Raises VideoError.

    The whole stream is read (not decoded) only where the header does not tell the number of frames exactly, and
    decoded only where time stamps cannot tell it either (some AVI files).
    """
    return backend("pyav").probe(source)


def decode_clips(
    source: Source, clips: Sequence[Sequence[int]], config: DecodeConfig, native: Native | None = None
) -> Iterator[tuple[int, np.ndarray | VideoError]]:
    """Decode clips, each a sequence of frame numbers, in this process; the video is opened once.

    Yields (i, frames of clips[i]) as uint8 [len(clips[i]), size, size, 3] RGB, turned as for display, or
    (i, VideoError), once per clip, by ascending first frame. A frame may be asked for in any order, and more than once.
    With native=(height, width) frames come as they are, not scaled: uint8 [len(clips[i]), height, width, 3], and a clip
    with a frame of another size fails as size_changed.
    Raises ValueError for a clip without frames or with a negative one.
    """
    frames: dict[int, np.ndarray] = {}

    def buffer(i: int) -> np.ndarray:
        if i not in frames:
            frames[i] = np.empty((len(clips[i]), *frame_shape(config, native)), np.uint8)
        return frames[i]

    for i, error in outcomes(backend(config.decoder), source, clips, config, buffer, native):
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
