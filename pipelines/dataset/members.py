"""The members of one sample in a shard's tar, and the frames among them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


class BadSample(Exception):
    """A sample that is not what the index says; the message is the reason, without the sample's name."""


def members_of(data: memoryview, clip: str) -> dict[str, memoryview]:
    """As shards.split_members, for bytes whose hash was found right: without copies, and thirty times as fast.

    Raises BadSample.
    """
    members, at, prefix = {}, 0, f"{clip}.".encode()
    while at < len(data):
        header = bytes(data[at : at + 512])
        name, size = header[:100].rstrip(b"\0"), int(header[124:135], 8)
        if not name.startswith(prefix):
            raise BadSample(f"member {name.decode(errors='replace')} does not belong to it")
        members[name[len(prefix) :].decode()] = data[at + 512 : at + 512 + size]
        at += 512 + -(-size // 512) * 512
    return members


def read_frames(members: dict[str, memoryview], out: np.ndarray) -> None:
    """As frames.decode_frames, into `out`: uint8 [T, S, S, 3]. Raises BadSample unless they fit."""
    if "frames.npy" in members:
        member = members["frames.npy"]
        header = io.BytesIO(member[:1024])
        np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        if shape != out.shape or dtype != np.uint8:
            raise BadSample(f"frames are {dtype} {list(shape)}, not uint8 {list(out.shape)}")
        out[...] = np.frombuffer(member, np.uint8, offset=header.tell()).reshape(shape)
        return
    names = sorted(name for name in members if name.endswith(".jpg"))
    if len(names) != len(out):
        raise BadSample(f"{len(names)} frames are stored, not {len(out)}")
    for name, frame in zip(names, out, strict=True):
        image = Image.open(io.BytesIO(members[name]), formats=("JPEG",))
        if image.size != frame.shape[1::-1]:
            raise BadSample(f"frames are {image.size[0]}x{image.size[1]}, not {frame.shape[1]}x{frame.shape[0]}")
        pixels = (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
        frame[...] = np.frombuffer(pixels, np.uint8).reshape(frame.shape)
