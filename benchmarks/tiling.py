"""Does a long 4K video go through, and is memory flat whatever its duration? The policy on 224-pixel tiles of a chunk.

    python benchmarks/tiling.py                                    # 1,000 frames of 3840x2160, random weights
    python benchmarks/tiling.py --frames 32 --checkpoint FOLDER    # shorter; other weights
    python benchmarks/tiling.py --decode                           # the frames come from a file
    python benchmarks/tiling.py --passes --height 1080 --width 1920 --frames 128    # what chunk by chunk costs

The video is synthetic, a window moving over a texture with a bar that crosses it. Its frames are made on the fly, 16 at
a time; with --decode they are encoded once (PyAV, H.264) into a temporary file, which is not timed, and decoded again.
After each tenth of the video: clips (16 frames of one tile) per second so far, and this process's memory, now and at
its peak. Without --checkpoint the network has the released size and random weights, which take as long as trained ones
at a fixed number of tokens.

With --passes nothing is gazed at. The file is decoded as preprocess does with clip.tiles=native, each chunk by a call
of its own: frames that libav decoded for each that was asked for, and CPU seconds. Before: each call opens the video,
and begins at a keyframe. Kept: the video stays open in its child; one child has all chunks, or two have every other.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Results

from autogaze.model import AutoGaze
from autogaze.model.config import AutoGazeConfig
from autogaze.tiling import CHUNK_FRAMES, TileGrid, gaze_video

MARGIN = 256  # pixels the window moves over before it turns round


class Scene:
    """Frames uint8 [H, W, 3] of a moving picture, any number of them."""

    def __init__(self, height: int, width: int) -> None:
        random = np.random.default_rng(20260)
        self.height, self.width = height, width
        coarse = random.integers(0, 256, ((height + MARGIN) // 32 + 1, (width + MARGIN) // 32 + 1, 3), np.uint8)
        self.texture = coarse.repeat(32, axis=0).repeat(32, axis=1)
        self.texture //= 2
        self.texture += random.integers(0, 128, self.texture.shape, np.uint8)

    def draw(self, number: int, into: np.ndarray) -> None:
        """Frame `number`, written into uint8 [H, W, 3]."""
        y, x = (abs((step * number) % (2 * MARGIN) - MARGIN) for step in (3, 5))
        into[:] = self.texture[y : y + self.height, x : x + self.width]
        left = 8 * number % self.width
        into[:, left : left + self.width // 20] = (250, 200, 40)

    def chunk(self, start: int, end: int) -> np.ndarray:
        """Frames start..end: uint8 [t, H, W, 3]."""
        frames = np.empty((end - start, self.height, self.width, 3), np.uint8)
        for number in range(start, end):
            self.draw(number, frames[number - start])
        return frames


def spans(frames: int) -> list[tuple[int, int]]:
    """First and last (exclusive) frame of each chunk."""
    return [(start, min(start + CHUNK_FRAMES, frames)) for start in range(0, frames, CHUNK_FRAMES)]


def encode(scene: Scene, frames: int, path: Path, group: int = 250) -> None:
    """The video as an H.264 file. group: frames from a keyframe to the next."""
    import av

    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "threads": "1", "g": str(group)}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        picture = np.empty((scene.height, scene.width, 3), np.uint8)
        for number in range(frames):
            scene.draw(number, picture)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def decoded(path: Path, scene: Scene, frames: int) -> Iterator[np.ndarray]:
    """The chunks of a file, decoded one after another."""
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        pictures = container.decode(video=0)

        def chunk(size: int) -> np.ndarray:
            found = np.empty((size, scene.height, scene.width, 3), np.uint8)
            for frame in found:
                frame[:] = next(pictures).to_ndarray(format="rgb24")
            return found

        for start, end in spans(frames):
            yield chunk(end - start)


def count_passes(scene: Scene, frames: int, folder: Path, results: Results) -> None:
    """Frames decoded for each that a chunk asks for, as calls of preprocess's decoders ask: see above."""
    from pipelines.video.base import DecodeConfig, Source
    from pipelines.video.decode import decode_clips
    from pipelines.video.pyav_video import Video

    decoded, once, chunks = [0], Video._decoded, spans(frames)

    def counted(video: Video, packet: Any, place: int | None) -> Any:
        decoded[0] += packet is not None
        return once(video, packet, place)

    Video._decoded = counted  # type: ignore[method-assign]
    for group in (12, 48, 250):
        path = folder / f"{group}.mp4"
        encode(scene, frames, path, group)
        for name, keep, children in (
            ("before", False, 1),
            ("kept, one child", True, 1),
            ("kept, two children", True, 2),
        ):
            decoded[0], began = 0, time.process_time()
            for child in range(children):
                for start, end in chunks[child::children]:
                    clips = [list(range(start, end))]
                    config = DecodeConfig(keep_open=keep)
                    for _, found in decode_clips(Source(str(path)), clips, config, (scene.height, scene.width)):
                        assert isinstance(found, np.ndarray), found
            spent = time.process_time() - began
            each = decoded[0] / frames
            print(f"group of {group:3} frames, {name:18}: {each:5.2f} frames decoded for each used, {spent:6.2f} CPU s")
            results.add(f"tiling passes, group {group}, {name}", "frames decoded for each used", each, cpu_s=spent)


