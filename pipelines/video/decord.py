"""decord, through its maintained fork decord2 (`pip install -e '.[decord]'`).

Differs from pyav: damaged data decodes in silence (concealed frames are delivered as good ones), a file cut short
simply has fewer frames, and random reads of some HEVC and edit-list files are off by some frames. Use it for data that
must match other data made with decord.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from pipelines.video.base import Buffer, DecodeConfig, Native, Source, VideoError, require_size, too_short

try:
    import decord
except ImportError:
    raise ImportError("decoder=decord needs: pip install -e '.[decord]' in the checkout") from None

decord.logging.set_level(decord.logging.QUIET)


def fingerprint() -> str:
    return f"decord-{decord.__version__}"


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.backends.Backend. decord scales while it decodes; a window of a file is read into memory."""
    path, _, _, whole = source.window()
    try:
        reader = decord.VideoReader(
            path if whole else io.BytesIO(source.read()),
            width=-1 if native else config.size,  # -1: as it is
            height=-1 if native else config.size,
            num_threads=config.threads,
        )
    except (decord.DECORDError, RuntimeError) as error:
        reason = "no_video_stream" if "cannot find video stream" in str(error) else "unreadable"
        raise VideoError(reason, "decord cannot open it") from None
    for i in order:
        if max(clips[i]) >= len(reader):
            yield i, too_short(max(clips[i]), len(reader))
            continue
        # Frames as they are may be large, and decord copies what it gives: one at a time.
        batches = [[n] for n in clips[i]] if native else [list(clips[i])]
        try:
            for at, batch in enumerate(batches):
                frames = reader.get_batch(batch).asnumpy()
                if native:
                    require_size(batch[0], frames.shape[1], frames.shape[2], native)
                buffer(i)[at : at + len(batch)] = frames
        except decord.DECORDError:
            yield i, VideoError("decode_error", "decord cannot decode the clip")
        except VideoError as error:
            yield i, error
        else:
            yield i, None
