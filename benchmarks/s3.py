"""What does object storage cost `autogaze preprocess`? From and to s3:// on this machine, beside the local disk.

    python benchmarks/s3.py --corpus VIDEOS/train --videos 16 --per-video 24 --rounds 3

A real S3 server (`rclone serve s3`, which must be on the PATH) holds the videos and takes the shards; a proxy before it
counts the requests of one further round, whose times are not used. In each round both ways run, each in processes of
its own, in turns first and second. Rates are clips/s of the whole command without Ray's start-up, and with it. The
server takes its CPU from the same machine.
Each run also tells the phases of its start up to the first committed shard, which its record holds (`start_up`); `rest`
is the start of Python and the end of Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests.support

from tests.support import s3_servers

SHARD = 16


def preprocess(source: str, output: str, files: Path, endpoint: str, per_video: int) -> dict[str, float]:
    """One run; `files` is where its output is on this machine's disk."""
    words = [sys.executable, "-m", "jobs.cli", "preprocess", f"input={source}", f"output={output}"]
    words += [f"shard.clips={SHARD}", f"clip.per_video={per_video}", "ray.cpus=2", "workers.decode=1", "workers.gaze=1"]
    keys = {"AWS_ACCESS_KEY_ID": s3_servers.KEY, "AWS_SECRET_ACCESS_KEY": s3_servers.SECRET}
    region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}
    began = time.time()
    process = subprocess.Popen(words, env=os.environ | keys | region, stdout=subprocess.DEVNULL)
    if process.wait():
        raise SystemExit("the run failed")
    wall = time.time() - began
    (record,) = (json.loads(path.read_text()) for path in Path(f"{files}.runs").iterdir())
    clips = sum(record["clips"].values())
    steady = record["stages"][record["slowest_stage"]]["seconds"] / record["speed_of_light"]
    fetch = record["stages"].get("fetch", {}).get("seconds", 0.0)
    write = record["stages"].get("write", {}).get("seconds", 0.0)
    rates = {"clips": clips, "steady": clips / steady, "whole": clips / wall, "fetch": fetch, "write": write}
    phases = record["start_up"]
    rest = wall - record["seconds"] - phases["ray"] - phases["plan"]  # starting Python, and ending Ray
    return rates | phases | {"rest": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of videos")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--per-video", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if s3_servers.rclone() is None:
        raise SystemExit("rclone with `serve s3` is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        server = s3_servers.Rclone(Path(scratch) / "served")
        served, videos = server.folder / s3_servers.BUCKET, sorted(options.corpus.rglob("*.mp4"))[: options.videos]
        (served / "videos").mkdir()
        for video in videos:
            (served / "videos" / video.name).write_bytes(video.read_bytes())
        server.start()
        try:
            compare(options, server, Path(scratch), served)
            count(options, server, served, len(videos))
        finally:
            server.kill()


def compare(options: argparse.Namespace, server: s3_servers.Rclone, scratch: Path, served: Path) -> None:
    rows: dict[str, list[dict[str, float]]] = {"disk": [], "s3": []}
    place = f"s3://{s3_servers.BUCKET}"
    for number in range(options.rounds):
        for way in ("disk", "s3") if number % 2 == 0 else ("s3", "disk"):
            if way == "disk":
                output = scratch / f"gaze-{number}"
                found = preprocess(str(served / "videos"), str(output), output, server.url, options.per_video)
            else:
                output = served / f"gaze-{number}"
                url = f"{place}/{output.name}"
                found = preprocess(f"{place}/videos", url, output, server.url, options.per_video)
            rows[way].append(found)
            print(f"round {number} {way:4} " + "  ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
    for rate in ("steady", "whole"):
        ratios = [s3[rate] / disk[rate] for s3, disk in zip(rows["s3"], rows["disk"], strict=True)]
        shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"s3 / disk, {rate}: {statistics.median(ratios):.3f} (median; rounds {shown})")


def count(options: argparse.Namespace, server: s3_servers.Rclone, served: Path, videos: int) -> None:
    proxy = s3_servers.Proxy(server.url)
    place, output = f"s3://{s3_servers.BUCKET}", served / "counted"
    found = preprocess(f"{place}/videos", f"{place}/counted", output, proxy.url, options.per_video)
    proxy.close()
    counts: Counter[str] = proxy.counts
    shards = len(list(output.glob("index/*.parquet")))
    print(f"requests: {dict(counts)} for {videos} videos, {found['clips']:.0f} clips, {shards} shards")
    print(f"requests per clip: {counts.total() / found['clips']:.3f}")


if __name__ == "__main__":
    main()
