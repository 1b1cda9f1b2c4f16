"""Reading videos alone, beside other libraries: whole videos -> clips uint8 [16, 224, 224, 3], one library a process.

    python benchmarks/pipeline.py --corpus VIDEOS --daft PYTHON --nemo PYTHON   # of environments with them

  ours   decode_clips (pipelines/video/decode.py)
  daft   read_video_frames, one partition after the other
  nemo   NeMo Curator's extract_frames, which its stage of frame extraction calls for each clip

It imports one library, and is run by its Python. What counts are CPU seconds of all threads and child processes, after
one video to warm up; imports are left out. Frames past the last whole clip are decoded and do not count.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator

import numpy as np

FRAMES, SIZE = 16, 224


def ours(path: str) -> Iterator[np.ndarray]:
    from pipelines.video.base import DecodeConfig, Source, VideoError
    from pipelines.video.decode import decode_clips, probe

    count = probe(Source(path)).frames
    wanted = [range(start, start + FRAMES) for start in range(0, count - FRAMES + 1, FRAMES)]
    for _, frames in decode_clips(Source(path), wanted, DecodeConfig()):
        if isinstance(frames, VideoError):
            raise frames
        yield frames


def daft(path: str) -> Iterator[np.ndarray]:
    import daft

    clip: list[np.ndarray] = []
    for part in daft.read_video_frames(path, image_height=SIZE, image_width=SIZE).iter_partitions():
        for frame in part.to_pydict()["data"]:
            clip.append(np.asarray(frame))
            if len(clip) == FRAMES:
                yield np.stack(clip)
                clip = []


def nemo(path: str) -> Iterator[np.ndarray]:
    from nemo_curator.utils.decoder_utils import FrameExtractionPolicy, extract_frames, get_avg_frame_rate

    with open(path, "rb") as file:
        data = file.read()
    every = FrameExtractionPolicy.sequence
    frames = extract_frames(data, every, float(get_avg_frame_rate(data)), (SIZE, SIZE), num_threads=1)
    for start in range(0, len(frames) - FRAMES + 1, FRAMES):
        yield frames[start : start + FRAMES]


WAYS: dict[str, Callable[[str], Iterator[np.ndarray]]] = {"ours": ours, "daft": daft, "nemo": nemo}


def cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main(way: str, *paths: str) -> None:
    read = WAYS[way]
    for clip in read(paths[0]):
        assert clip.shape == (FRAMES, SIZE, SIZE, 3) and clip.dtype == np.uint8
    began = cpu()
    clips = sum(1 for path in paths for _ in read(path))
    print(json.dumps({"clips": clips, "per_cpu_s": clips / (cpu() - began)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
