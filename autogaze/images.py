"""Image preparation, from frames to the network's input, as the released AutoGazeImageProcessor does it.

See docs/method.md, section 'Image preparation'.

The shortest edge of uint8 frames is resized to the network's side (PIL, bilinear, antialiased); pixels are scaled to
[-1, 1], then normalised by ImageNet's mean and deviation. Frames that are not square are then resized by the network.
Every step is bit-equal to the reference's.
"""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from autogaze.device import constant

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_DTYPES = (np.uint8, np.float16, np.float32, np.float64)


def as_model_input(
    frames: torch.Tensor | np.ndarray,
    size: int = 224,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The network's input, [B, T, 3, size, size], from a user's frames.

    frames: uint8 [B, T, H, W, 3], RGB of any size; or floats [B, T, 3, H, W], already preprocessed. Arrays may be
    read-only. Floats that need no change are returned without a copy.

    Raises ValueError, one line with what was found and what is wanted, for any other dtype or shape, where there is no
    clip, frame or pixel, and for NaN or infinity.
    """
    frames = check_frames(frames)
    if frames.dtype == torch.uint8:
        images = preprocess(frames, size, device)
    else:
        images = frames.to(device, torch.float32)
        require_numbers(images, "preprocessed pixels")
    return to_model_size(images, size).to(dtype)


def require_numbers(frames: torch.Tensor, wanted: str) -> None:
    """Raise ValueError, naming clip and frame, where floats [B, T, ...] hold NaN or infinity."""
    # One pass without a copy: minimum and maximum are NaN if any value is.
    if all(math.isfinite(float(bound)) for bound in torch.aminmax(frames.detach())):
        return
    clip, frame = (~frames.detach().isfinite().flatten(2).all(dim=2)).nonzero()[0].tolist()
    raise ValueError(f"frames hold NaN or infinity (the first in frame {frame} of clip {clip}): wanted {wanted}")


def check_frames(frames: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The frames of `as_model_input` as a tensor, not copied, their dtype and shape checked. Raises ValueError."""
    frames = _as_tensor(frames)
    integers = frames.dtype == torch.uint8
    if not integers and not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}: wanted uint8 [B, T, H, W, 3] or floats [B, T, 3, H, W]")
    wanted = "[B, T, H, W, 3]" if integers else "[B, T, 3, H, W]"
    if frames.dim() != 5 or frames.shape[-1 if integers else -3] != 3:
        raise ValueError(f"{frames.dtype} frames are {list(frames.shape)}: wanted {wanted}")
    if frames.numel() == 0:
        raise ValueError(
            f"frames {list(frames.shape)} hold no clip, no frame or no pixel: wanted {wanted}, none of it 0"
        )
    return frames


def preprocess(
    frames: torch.Tensor | np.ndarray,
    size: int = 224,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The image processor: uint8 [..., H, W, 3] to floats [..., 3, H', W'], about -6.5 to 2.65.

    The shorter of H' and W' is `size`; the longer keeps the aspect ratio, rounded down. Computed in float32.
    """
    frames = _resized(_as_tensor(frames), size).to(device)
    height, width, channels = frames.shape[-3:]
    images = torch.empty((*frames.shape[:-3], channels, height, width), device=frames.device)
    images.copy_(frames.movedim(-1, -3))
    # (x / 127.5 - 1 - mean) / std, each step rounded as written: folding them would change bits, and so would 127.5 as
    # a number, which CUDA multiplies by its reciprocal.
    half, mean, std = constant(((127.5,) * 3, MEAN, STD), frames.device).view(3, 3, 1, 1)
    return images.div_(half).sub_(1).sub_(mean).div_(std).to(dtype)


def of_shares(images: torch.Tensor) -> torch.Tensor:
    """Floats [..., 3, H, W] in [0, 1] as `preprocess` gives the same pixels, up to rounding. Differentiable."""
    mean, std = constant((MEAN, STD), images.device).view(2, 3, 1, 1)
    normalised: torch.Tensor = (images * 2 - 1 - mean) / std
    return normalised


def to_model_size(frames: torch.Tensor, size: int = 224) -> torch.Tensor:
    """Floats [..., 3, H, W] to [..., 3, size, size]: the network's own bicubic resize, which keeps no aspect ratio.

    Frames of that size are returned as they are, since the resize would be the identity.
    """
    if frames.shape[-2:] == (size, size):
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    resized = F.interpolate(flat, size=(size, size), mode="bicubic", align_corners=False, antialias=False)
    return resized.view(*frames.shape[:-2], size, size)


def _resized(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [..., H, W, 3] with the shortest edge at `size`."""
    height, width = frames.shape[-3:-1]
    shortest = min(height, width)
    if shortest == size:
        return frames
    new_height, new_width = int(size * height / shortest), int(size * width / shortest)
    flat = frames.cpu().contiguous().numpy().reshape(-1, height, width, 3)
    resized = np.empty((len(flat), new_height, new_width, 3), np.uint8)
    for number, frame in enumerate(flat):
        image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR)
        resized[number] = np.asarray(image)
    return torch.from_numpy(resized).view(*frames.shape[:-3], new_height, new_width, 3)


def _as_tensor(frames: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The same frames as a tensor, without a copy where the layout allows. Raises ValueError for what holds none."""
    if isinstance(frames, torch.Tensor):
        return frames
    if not isinstance(frames, np.ndarray) or frames.dtype not in _DTYPES:
        found = f"an array of {frames.dtype}" if isinstance(frames, np.ndarray) else f"a {type(frames).__name__}"
        raise ValueError(f"frames are {found}: wanted an array or tensor of uint8 or floats")
    if any(stride < 0 for stride in frames.strides):  # such as frames[..., ::-1], BGR to RGB
        frames = np.ascontiguousarray(frames)
    with warnings.catch_warnings():
        # Frames out of shared memory are read-only. Nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(frames)
