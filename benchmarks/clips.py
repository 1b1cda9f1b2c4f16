"""Clips for benchmarks: out of a dataset, out of videos, or drawn where there are neither; and small datasets of them.

    python benchmarks/clips.py --videos FOLDER --output DATASET --clips 40     # a dataset to take to a GPU

A dataset holds frames as JPEGs and a gaze of a fixed number of tokens a frame, by greedy search on the canvas.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY

FRAMES, SIZE = 16, VOCABULARY.frame_size
THRESHOLD = 0.02  # that the dataset says its gaze is held against


def clips(count: int, data: str | None = None, videos: Path | None = None) -> tuple[np.ndarray, str]:
    """uint8 [count, 16, 224, 224, 3], and what they are of. Over again where there are fewer."""
    if data is not None:
        found, what = from_dataset(data, count), f"clips of {data}"
    elif videos is not None:
        found, what = decoded(videos, count), f"clips of the videos in {videos}"
    else:
        found, what = drawn(count), "drawn clips"
    if not len(found):
        raise SystemExit(f"no clip of {FRAMES} frames: {what}")
    return found[np.arange(count) % len(found)], f"{min(count, len(found))} {what}"


def drawn(count: int) -> np.ndarray:
    """A window that moves over a texture, and a bar that crosses it: another texture and speed in each clip."""
    found = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8)
    for number, clip in enumerate(found):
        random = np.random.default_rng(number)
        side = SIZE + 4 * FRAMES
        coarse = random.integers(0, 128, (side // 32, side // 32, 3), np.uint8).repeat(32, axis=0).repeat(32, axis=1)
        texture = coarse + random.integers(0, 12, coarse.shape, np.uint8)
        down, across = random.integers(0, 4, 2)
        for t, frame in enumerate(clip):
            frame[:] = texture[down * t : down * t + SIZE, across * t : across * t + SIZE]
            frame[:, 8 * t : 8 * t + 24] = (250, 200, 40)
    return found


def decoded(videos: Path, count: int) -> np.ndarray:
    """The first 16 frames of each of some videos, spread evenly over the sorted folder."""
    from pipelines.video.base import DecodeConfig, Source, VideoError
    from pipelines.video.decode import decode_clips

    files = sorted(path for path in videos.rglob("*") if path.is_file())
    found = []
    for place in np.unique(np.linspace(0, len(files) - 1, min(2 * count, len(files))).astype(int)):
        if len(found) == count:
            break
        try:
            for _, frames in decode_clips(Source(str(files[place])), [list(range(FRAMES))], DecodeConfig()):
                if not isinstance(frames, VideoError):
                    found.append(frames)
        except VideoError:
            continue
    return np.stack(found) if found else np.empty((0, FRAMES, SIZE, SIZE, 3), np.uint8)


def from_dataset(url: str, count: int) -> np.ndarray:
    """The first clips of a dataset's order, frames stored."""
    from pipelines.loading.config import LoaderConfig
    from pipelines.loading.loader import ShardLoader

    loader = ShardLoader(LoaderConfig(data=[url], global_batch=1, workers=0))
    loader = ShardLoader(LoaderConfig(data=[url], global_batch=min(count, loader.samples), workers=4))
    return next(iter(loader)).frames.numpy()


def labelled(frames: np.ndarray, tokens: int, device: torch.device | str = "cpu") -> Gaze:
    """The greedy gaze on the canvas, of so many tokens in every frame."""
    canvas, parts = reconstruction.load("canvas"), torch.from_numpy(frames).split(8)
    lengths = torch.full((len(frames), FRAMES), tokens)
    found = [greedy.label(part.to(device), canvas, lengths=lengths[: len(part)]) for part in parts]
    return Gaze.cat(found)


def write_dataset(folder: Path, frames: np.ndarray, gaze: Gaze, per_shard: int = 8) -> str:
    """What preprocess would leave of these clips, each of a video of its own. Returns where it is."""
    import pyarrow as pa

    from pipelines.corpus.manifest import MANIFEST_SCHEMA
    from pipelines.corpus.plan import ClipConfig
    from pipelines.corpus.plan_writer import write_plan
    from pipelines.corpus.planning import Planner
    from pipelines.dataset.frames import encode_frames
    from pipelines.dataset.shards import DATASET_FORMAT, Outcome, build_shard, commit_shard
    from pipelines.storage import store

    facts = {"offset": 0, "bytes": 1, "version": "", "fingerprint": "0", "container": "", "codec": "", "duration": 0.0}
    facts |= {"width": SIZE, "height": SIZE, "rotation": 0, "fps": 25.0, "frames": FRAMES, "status": "ok"}
    uris = [f"/videos/{number:06d}.mp4" for number in range(len(frames))]
    manifest = pa.Table.from_pylist([{"uri": uri, "object": uri} | facts for uri in uris], MANIFEST_SCHEMA)
    url = str(folder)
    plan = write_plan(url, Planner("/videos", ClipConfig(FRAMES), per_shard), [manifest])
    at = 0
    for shard in range(plan.shards):
        rows = plan.clips_of(shard)
        numbers = range(at, at := at + len(rows))
        made = [Outcome(gaze[number], encode_frames(frames[number], "jpeg", 85)) for number in numbers]
        commit_shard(url, shard, *build_shard(rows, made, THRESHOLD))
    about = {
        "format": DATASET_FORMAT,
        "config": {"clip": {"frames": FRAMES}, "frames": "jpeg", "decoder": "pyav", "threshold": THRESHOLD},
        "plan": plan.about(),
        "shards": plan.shards,
        "units": reconstruction.load("canvas").units,
        "vocabulary": {"scales": list(VOCABULARY.scales), "patch_size": VOCABULARY.patch_size},
    }
    store.publish(json.dumps(about).encode(), str(folder / "dataset.json"))
    return url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="default: clips are drawn")
    parser.add_argument("--output", type=Path, required=True, metavar="DATASET")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=26, help="of each frame (default 26, a tenth of its patches)")
    options = parser.parse_args()
    frames, what = clips(options.clips, videos=options.videos)
    write_dataset(options.output, frames, labelled(frames, options.tokens))
    print(f"{what} in {options.output}")


if __name__ == "__main__":
    main()
