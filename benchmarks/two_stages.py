"""One actor that decodes, gazes and writes, beside the same work as stages with blocks of clips between them.

    python benchmarks/two_stages.py --corpus VIDEOS --videos 40 --per-video 16 --rounds 2

  fused   autogaze preprocess, one actor of one decoder and one gazer
  stages  Ray Data: an actor decodes and yields blocks of 16 clips, another gazes, a third puts each shard's clips in
          order and commits it, since Ray Data does not promise that a shard's blocks reach the same actor

Both call the same functions for the same clips on two cores, decode the next shard while one ends, and must write the
same bytes, which is checked. Clips a second and core seconds count from the first clip to the last commit, for all
processes; bytes are those of the blocks that the actors were given.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from watched import Watched, span

CLIPS, THRESHOLD, RATIO, QUALITY = 16, 0.05, 0.75, 90
Block = dict[str, Any]


class Decode:
    """A shard's number -> blocks of its clips: frames uint8 [n, T, S, S, 3], and all else of each clip in a text."""

    def __init__(self, data: str) -> None:
        from pipelines.dataset.shards import open_dataset
        from pipelines.preprocess.decoding import ClipDecoders, Decoding
        from pipelines.video.base import DecodeConfig

        self.decoders = ClipDecoders(open_dataset(data).plan, Decoding(DecodeConfig(), "jpeg", QUALITY))

    def __call__(self, block: Block) -> Iterator[Block]:
        from pipelines.preprocess.rows import Effort
        from pipelines.preprocess.streams import grouped

        began = time.time()
        for group in grouped(self.decoders.clips(int(block["shard"][0]), Effort()), CLIPS):
            like = next(clip.frames for clip in group if clip.frames is not None)
            frames = np.stack([np.zeros_like(like) if clip.frames is None else clip.frames for clip in group])
            rest = [pickle.dumps(replace(clip, frames=None)) for clip in group]
            yield {"frames": frames, "rest": np.array(rest, object), "began": np.full(len(group), began)}


class Gaze:
    """A block of clips -> the same clips gazed at and packed."""

    def __init__(self) -> None:
        from pipelines.preprocess.config import PreprocessConfig
        from pipelines.preprocess.gaze_threads import GazeThreads
        from pipelines.preprocess.job import resolve_gaze

        gaze = resolve_gaze(PreprocessConfig(threshold=THRESHOLD, max_ratio=RATIO))
        self.threads = GazeThreads(gaze, "cpu", 1, "jpeg")

    def __call__(self, block: Block) -> Block:
        from pipelines.dataset.frames import jpeg_members
        from pipelines.dataset.shards import Outcome, packed

        def finish(group: list[Any], gazes: list[Any], gazer: Any) -> list[bytes]:
            found, done = iter(gazes), []
            for clip in group:
                failed = clip.failure
                made = Outcome(reason=failed.reason, detail=failed.detail) if failed else Outcome(
                    next(found), jpeg_members(clip.jpegs)
                )  # fmt: skip
                done.append(pickle.dumps((clip.row, packed(made, gazer.stops))))
            return done

        rests = [pickle.loads(rest) for rest in block["rest"]]
        clips = [
            replace(rest, frames=None if rest.failure else frames)
            for rest, frames in zip(rests, block["frames"], strict=True)
        ]
        done = [each for group, _ in self.threads.gazed(iter(clips), finish) for each in group]
        crossed = np.full(len(clips), block["frames"][0].nbytes) + [len(rest) for rest in block["rest"]]
        return {"packed": np.array(done, object), "crossed": crossed + list(map(len, done)), "began": block["began"]}


class Commit:
    """Packed clips in any order -> shards, written in the plan's order."""

    def __init__(self, data: str, output: str) -> None:
        from pipelines.dataset.shards import open_dataset

        self.plan, self.output = open_dataset(data).plan, output
        self.shards: dict[int, tuple[ExitStack, Any, dict[int, Any], list[int]]] = {}

    def __call__(self, block: Block) -> Block:
        for each in block["packed"]:
            row, clip = pickle.loads(each)
            self.add(int(row["shard"]), row, clip)
        return {name: block[name] for name in ("crossed", "began")} | {
            "ended": np.full(len(block["began"]), time.time())
        }

    def add(self, shard: int, row: Any, clip: Any) -> None:
        from pipelines.dataset.indexes import INDEX_SCHEMA
        from pipelines.dataset.shards import writing_shard

        if shard not in self.shards:
            stack = ExitStack()
            made = stack.enter_context(writing_shard(self.output, shard, INDEX_SCHEMA))
            self.shards[shard] = stack, made, {}, list(range(len(self.plan.clips_of(shard))))[::-1]
        stack, made, waiting, left = self.shards[shard]
        waiting[int(row["position"])] = row, clip
        while left and left[-1] in waiting:
            made.writer.add(*waiting.pop(left.pop()))
        if not left:
            stack.close()
            del self.shards[shard]


