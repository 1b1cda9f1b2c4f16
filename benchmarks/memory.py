"""Is peak memory flat whatever the size of the corpus, and of its shards? `autogaze preprocess`, seen from outside.

    python benchmarks/memory.py --corpus VIDEOS/train                                    # 100 and 1,000 clips
    python benchmarks/memory.py --corpus VIDEOS/train --sizes 1024 --shards 32 1024      # shards of 32 and 1,024 clips
    python benchmarks/memory.py --corpus VIDEOS/train --sizes 1024 --shards 32 --before CHECKOUT

Memory is the proportional set size (PSS, shared pages counted once) of the command and every process under it, sampled
four times a second; its peak is printed for each size, and the ratio of the largest to the smallest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
VIDEOS = 64


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found, wanted = [pid], {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found += wanted
    return found


def pss(pid: int) -> int:
    """Bytes of a process's proportional set size; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        return 0
    return 0


def peak(corpus: Path, clips: int, shard: int, code: Path) -> tuple[int, int, float]:
    """(clips planned, peak bytes, seconds) of preprocessing about `clips` clips of a corpus, by a checkout's code."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source = Path(folder) / "videos"
        source.mkdir()
        videos = sorted(path for path in corpus.iterdir() if path.is_file())
        # The same videos at both sizes, more or fewer clips of each, so that only the number of clips differs.
        videos = videos[:VIDEOS]
        for path in videos:
            os.symlink(path.resolve(), source / path.name)
        arguments = [f"input={source}", f"output={folder}/gaze", f"clip.per_video={clips // len(videos)}", "ray.cpus=2"]
        began = time.monotonic()
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "preprocess", *arguments, f"shard.clips={shard}"],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(code)},
            cwd=code,
        )
        most = 0
        while job.poll() is None:
            most = max(most, sum(pss(pid) for pid in family(job.pid)))
            time.sleep(0.25)
        if job.returncode:
            raise SystemExit(job.returncode)
        from pipelines.dataset.shards import open_dataset

        return open_dataset(f"{folder}/gaze").plan.clips, most, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of videos")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--shards", type=int, nargs="+", default=[16], help="clips of a shard")
    parser.add_argument("--before", type=Path, help="a checkout of an older version, measured beside this one")
    options = parser.parse_args()
    for name, code in {"before": options.before, "": HERE}.items():
        found = []
        for size, shard in itertools.product(options.sizes, options.shards) if code else ():
            clips, most, seconds = peak(options.corpus, size, shard, code)
            found.append(most)
            about = f"{name:6} {clips:6d} clips in shards of {shard:4d}"
            print(f"{about}: peak {most / 1e9:.2f} GB of all processes, {seconds:.0f} s", flush=True)
        if len(found) > 1:
            print(f"{name:6} ratio of the largest to the smallest: {max(found) / min(found):.2f}", flush=True)


if __name__ == "__main__":
    main()
