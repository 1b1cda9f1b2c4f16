"""How a clip's frames are kept in a shard: as JPEGs, as one array, or not at all."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Sequence
from typing import IO, Literal, TypeAlias

import numpy as np
import PIL
from PIL import Image, features

from autogaze import npz
from pipelines.dataset.members import BadSample, Members

FrameStorage: TypeAlias = Literal["jpeg", "raw", "none"]
_ARRAY = "frames.npy"
_ARRAY_HEADER = 1024  # bytes that hold the header of a .npy file with so few dimensions
_DAMAGED_JPEG = (OSError, SyntaxError, ValueError)  # what Pillow raises for one


def encode_frames(frames: np.ndarray, storage: str, quality: int) -> list[tuple[str, bytes]]:
    """Frames uint8 [T, H, W, 3] as (member suffix, bytes): T JPEGs, one frames.npy, or nothing."""
    if storage == "none":
        return []
    if storage == "raw":
        array = io.BytesIO()
        np.save(array, frames, allow_pickle=False)
        return [(_ARRAY, array.getvalue())]
    ends = [0]
    with _memory_file() as sink:
        for frame in frames:
            Image.fromarray(frame).save(sink, "JPEG", quality=quality)
            ends.append(sink.tell())
        sink.seek(0)
        data = sink.read()
    return jpeg_members([data[begin:end] for begin, end in itertools.pairwise(ends)])


def _memory_file() -> IO[bytes]:
    """A file in memory. It has a descriptor where it can: while Pillow writes to one, other threads may work."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("jpegs", os.MFD_CLOEXEC), "w+b", buffering=0)
    return io.BytesIO()


def jpeg_members(jpegs: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """The encoded frames of a clip as (member suffix, bytes): 00.jpg, 01.jpg, ..."""
    digits = max(2, len(str(len(jpegs) - 1)))
    return [(f"{number:0{digits}d}.jpg", data) for number, data in enumerate(jpegs)]


def decode_frames(members: Members) -> np.ndarray | None:
    """The frames of a clip, uint8 [T, H, W, 3]; None where none are stored. Raises BadSample where they are damaged."""
    if _ARRAY in members:
        _, shape = _array_header(members[_ARRAY])
    elif names := _jpeg_names(members):
        width, height = _open_jpeg(members, names[0]).size
        shape = (len(names), height, width, 3)
    else:
        return None
    frames = np.empty(shape, np.uint8)
    decode_frames_into(members, frames)
    return frames


def decode_frames_into(members: Members, out: np.ndarray) -> None:
    """Decode the frames of a clip into `out`, uint8 [T, H, W, 3].

    Raises BadSample where they are damaged, or of another shape.
    """
    if _ARRAY in members:
        begin, shape = _array_header(members[_ARRAY])
        if shape != out.shape:
            raise BadSample(f"frames are uint8 {list(shape)}, not uint8 {list(out.shape)}")
        pixels = np.frombuffer(members[_ARRAY], np.uint8, offset=begin)
        if pixels.size != out.size:
            raise BadSample(f"{_ARRAY} holds {pixels.size} pixel bytes, not {out.size}")
        out[...] = pixels.reshape(shape)
        return
    names = _jpeg_names(members)
    if len(names) != len(out):
        raise BadSample(f"{len(names)} frames are stored, not {len(out)}")
    for name, frame in zip(names, out, strict=True):
        image = _open_jpeg(members, name)
        if image.size != frame.shape[1::-1]:
            raise BadSample(f"frames are {image.size[0]}x{image.size[1]}, not {frame.shape[1]}x{frame.shape[0]}")
        try:
            data = (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
        except _DAMAGED_JPEG as error:
            raise BadSample(f"{name} is damaged: {error}") from error
        frame[...] = np.frombuffer(data, np.uint8).reshape(frame.shape)


def _open_jpeg(members: Members, name: str) -> Image.Image:
    """The image of a member, its header read and its pixels not yet decoded. Raises BadSample."""
    try:
        return Image.open(io.BytesIO(members[name]), formats=("JPEG",))
    except _DAMAGED_JPEG as error:
        raise BadSample(f"{name} is damaged: {error}") from error


def _jpeg_names(members: Members) -> list[str]:
    return sorted(name for name in members if name.endswith(".jpg"))


def _array_header(data: bytes | memoryview) -> tuple[int, tuple[int, ...]]:
    """Where the pixels of a frames.npy begin, and their shape. Raises BadSample unless they are uint8, row by row."""
    file = io.BytesIO(data[:_ARRAY_HEADER])
    try:
        with npz.PARSING:
            np.lib.format.read_magic(file)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise BadSample(f"{_ARRAY} is damaged: {error}") from error
    if dtype != np.uint8 or by_column:
        raise BadSample(f"frames are {dtype} {list(shape)}, not uint8 in C order")
    return file.tell(), shape


def jpeg_fingerprint() -> str:
    """Pillow and JPEG library versions: what the stored frames' bytes depend on."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    return f"pillow-{PIL.__version__}/{library}-{features.version_codec('jpg')}"