def stages(data: str, output: str) -> dict[str, float]:
    """Make all shards of a plan in stages."""
    import ray.data
    from ray.data import ActorPoolStrategy

    from cluster.local import RayConfig, running
    from pipelines.corpus.plan import clip_bytes
    from pipelines.dataset.shards import open_dataset
    from pipelines.ray_data import configure_ray_data

    with running(RayConfig(cpus=2)):
        configure_ray_data()
        ray.data.DataContext.get_current().target_max_block_size = CLIPS * clip_bytes(16)  # a block for each yield
        count = open_dataset(data).shards
        rows = ray.data.from_items([{"shard": shard} for shard in range(count)], override_num_blocks=count)
        two = ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True)
        one = ActorPoolStrategy(size=1)
        made = rows.map_batches(Decode, fn_constructor_args=(data,), batch_size=1, compute=two, num_cpus=0.75)
        made = made.map_batches(Gaze, batch_size=None, compute=one, num_cpus=0.5, zero_copy_batch=True)
        made = made.map_batches(Commit, fn_constructor_args=(data, output), batch_size=None, compute=one, num_cpus=0.25)
        done = made.to_pandas()
    began, ended = done["began"].min(), done["ended"].max()
    return {"clips": len(done), "began": began, "seconds": ended - began, "bytes": float(done["crossed"].sum())}


def fused(source: Path, output: Path, per_video: int, shard: int) -> tuple[Watched, float, float]:
    """The job itself: what was watched, when its first clip began, and seconds until its last commit."""
    words = [f"input={source}", f"output={output}", f"clip.per_video={per_video}", f"threshold={THRESHOLD}"]
    words += [f"max_ratio={RATIO}", "ray.cpus=2", "workers.decode=1", "workers.gaze=1", f"shard.clips={shard}"]
    run = Watched([sys.executable, "-m", "jobs.cli", "preprocess", *words])
    return run, *span(Path(f"{output}.runs"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--per-video", type=int, default=16)
    parser.add_argument("--shard", type=int, default=128, help="clips of a shard")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(stages(*options.part)))
        return
    if options.corpus is None:
        parser.error("give --corpus FOLDER, any folder of videos")
    paths = sorted(path for path in options.corpus.iterdir() if path.is_file())
    print("| round | | clips/s | core s a clip | MB a clip through the object store | core s by |")
    print("|---|---|---|---|---|---|")
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            source, ours, theirs = (Path(folder, name) for name in ("videos", "fused", "stages"))
            for place in (source, theirs):
                place.mkdir()
            for path in paths[:: max(1, len(paths) // options.videos)][: options.videos]:
                (source / path.name).symlink_to(path.resolve())
            run, began, seconds = fused(source, ours, options.per_video, options.shard)
            other = Watched([sys.executable, __file__, "--part", str(ours), str(theirs)])
            said = json.loads(other.printed.strip().splitlines()[-1])
            for tar in sorted((ours / "shards").iterdir()):
                if tar.read_bytes() != (theirs / "shards" / tar.name).read_bytes():
                    raise SystemExit(f"{tar.name}: the two ways wrote different bytes")
            clips = said["clips"]
            ways = {
                "fused": (run, began, seconds, 0.0),
                "stages": (other, said["began"], said["seconds"], said["bytes"]),
            }
            for way, (watched, begin, lasted, crossed) in ways.items():
                of = watched.spent(begin, begin + lasted)
                by = ", ".join(f"{kind} {spent / clips:.4f}" for kind, spent in of.most_common() if spent > 0.05)
                shown = f"{clips / lasted:.1f} | {of.total() / clips:.4f} | {crossed / clips / 1e6:.2f} | {by}"
                print(f"| {number + 1} | {way} | {shown} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
