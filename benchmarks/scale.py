"""What a dataset of millions of clips costs before anything is computed: how a loader starts on its index.
`plan` is what planning and resuming cost: benchmarks/scale_plan.py.

    python benchmarks/scale.py index                                     # a million samples, in shards of 32 clips
    python benchmarks/scale.py index --before CHECKOUT                   # and an older version beside it
    python benchmarks/scale.py index --samples 100000000 --shard 990 --merged
    python benchmarks/scale.py index --merged --s3 30                    # from an S3 server that answers 30 ms late

The index is invented: every shard has the rows of one, and the tars are one tar under many names, so it compresses
better than a real one. What a loader reads at its start has the size that real ones have. Every
measurement is a process of its own, the ways take turns, and the best of the rounds counts. CPU seconds say more than
seconds where other work shares the machine. `start` is until the loader knows its samples, `first` until it has given a
batch of 32; imports count in neither. The page cache is asked to forget the index before each. With --s3 it
lies behind an S3 server on this machine (rclone), whose own work takes its share of the cores; requests are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scale_plan

HERE = Path(__file__).resolve().parent.parent
BATCH = 32
VIDEO = 10  # clips of a video


def main() -> None:
    if sys.argv[1:2] == ["plan"]:
        scale_plan.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["index", "plan"])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=32, help="clips of a shard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--merged", action="store_true", help="only the merged index, which is then written as such")
    parser.add_argument("--s3", type=float, metavar="MS", help="from an S3 server whose answers come so late")
    parser.add_argument("--before", default="", help="a checkout of an older version, measured beside this one")
    parser.add_argument("--work", default="", help="a folder for the invented datasets, kept; '' = a temporary one")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        work = Path(options.work or temporary)
        ways: dict[str, tuple[Path, Path]] = {}
        if not options.merged:
            single = work / "single"
            made(single, options.samples, options.shard, merged=False)
            if options.before:
                ways["before, a file a shard"] = (Path(options.before), single)
            ways["a file a shard"] = (HERE, single)
        merged = work / "merged"
        made(merged, options.samples, options.shard, merged=True)
        ways["merged"] = (HERE, merged)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        with contextlib.ExitStack() as stack:
            s3 = None if options.s3 is None else stack.enter_context(in_s3(work, options.s3))
            for _ in range(options.rounds):
                for name, (code, data) in ways.items():
                    found[name].append(in_a_process(code, data, s3))
        for name, rounds in found.items():
            best = {key: min(each[key] for each in rounds) for key in rounds[0]}
            print(
                f"{name:<24} {best['samples']:,.0f} samples: start {best['start_s']:.2f} s, of it "
                f"{best['start_cpu_s']:.2f} CPU; first batch after {best['first_s']:.2f} s, "
                f"{best['first_cpu_s']:.2f} CPU; {best['own_mb']:.0f} MB of the rank's own at the start"
                + (f"; {best['requests']:.0f} requests" if "requests" in best else "")
            )


@contextlib.contextmanager
def in_s3(work: Path, late_ms: float) -> Iterator[tuple[Any, dict[str, str]]]:
    """The datasets in a folder behind an S3 server that answers so much later than it could: the proxy before it, and
    the environment of its users.
    """
    from tests.support import s3_servers  # not above: a measurement of another checkout is to import that one's code

    if s3_servers.rclone() is None:
        raise SystemExit("rclone with `serve s3` is not installed")
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        server = s3_servers.Rclone(Path(folder))
        (Path(folder) / s3_servers.BUCKET / "datasets").symlink_to(work)
        server.start("--copy-links")
        proxy = s3_servers.Proxy(server.url)
        proxy.fault = lambda request: bool(time.sleep(late_ms / 1000))
        keys = {"AWS_ACCESS_KEY_ID": s3_servers.KEY, "AWS_SECRET_ACCESS_KEY": s3_servers.SECRET}
        try:
            yield proxy, keys | {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
        finally:
            proxy.close()
            server.kill()


def in_a_process(code: Path, data: Path, s3: tuple[Any, dict[str, str]] | None) -> dict[str, float]:
    """Measure with the code of a checkout; from S3 where there is a server."""
    forget(data)
    environment, place = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}, str(data)
    if s3 is not None:
        s3[0].counts.clear()
        place, environment = f"s3://corpus/datasets/{data.name}", environment | s3[1]
    command = [sys.executable, __file__, "index", "--measure", place]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=code)
    counts = {"requests": s3[0].counts.total()} if s3 is not None else {}
    return dict(json.loads(done.stdout.strip().splitlines()[-1])) | counts


def forget(data: Path) -> None:
    """Ask the system to drop what it keeps of the index in memory: the next reader has a cold start."""
    for path in (data / "index").iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(data: str) -> dict[str, float]:
    """Start a loader, and take its first batch."""
    import torch

    from pipelines.loading.config import LoaderConfig
    from pipelines.loading.loader import ShardLoader

    torch.set_num_threads(1)
    before, began, cpu = own_mb(), time.perf_counter(), time.process_time()
    loader = ShardLoader(LoaderConfig(data=[data], global_batch=BATCH))
    start, start_cpu, own = time.perf_counter() - began, time.process_time() - cpu, own_mb() - before
    stream = iter(loader)
    next(stream)
    return {
        "samples": loader.samples,
        "start_s": start,
        "start_cpu_s": start_cpu,
        "first_s": time.perf_counter() - began,
        "first_cpu_s": time.process_time() - cpu,
        "own_mb": own,
    }


def own_mb() -> float:
    """This process's own memory: what is shared with others, or mapped from a file, is left out."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def made(place: Path, samples: int, per_shard: int, merged: bool) -> None:
    """Invent a dataset unless it is there. With `merged` all full thousands of its shards are merged."""
    if (place / "dataset.json").exists():
        return
    import pyarrow.parquet as pq

    from pipelines.dataset.indexes import BLOCK, INDEX_SCHEMA, Span, span_url
    from pipelines.dataset.summaries import SUMMARY, joined, summarise

    (place / "index").mkdir(parents=True)
    (place / "shards").mkdir()
    shards = -(-samples // per_shard)
    tar, invent = invented(per_shard)
    (place / "one.tar").write_bytes(tar)
    for shard in range(min(shards, 200_000)):  # more links take longer than they tell
        os.symlink("../one.tar", place / "shards" / f"{shard:06d}.tar")
    whole = shards // BLOCK * BLOCK if merged else 0
    group = max(8, -(-1024 // per_shard))
    summary = {SUMMARY: joined([summarise(invent(0))] * BLOCK).to_text().decode()}
    for first in range(0, whole, BLOCK):
        url = span_url(str(place), Span(first, first + BLOCK - 1))
        with pq.ParquetWriter(url, INDEX_SCHEMA, compression="zstd") as writer:
            for begin in range(first, first + BLOCK, group):
                writer.write_table(invent(begin, min(group, first + BLOCK - begin)))
            writer.add_key_value_metadata(summary)
    for shard in range(whole, shards):
        pq.write_table(invent(shard), span_url(str(place), Span(shard, shard)), compression="zstd")
    about = {
        "config": {"clip": {"frames": 1}, "frames": "raw", "decoder": "pyav", "threshold": 0.5},
        "plan": "invented",
        "shards": shards,
        "vocabulary": {"scales": [32, 64, 112, 224], "patch_size": 16},
    }
    (place / "dataset.json").write_text(json.dumps(about))


def invented(per_shard: int) -> tuple[bytes, Any]:
    """A tar of one clip after another, and what makes the index of a shard by its number."""
    import pandas as pd
    import pyarrow as pa
    import torch

    from autogaze.gaze import Gaze
    from pipelines.dataset.indexes import INDEX_SCHEMA
    from pipelines.dataset.shards import Outcome, build_shard

    names = [f"video-{number // VIDEO:016x}-{number % VIDEO * 16:06d}" for number in range(per_shard)]
    pixels = io.BytesIO()
    np.save(pixels, np.zeros((1, 224, 224, 3), np.uint8))
    made = Outcome(Gaze.from_lists([[[7]]], losses=[[[0.5]]], initial=[[1.0]]), [("frames.npy", pixels.getvalue())])
    torch.set_num_threads(1)
    facts = {"shard": 0, "stride": 1, "frames": 1, "padded": 0, "tile": "", "video_frames": 160, "fps": 25.0}
    rows = pd.DataFrame(
        [
            facts | {"clip": name, "position": place, "video": f"/videos/{place // VIDEO}.mp4"}
            | {"start": place % VIDEO * 16, "width": 64, "height": 48}
            for place, name in enumerate(names)
        ]
    )  # fmt: skip
    tar, index = build_shard(rows, [made] * per_shard, 0.5)
    import pyarrow.parquet as pq

    base = pq.read_table(io.BytesIO(index)).cast(INDEX_SCHEMA)
    place = base.column_names.index("shard")

    def invent(first: int, count: int = 1) -> pa.Table:
        """The rows of some shards. Names and hashes are those of the one tar; shards differ in their numbers."""
        shard = np.repeat(np.arange(first, first + count, dtype=np.int32), per_shard)
        rows = pa.concat_tables([base] * count).combine_chunks()
        return rows.set_column(place, INDEX_SCHEMA.field("shard"), pa.array(shard))

    return tar, invent


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
