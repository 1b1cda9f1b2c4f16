"""torchcodec (`pip install -e '.[torchcodec]'`, and the system's ffmpeg libraries), in its exact seek mode.

Differs from pyav: damaged data decodes in silence (concealed frames are delivered as good ones), a file cut short
simply has fewer frames, random reads of some edit-list files are off by some frames, and a child takes seconds to
start, because torch does. Use it for data that must match other data made with torchcodec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.video.base import Buffer, DecodeConfig, Native, Source, VideoError, require_size, too_short

try:
    import torch
    import torchcodec
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize
except ImportError:
    raise ImportError("decoder=torchcodec needs: pip install -e '.[torchcodec]' in the checkout") from None
except RuntimeError:  # installed, but its library does not load
    raise ImportError(
        "decoder=torchcodec needs the shared libraries of ffmpeg 4 to 8 (for example: apt-get install ffmpeg)"
    ) from None


def fingerprint() -> str:
    return f"torchcodec-{torchcodec.__version__}/torch-{torch.__version__}"


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.backends.Backend. A window of a file is read into memory."""
    path, _, _, whole = source.window()
    try:
        video = VideoDecoder(
            path if whole else source.read(),
            dimension_order="NHWC",
            num_ffmpeg_threads=config.threads,
            seek_mode="exact",
            transforms=[] if native else [Resize((config.size, config.size))],
        )
        frames = len(video)
    except ValueError as error:
        if "best video stream is unknown" not in str(error):
            raise
        raise VideoError("no_video_stream", "torchcodec finds no video stream") from None
    except RuntimeError:  # torchcodec has no error type of its own
        raise VideoError("unreadable", "torchcodec cannot open it") from None
    for i in order:
        if max(clips[i]) >= frames:
            yield i, too_short(max(clips[i]), frames)
            continue
        # Frames as they are may be large, and torchcodec gives copies: one at a time.
        batches = [[n] for n in clips[i]] if native else [list(clips[i])]
        try:
            for at, batch in enumerate(batches):
                decoded = video.get_frames_at(batch).data.numpy()
                if native:
                    require_size(batch[0], decoded.shape[1], decoded.shape[2], native)
                buffer(i)[at : at + len(batch)] = decoded
        except RuntimeError:
            yield i, VideoError("decode_error", "torchcodec cannot decode the clip")
        except VideoError as error:
            yield i, error
        else:
            yield i, None
