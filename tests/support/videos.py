"""Small real videos, made on the spot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    frames: int = 40,
    size: tuple[int, int] = (96, 64),
    seed: int = 0,
    rate: int = 25,
    codec: str = "libx264",
) -> Path:
    """A real video (width, height = size): a textured background and a disc that moves across it."""
    width, height = size
    random = np.random.default_rng(seed)
    background = (
        random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    )
    y, x = np.mgrid[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = background.astype(np.uint8).copy()
            disc = (x - (number * 3) % width) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
            picture[disc] = random.integers(0, 255, 3) if number % 10 == 0 else (250, 40, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
