"""How a clip's frames are kept in a shard: as JPEGs, as one array, or not at all."""

from __future__ import annotations

import io

import numpy as np
import PIL
from PIL import Image, features

STORAGE = ("jpeg", "raw", "none")


def encode_frames(frames: np.ndarray, storage: str, quality: int) -> list[tuple[str, bytes]]:
    """Frames uint8 [T, H, W, 3] as (member suffix, bytes): T JPEGs, one frames.npy, or nothing."""
    if storage == "none":
        return []
    if storage == "raw":
        sink = io.BytesIO()
        np.save(sink, frames, allow_pickle=False)
        return [("frames.npy", sink.getvalue())]
    digits = max(2, len(str(len(frames) - 1)))
    members = []
    for number, frame in enumerate(frames):
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "JPEG", quality=quality)
        members.append((f"{number:0{digits}d}.jpg", sink.getvalue()))
    return members


def decode_frames(members: dict[str, bytes]) -> np.ndarray | None:
    """The inverse of encode_frames on a clip's members; uint8 [T, H, W, 3], or None when frames were not stored."""
    if "frames.npy" in members:
        return np.load(io.BytesIO(members["frames.npy"]), allow_pickle=False)
    names = sorted(name for name in members if name.endswith(".jpg"))
    if not names:
        return None
    return np.stack([np.asarray(Image.open(io.BytesIO(members[name])).convert("RGB")) for name in names])


def jpeg_fingerprint() -> str:
    """Pillow and JPEG library versions: what the stored frames' bytes depend on."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    return f"pillow-{PIL.__version__}/{library}-{features.version_codec('jpg')}"
