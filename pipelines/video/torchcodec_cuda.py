"""torchcodec on an NVIDIA GPU (`pip install -e '.[torchcodec-cuda]'`): NVDEC decodes, the GPU converts and resizes.

It has not run on a GPU yet: tests run it with torchcodec's CPU decoder in its place. Frames are found as by
pipelines.video.torchcodec, in the exact seek mode, and damaged data decodes in silence as there. Colours and sizes are
converted by other kernels than PyAV's, so pixels differ a little; pipelines.corpus.parity measures by how much.

What NVDEC is not sure to show as PyAV does is left to PyAV: codecs and formats that the GPU cannot decode, more than 8
bits, turned pictures, frames that are wanted unscaled. It is counted: pipelines.video.backends.outcomes. Frames come to
the host at config.size, so of a large video little crosses the bus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.video.base import Buffer, DecodeConfig, LeftToPyAV, Native, Source, VideoError, too_short

try:
    import torch
    import torchcodec
    from torchcodec.decoders import VideoDecoder
except ImportError:
    raise ImportError("decoder=torchcodec-cuda needs: pip install -e '.[torchcodec-cuda]' in the checkout") from None
except RuntimeError:  # installed, but its library does not load
    raise ImportError(
        "decoder=torchcodec-cuda needs the shared libraries of ffmpeg 4 to 8 and of CUDA's npp and nvrtc"
    ) from None

_FORMATS = {"yuv420p", "yuvj420p", "nv12"}  # 8 bits, which all of NVDEC's codecs have
_AT_ONCE = 8  # frames on their way from the decoder to their size: 200 MB at 4K


def fingerprint() -> str:
    from pipelines.video import pyav  # which decodes what is left to it

    return f"torchcodec-cuda-{torchcodec.__version__}/torch-{torch.__version__}/{pyav.fingerprint()}"


def require_device() -> None:
    """Raise ImportError, in one line, where there is no GPU."""
    if not torch.cuda.is_available():
        raise ImportError(
            "decoder=torchcodec-cuda: no GPU is here that PyTorch can use; use decoder=pyav, or decoder=torchcodec"
        )


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def decode_into(
    source: Source,
    clips: Sequence[Sequence[int]],
    order: Sequence[int],
    config: DecodeConfig,
    buffer: Buffer,
    native: Native | None,
) -> Iterator[tuple[int, VideoError | None]]:
    """See pipelines.video.backends.Backend. Raises LeftToPyAV for what it does not decode."""
    if native is not None:
        raise LeftToPyAV("frames are wanted unscaled")
    path, _, _, whole = source.window()
    try:
        video = VideoDecoder(
            path if whole else source.read(), dimension_order="NCHW", seek_mode="exact", device=_device()
        )
        frames, about = len(video), video.metadata
    except (ValueError, RuntimeError):  # no video, or none that it can open: PyAV says which, by name
        raise LeftToPyAV("torchcodec cannot open it") from None
    if about.rotation:
        raise LeftToPyAV("the picture is turned")
    if about.pixel_format not in _FORMATS:
        raise LeftToPyAV(f"pixels are {about.pixel_format}")
    if video.cpu_fallback:
        raise LeftToPyAV(f"the GPU does not decode {about.codec} of this kind")
    for i in order:
        if max(clips[i]) >= frames:
            yield i, too_short(max(clips[i]), frames)
            continue
        try:
            for first in range(0, len(clips[i]), _AT_ONCE):
                numbers = list(clips[i][first : first + _AT_ONCE])
                pictures = _resized(video.get_frames_at(numbers).data, config.size)
                buffer(i)[first : first + len(numbers)] = pictures.permute(0, 2, 3, 1).cpu().numpy()
        except torch.OutOfMemoryError:
            raise  # the GPU's memory is full, which is no fact about the video
        except RuntimeError:
            yield i, VideoError("decode_error", "torchcodec cannot decode the clip")
        else:
            yield i, None


def _resized(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> uint8 [n, 3, size, size], on their device."""
    if frames.shape[2:] == (size, size):
        return frames
    scaled = torch.nn.functional.interpolate(frames.float(), size=(size, size), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)
