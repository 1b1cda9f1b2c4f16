"""What a large corpus costs before any work starts: planning millions of videos, and resuming a job of many shards.

    python benchmarks/scale.py plan                                   # a million videos of 10 clips; 100,000 shards
    python benchmarks/scale.py plan --videos 10000000 --shards 0
    python benchmarks/scale.py plan --videos 100000 --before COMMIT   # beside the same commands of another commit

Videos are rows of a manifest; none is opened. Commands are those of a user, in processes of their own: CPU seconds, the
largest resident memory and seconds by the clock are those of the process and its children, starting Python included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.dataset.shards import open_dataset

FRAMES = 16
ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """What a command took."""

    cpu_s: float
    peak_gb: float
    seconds: float
    printed: str


def run(root: Path, *words: object) -> Cost:
    """Run a command of autogaze from the sources in `root`."""
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        job = subprocess.Popen([sys.executable, "-m", "jobs.cli", *map(str, words)], cwd=root, env=env, stdout=out)
        _, status, used = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        printed = out.read()
    if job.returncode:
        raise SystemExit(f"autogaze {' '.join(map(str, words))}: exit status {job.returncode}\n{printed}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, time.monotonic() - began, printed)


def write_manifest(path: Path, videos: int, clips: int, group: int = 1 << 17) -> None:
    """A manifest as a scan leaves it, of videos of so many clips each."""
    fixed = {"offset": 0, "bytes": 10 << 20, "container": "mov,mp4", "codec": "h264", "width": 1280, "height": 720}
    fixed |= {"rotation": 0, "fps": 25.0, "frames": clips * FRAMES, "duration": 6.4, "status": "ok", "reason": None}
    fixed |= {"detail": None, "passed_over": None, "mirrored": False}
    fixed |= {"fps_source": "timestamps", "duration_source": "timestamps"}
    with pq.ParquetWriter(path, MANIFEST_SCHEMA, compression="zstd") as writer:
        for begin in range(0, videos, group):
            numbers = np.arange(begin, min(begin + group, videos))
            columns = {
                name: pa.repeat(pa.scalar(value, MANIFEST_SCHEMA.field(name).type), len(numbers))
                for name, value in fixed.items()
            }
            folder, name = ("s3://corpus/videos/part-", digits(numbers // 1000, 6)), ("/", digits(numbers, 10))
            columns["uri"] = columns["object"] = pc.binary_join_element_wise(*folder, *name, ".mp4", "")
            columns["version"] = digits(numbers, 32)
            columns["fingerprint"] = hashes(begin, len(numbers))
            writer.write_table(pa.table([columns[name] for name in MANIFEST_SCHEMA.names], MANIFEST_SCHEMA))


def digits(numbers: np.ndarray, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def hashes(seed: int, count: int) -> pa.Array:
    """Texts of 32 digits that look drawn at random."""
    text = np.random.default_rng(seed).bytes(16 * count).hex().encode()
    ends = np.arange(count + 1, dtype=np.int32) * 32
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text)])


@contextlib.contextmanager
def sources(commit: str) -> Iterator[Path]:
    """The sources of a commit."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Path(folder, "sources")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", place, commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def resume(root: Path, manifest: Path, folder: Path, shards: int, room: int) -> Cost:
    """What it takes to find the one shard that is missing of many: the plan is made, the commits are empty files."""
    output = folder / f"gaze-{root.name}"
    words = ["preprocess", f"input={manifest}", f"output={output}", f"shard.clips={room}"]
    run(root, *words, "part=plan", "ray.cpus=1")
    planned = open_dataset(str(output)).shards
    (output / "index").mkdir()
    for shard in range(planned - 1):
        (output / "index" / f"{shard:06d}.parquet").touch()
    found = run(root, *words, "part=plan")
    if "1 to make" not in found.printed or planned < shards:
        raise SystemExit(f"{planned} shards: {found.printed}")
    return found


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--clips", type=int, default=10, help="of each video")
    parser.add_argument("--shards", type=int, default=100_000, help="of the job that is resumed; 0: none")
    parser.add_argument("--before", metavar="COMMIT", help="also run the commands of this commit")
    options = parser.parse_args(words)
    print("| what | sources | CPU s | peak memory, GB | s |\n|---|---|---|---|---|")

    def show(what: str, whose: str, cost: Cost) -> None:
        print(f"| {what} | {whose} | {cost.cpu_s:.1f} | {cost.peak_gb:.2f} | {cost.seconds:.1f} |", flush=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        trees = {"here": ROOT}
        if options.before:
            trees = {options.before: stack.enter_context(sources(options.before)), **trees}
        manifest = folder / "manifest.parquet"
        write_manifest(manifest, options.videos, options.clips)
        size = f"{options.videos:,} videos x {options.clips} clips"
        for whose, root in trees.items():
            words = ("preprocess", f"input={manifest}", f"output={folder / 'none'}", "ray.cpus=1", "--dry-run")
            show(f"dry run, {size}", whose, run(root, *words))
        if options.shards:
            few, room = folder / "few.parquet", 10 * options.clips
            write_manifest(few, options.shards * 10, options.clips)
            for whose, root in trees.items():
                show(f"resume, {options.shards:,} shards", whose, resume(root, few, folder, options.shards, room))