def resident() -> int:
    """Bytes this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--height", type=int, default=2160)
    parser.add_argument("--width", type=int, default=3840)
    parser.add_argument("--checkpoint", help="folder or hub id of weights; default: random ones of the released size")
    parser.add_argument("--ratio", type=float, default=0.02, help="share of the patches gazed in each tile's frame")
    parser.add_argument("--batch", type=int, default=32, help="tiles gazed in one call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode", action="store_true", help="encode the video once, then decode it")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    Results.add_option(parser)
    parser.add_argument("--passes", action="store_true", help="count the frames decoded for each frame used, and end")
    options = parser.parse_args()

    if options.passes:
        with tempfile.TemporaryDirectory(prefix="tiling-") as folder:
            scene = Scene(options.height, options.width)
            count_passes(scene, options.frames, Path(folder), Results(options.json))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.checkpoint:
        model = AutoGaze.from_pretrained(options.checkpoint, device=options.device)
    else:
        model = AutoGaze(AutoGazeConfig()).to(options.device, getattr(torch, options.dtype))
    scene, grid = Scene(options.height, options.width), TileGrid(options.height, options.width)
    chunks = spans(options.frames)
    print(
        f"{options.frames} frames of {options.width}x{options.height}, {'decoded' if options.decode else 'made'} 16 at"
        f" a time; {grid.rows}x{grid.columns} tiles in batches of {options.batch}; ratio {options.ratio:g};"
        f" {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f}M parameters on {options.device},"
        f" {options.threads} CPU thread(s)",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="tiling-") as folder:
        source: Iterator[np.ndarray] = (scene.chunk(start, end) for start, end in chunks)
        if options.decode:
            encode(scene, options.frames, Path(folder) / "video.mp4")
            source = decoded(Path(folder) / "video.mp4", scene, options.frames)
        print(f"memory before the first chunk: {resident() / 1e6:,.0f} MB")
        gazes = gaze_video(source, lambda tiles: model.gaze(tiles, max_ratio=options.ratio), batch=options.batch)
        began, tokens = time.perf_counter(), 0
        cpu = time.process_time()
        for done, gaze in enumerate(gazes, start=1):
            tokens += len(gaze.token)
            if done * 10 // len(chunks) > (done - 1) * 10 // len(chunks) or done == 1:
                seconds, clips = time.perf_counter() - began, done * grid.count
                print(
                    f"frame {gaze.start + gaze.num_frames:6,d}: {clips:6,d} clips, {clips / seconds:6.2f} clips/s"
                    f" ({clips / (time.process_time() - cpu):.2f} a CPU second), {tokens:,} tokens; memory now"
                    f" {resident() / 1e6:,.0f} MB, peak"
                    f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:,.0f} MB",
                    flush=True,
                )
        seconds = time.perf_counter() - began
        facts = {"batch": options.batch, "dtype": options.dtype, "frames_a_second": options.frames / seconds}
        picture = f"{options.width}x{options.height}"
        Results(options.json).add(f"tiling {picture}", "clips/s", len(chunks) * grid.count / seconds, **facts)


if __name__ == "__main__":
    main()
