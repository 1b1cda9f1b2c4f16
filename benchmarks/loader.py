"""How fast samples come off the shards, beside other ways to read the same clips; and what a million of them cost.

    python benchmarks/loader.py --corpus VIDEOS/train --videos 16 --per-video 12 --rounds 3
    python benchmarks/loader.py --corpus VIDEOS/train --million # start, memory and first batch, nothing else
    python benchmarks/loader.py --litdata VENV/bin/python       # also LitData, from an environment that has it

Each way runs in a process of its own, on one thread, once to warm up and --rounds times on the clock, and makes
the same of every sample: uint8 [T, 224, 224, 3] of its frames in a batch of 16, and the arrays of its gaze.
  ours         ShardLoader with workers=0, every hash checked
  threads      ShardLoader with workers=2, as training runs it
  processes    torch's DataLoader over the ShardLoader, with 2 processes
  webdataset   WebDataset(...).shuffle().decode("rgb8") with its own decoders; checks nothing
  litdata      StreamingDataset over the same JPEGs in its own format; checks nothing
  reference    as the reference trains: PyAV opens the item's video and decodes from frame 0 to the clip's last
Rates are samples per second of CPU time (all threads and processes), the best round, and of wall time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BATCH = 16


def settings(data: str, workers: int) -> object:
    from pipelines.loading.config import LoaderConfig

    return LoaderConfig(data=[data], global_batch=BATCH, workers=workers, window=4)


def ours(data: str, workers: int = 0, processes: int = 0) -> Callable[[], int]:
    import torch

    from pipelines.loading.loader import ShardLoader

    loader = ShardLoader(settings(data, workers), epochs=1)  # type: ignore[arg-type]

    def run() -> int:
        stream = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=processes) if processes else loader
        return sum(len(batch.ids) for batch in stream)

    return run


def web(data: str) -> Callable[[], int]:
    import torch
    import webdataset

    tars = sorted(str(path) for path in Path(data, "shards").iterdir())

    def run() -> int:
        stream = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(100).decode("rgb8")
        return batched(torch, (np.stack([s[k] for k in sorted(s) if k.endswith(".jpg")]) for s in stream))

    return run


def litdata(data: str) -> Callable[[], int]:
    import torch
    from litdata import StreamingDataset, optimize
    from PIL import Image

    output = Path(data).parent / "litdata"
    if not output.exists():
        members = [member for tar in sorted(Path(data, "shards").iterdir()) for member in jpegs(tar)]
        optimize(as_it_is, members, str(output), chunk_bytes="64MB", num_workers=1, mode="overwrite")

    def run() -> int:
        stream = StreamingDataset(str(output), shuffle=True)

        def samples() -> Iterator[np.ndarray]:
            for sample in stream:
                with np.load(io.BytesIO(sample["gaze"])) as gaze:
                    {name: gaze[name] for name in gaze.files}
                frames = [sample[f"{i:02d}"] for i in range(len(sample) - 1)]
                yield np.stack([np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in frames])

        return batched(torch, samples())

    return run


def as_it_is(item: dict[str, bytes]) -> dict[str, bytes]:
    return item


def jpegs(tar: Path) -> Iterator[dict[str, bytes]]:
    import webdataset

    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        frames = {key[:2]: value for key, value in sample.items() if key.endswith(".jpg")}
        yield frames | {"gaze": sample["gaze.npz"]}


def reference(data: str) -> Callable[[], int]:
    import av
    import torch

    from pipelines.dataset.shards import open_dataset

    plan = open_dataset(data).plan.rows()
    plan = plan[plan["reason"].isna()].sample(min(64, len(plan)), random_state=0)

    def read(row: object) -> np.ndarray:
        wanted = [min(row.start + i * row.stride, row.video_frames - 1) for i in range(row.frames)]
        kept = {}
        with av.open(row.object) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    kept[number] = frame.reformat(224, 224, "rgb24").to_ndarray()
                if number == wanted[-1]:
                    break
        return np.stack([kept[number] for number in wanted])

    return lambda: batched(torch, (read(row) for row in plan.itertuples()))


def batched(torch: object, samples: Iterator[np.ndarray]) -> int:
    """Stack samples into batches, as a training loop is given them; how many there were."""
    count, batch = 0, []
    for sample in samples:
        batch.append(torch.from_numpy(sample))
        if len(batch) == BATCH:
            torch.stack(batch)
            batch = []
        count += 1
    return count


WAYS: dict[str, Callable[[str], Callable[[], int]]] = {
    "ours": ours,
    "threads": lambda data: ours(data, workers=2),
    "processes": lambda data: ours(data, processes=2),
    "webdataset": web,
    "litdata": litdata,
    "reference": reference,
}


def cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(way: str, data: str, rounds: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    run = WAYS[way](data)
    run()
    best = {"per_cpu_s": 0.0, "per_s": 0.0}
    for _ in range(rounds):
        began, cpu_began = time.perf_counter(), cpu()
        count = run()
        best["per_s"] = max(best["per_s"], count / (time.perf_counter() - began))
        best["per_cpu_s"] = max(best["per_cpu_s"], count / (cpu() - cpu_began))
    return best


def million(data: str, work: Path, clips: int, cache_mb: int) -> dict[str, float]:
    """Start and first batch over `clips` samples: the first shard of `data`, again and again under other numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    torch.set_num_threads(1)
    url = work / "million"
    if not url.exists():
        for folder in ("shards", "index"):
            (url / folder).mkdir(parents=True)
        index = pq.read_table(Path(data, "index", "000000.parquet"))
        place = index.column_names.index("shard")
        shards = -(-clips // len(index))
        tar = shutil.copy(Path(data, "shards", "000000.tar"), work / "one.tar")
        for shard in range(shards):
            numbers = pa.array(np.full(len(index), shard, np.int32))
            field = index.schema.field("shard")
            pq.write_table(index.set_column(place, field, numbers), url / "index" / f"{shard:06d}.parquet")
            os.symlink(tar, url / "shards" / f"{shard:06d}.tar")
        about = json.loads(Path(data, "dataset.json").read_text()) | {"shards": shards}
        (url / "dataset.json").write_text(json.dumps(about))
    from pipelines.loading.loader import ShardLoader

    config = settings(str(url), 2)
    config.cache_mb, config.cache_dir = cache_mb, str(work / "cache")  # type: ignore[attr-defined]
    before, began = private_mb(), time.perf_counter()
    loader = ShardLoader(config)  # type: ignore[arg-type]
    opened, index_mb = time.perf_counter() - began, private_mb() - before
    stream = iter(loader)
    next(stream)
    first = time.perf_counter() - began
    found = {
        "samples": loader.samples,
        "start_s": opened,
        "first_batch_s": first,
        "index_mb": index_mb,
        "streaming_mb": private_mb() - before,
    }
    del stream
    began = time.perf_counter()
    next(iter(ShardLoader(config, consumed=loader.samples // 2 // BATCH * BATCH)))  # type: ignore[arg-type]
    return found | {"again_first_batch_s": time.perf_counter() - began}


def private_mb() -> float:
    """This process's own memory: what is shared with others, or mapped from a file, is left out."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def make_data(corpus: Path, work: Path, videos: int, per_video: int) -> str:
    source, output = work / "videos", work / "gaze"
    source.mkdir()
    paths = sorted(path for path in corpus.iterdir() if path.is_file())
    for path in paths[:: max(1, len(paths) // videos)][:videos]:
        os.symlink(path.resolve(), source / path.name)
    arguments = [f"input={source}", f"output={output}", f"clip.per_video={per_video}", "ray.cpus=2"]
    subprocess.run([sys.executable, "-m", "jobs.cli", "preprocess", *arguments], check=True, stdout=subprocess.DEVNULL)
    return str(output)


def part(python: str, *arguments: object) -> dict[str, float]:
    """One way, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return dict(json.loads(done.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--per-video", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="", help="a dataset with frames=jpeg, instead of making one of the corpus")
    parser.add_argument("--litdata", default="", help="a Python that has litdata")
    parser.add_argument("--million", action="store_true", help="only the index of a million samples")
    parser.add_argument("--samples", type=int, default=1_000_000, help="of that index")
    parser.add_argument("--part", choices=[*WAYS, "million"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache-mb", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "million":
        print(json.dumps(million(options.data, options.work, options.samples, options.cache_mb)))
        return
    if options.part:
        print(json.dumps(measure(options.part, options.data, options.rounds)))
        return
    if not options.data and options.corpus is None:
        parser.error("give --corpus FOLDER, any folder of videos, or --data DATASET")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Path(folder)
        data = options.data or make_data(options.corpus, work, options.videos, options.per_video)
        if not options.million:
            found = {}
            for way in WAYS:
                python = options.litdata if way == "litdata" else sys.executable
                if python:
                    found[way] = part(python, "--part", way, "--data", data, "--rounds", options.rounds)
            for way, rates in found.items():
                ratio = found["ours"]["per_cpu_s"] / rates["per_cpu_s"]
                print(
                    f"{way:<11} {rates['per_cpu_s']:7.1f} samples per CPU second, {rates['per_s']:7.1f} per second;"
                    f"  ours is {ratio:.2f}x"
                )
        for cache_mb in (0, 4096):
            arguments = ("--data", data, "--work", work, "--samples", options.samples, "--cache-mb", cache_mb)
            about = part(sys.executable, "--part", "million", *arguments)
            print(
                f"{about['samples']:.0f} samples, {'with' if cache_mb else 'without'} cache_mb: indexes read in "
                f"{about['start_s']:.1f} s, first batch after {about['first_batch_s']:.1f} s, "
                f"{about['index_mb']:.0f} MB of the rank's own for them, {about['streaming_mb']:.0f} MB with order and "
                f"prefetch; started again in the middle, first batch after {about['again_first_batch_s']:.1f} s"
            )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
