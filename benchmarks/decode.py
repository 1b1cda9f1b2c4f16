"""Decoding rate of pipelines.video.decode beside PyAV's own bare loop, on the same clips, in the same run.

    python benchmarks/decode.py --corpus VIDEOS                     # 16 of its files, every clip of each
    python benchmarks/decode.py --corpus VIDEOS --per-video 4       # 4 random clips a video instead
    python benchmarks/decode.py --corpus VIDEOS --files 40 --decoders pyav decord torchcodec

`bare` is the least a program can do with PyAV: decode from the start until the last frame any clip needs, and for the
frames that are needed reformat(224, 224, "rgb24").to_ndarray(). `in process` is decode_clips, `isolated` is
IsolatedDecoder, the way the pipeline runs it. Each file is decoded by all of them in turn, in an order that changes
from file to file and round to round, with one thread each; the best round of each file counts, because other work on
the machine can only ever add time. CPU time includes the child's. The ratio is bare's CPU time over theirs: at 1 the
rest costs nothing, above 1 it saves.

    python benchmarks/decode.py --long 20 7200                      # a shard of a video of 20 s, and of 2 h

measures what a shard of 32 clips costs by how long its video is, and what memory the child takes: for the first shard
of the video on a node, and for others, each by a child that is new. The videos are made by ffmpeg (-stream_loop).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np

from pipelines.video.base import DecodeConfig, Source, VideoError
from pipelines.video.decode import decode_clips, decoder_fingerprint, probe
from pipelines.video.isolated import IsolatedDecoder

CLIP = 16
DISTRIBUTIONS = {"decord": "decord2", "torchcodec": "torchcodec"}
Clips = Sequence[Sequence[int]]


def bare(path: Path, clips: Clips) -> None:
    """PyAV and nothing else: sequential decode, reformat, to_ndarray."""
    needed = {n for clip in clips for n in clip}
    last = max(needed)
    frames = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        for n, frame in enumerate(container.decode(stream)):
            if n in needed:
                frames[n] = frame.reformat(224, 224, "rgb24", threads=1).to_ndarray()
            if n == last:
                break
    for clip in clips:
        np.stack([frames[n] for n in clip])


def in_process(config: DecodeConfig) -> Callable[[Path, Clips], None]:
    def run(path: Path, clips: Clips) -> None:
        for _, frames in decode_clips(Source(str(path)), clips, config):
            if isinstance(frames, VideoError):
                raise frames

    return run


def isolated(decoder: IsolatedDecoder) -> Callable[[Path, Clips], None]:
    def run(path: Path, clips: Clips) -> None:
        for _, frames in decoder.decode_clips(Source(str(path)), clips):
            if isinstance(frames, VideoError):
                raise frames

    return run


def cpu_seconds(child: int | None) -> float:
    """User and system time of this process and of a child that lives."""
    used = time.process_time()
    if child is not None:
        used += time.clock_gettime((~child << 3) | 2)  # its CPU clock, all threads: what clock_getcpuclockid returns
    return used


def clips_of(frames: int, per_video: int, rng: random.Random) -> list[list[int]]:
    if per_video == 0:
        starts = list(range(0, frames - CLIP + 1, CLIP))
    else:
        starts = sorted(rng.randrange(max(1, frames - CLIP + 1)) for _ in range(per_video))
    return [[min(start + j, frames - 1) for j in range(CLIP)] for start in starts or [0]]


def measure_long(seconds: Sequence[int]) -> None:
    """CPU seconds and memory of shards, by the length of their video."""
    print(f"{'video':>12}{'frames':>10}{'shard':>8}{'CPU s':>8}{'wall s':>8}{'child peak MB':>15}{'index MB':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        piece = Path(scratch) / "piece.mp4"
        make = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
        picture = ["-f", "lavfi", "-i", "testsrc2=s=320x240:d=20:r=30", "-c:v", "libx264", "-g", "60", "-bf", "2"]
        subprocess.run([*make, *picture, "-pix_fmt", "yuv420p", piece], check=True)
        for length in seconds:
            for container in ("mp4", "mkv"):
                path, kept = Path(scratch) / f"{length}.{container}", Path(scratch) / f"kept-{length}-{container}"
                loop = ["-stream_loop", str(length // 20 - 1), "-i", piece, "-c", "copy", path]
                subprocess.run([*make, *loop], check=True)
                frames = length * 30
                for number, share in enumerate((0.0, 0.25, 0.5, 0.9)):
                    first = int(share * (frames - 32 * CLIP))
                    clips = [[first + i * CLIP + j for j in range(CLIP)] for i in range(32)]
                    settings = {"index_dir": str(kept)} if hasattr(DecodeConfig, "index_dir") else {}
                    with IsolatedDecoder(DecodeConfig(timeout_s=3600, **settings)) as decoder:
                        decoder.probe(Source(str(piece)))  # starts the child
                        assert decoder._child is not None
                        pid = decoder._child._process.pid
                        cpu, wall = cpu_seconds(pid), time.perf_counter()
                        isolated(decoder)(path, clips)
                        cpu, wall = cpu_seconds(pid) - cpu, time.perf_counter() - wall
                        status = Path(f"/proc/{pid}/status").read_text()
                    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
                    held = sum(file.stat().st_size for file in kept.glob("*") if file.is_file()) / 1e6
                    name = f"{length} s {container}"
                    print(f"{name:>12}{frames:10}{number:8}{cpu:8.2f}{wall:8.1f}{peak:15.0f}{held:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--long", nargs="+", type=int, metavar="SECONDS", help="lengths of videos; multiples of 20")
    parser.add_argument("--files", type=int, default=16, help="how many of them, spread over the sorted names")
    parser.add_argument("--per-video", type=int, default=0, help="random clips a video; 0: all, one after the other")
    parser.add_argument("--rounds", type=int, default=5, help="times each file is decoded by each")
    parser.add_argument("--decoders", nargs="+", default=["pyav"], help="pyav, decord, torchcodec")
    args = parser.parse_args()

    if args.long:
        measure_long(args.long)
        return
    if args.corpus is None:
        parser.error("give --corpus or --long")
    rng = random.Random(0)
    paths = sorted(path for path in args.corpus.iterdir() if path.is_file())
    if not paths:
        parser.error(f"no files in {args.corpus}")
    paths = paths[:: max(1, len(paths) // args.files)][: args.files]
    work = [(path, clips_of(probe(Source(str(path))).frames, args.per_video, rng)) for path in paths]
    total = sum(len(clips) for _, clips in work)
    kind = f"{args.per_video} random clips a video" if args.per_video else "consecutive clips"
    print(f"{len(work)} videos, {total} clips of {CLIP} frames ({kind}), one thread, {os.cpu_count()} cores")

    runners: dict[str, tuple[Callable[[Path, Clips], None], IsolatedDecoder | None]] = {"bare PyAV": (bare, None)}
    for name in args.decoders:
        config = dataclasses.replace(DecodeConfig(), decoder=name)
        decoder = IsolatedDecoder(config)
        if name == "pyav":  # the ffmpeg libraries of several decoders do not get along in one process
            print(decoder_fingerprint(config))
            runners[f"{name}, in process"] = (in_process(config), None)
        else:
            print(f"{name}-{version(DISTRIBUTIONS[name])}")
        runners[f"{name}, isolated"] = (isolated(decoder), decoder)

    best: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}  # (CPU, wall) seconds by file
    for path, clips in work:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        for _ in range(args.rounds + 1):
            for name in rng.sample(list(runners), k=len(runners)):
                run, decoder_used = runners[name]
                child = decoder_used._child._process.pid if decoder_used and decoder_used._child else None
                cpu, wall = cpu_seconds(child), time.perf_counter()
                run(path, clips)
                wall = time.perf_counter() - wall
                rounds[name].append((cpu_seconds(child) - cpu, wall))
        for name, times in rounds.items():
            measured = times[1:]  # the first round warms caches and starts children
            best[name].append((min(cpu for cpu, _ in measured), min(wall for _, wall in measured)))

    print(f"{'':24}{'clips/s':>9}{'CPU ms/clip':>13}{'CPU ratio':>11}{'wall ratio':>12}")
    bare_cpu, bare_wall = (sum(column) for column in zip(*best["bare PyAV"], strict=True))
    for name, times in best.items():
        cpu, wall = (sum(column) for column in zip(*times, strict=True))
        print(f"{name:24}{total / wall:9.1f}{1000 * cpu / total:13.2f}{bare_cpu / cpu:11.2f}{bare_wall / wall:12.2f}")
    for _, decoder_used in runners.values():
        if decoder_used is not None:
            decoder_used.close()


if __name__ == "__main__":
    main()
