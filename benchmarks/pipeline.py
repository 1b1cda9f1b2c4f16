"""How fast is the whole of `autogaze preprocess`, beside its own stages alone and beside what one would write by hand.

    python benchmarks/pipeline.py --corpus VIDEOS/train --videos 40 --per-video 24 --rounds 2
    python benchmarks/pipeline.py --corpus VIDEOS/train --before CHECKOUT --stages-only      # beside an older version

One decoder and one gazer on two cores. In each round, one after another and each in processes of its own:
  before      the same command by the code of --before
  ours        autogaze preprocess (Ray, isolated decoder, JPEG, WebDataset shards, commit)
  decode      its decoders alone: the same class called in a loop, with JPEGs, frames thrown away
  beside      the same, while another process keeps a core busy: what a decoder can do where gaze has the other core
  gaze        the rest of the actor alone (gaze, tar, commit), on clips decoded before the clock starts
  loop        a single-process loop: PyAV, the same gaze, JPEGs, webdataset.TarWriter; no isolation, no resume
  ray data    the straightforward Ray Data script: a row per clip, decord in map(), gaze per row, a tar per clip
With --daft and --nemo the first videos are also read alone by these libraries: see benchmarks/readers.py.
Rates are clips/s of work; `ours` and `ray data` are shown with Ray's start-up and without (from the first task on).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FRAMES, THRESHOLD, RATIO, QUALITY = 16, 0.05, 0.75, 90
BUSY = "import torch; torch.set_num_threads(1); a = torch.ones(224, 224)\nwhile True: a @ a"
GAZED = 64  # clips of a shard that gaze alone is measured on: they are in memory


def ours(source: Path, output: Path, per_video: int, shard: int, code: Path = HERE) -> dict[str, float]:
    """The whole job, by the code of a checkout."""
    arguments = [f"input={source}", f"output={output}", f"clip.per_video={per_video}", f"threshold={THRESHOLD}"]
    arguments += ["ray.cpus=2", "workers.decode=1", "workers.gaze=1", *([f"shard.clips={shard}"] if shard else [])]
    environment = os.environ | {"PYTHONPATH": str(code)}
    began = time.perf_counter()
    command = [sys.executable, "-m", "jobs.cli", "preprocess", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=code)
    wall = time.perf_counter() - began
    (record,) = (json.loads(path.read_text()) for path in Path(f"{output}.runs").iterdir())
    clips = sum(record["clips"].values())
    slowest = record["stages"][record["slowest_stage"]]
    steady = slowest["seconds"] / slowest["workers"] / record["speed_of_light"]
    return {"clips": clips, "with start-up": clips / wall, "steady": clips / steady}


def stages(work: Path) -> dict[str, float]:
    """Both halves of the actor alone over the dataset that `ours` made, in a process of their own."""
    from pipelines.dataset.shards import open_dataset
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.decoding import ClipDecoders, Decoding
    from pipelines.preprocess.job import resolve_gaze
    from pipelines.preprocess.rows import Effort
    from pipelines.preprocess.stage import PreprocessStage
    from pipelines.video.base import DecodeConfig

    source, output = work / "ours", work / "alone"
    output.mkdir()
    dataset = open_dataset(str(source))
    shards, decoding = dataset.committed(), Decoding(DecodeConfig(), "jpeg", QUALITY)
    gazer = resolve_gaze(PreprocessConfig(threshold=THRESHOLD, max_ratio=RATIO))
    stage = PreprocessStage(str(output), dataset.plan, gazer, decoding, "cpu")
    with ClipDecoders(dataset.plan, decoding) as decoders:
        clips, spent = 0, 0.0
        for shard in shards[:: max(1, len(shards) // 16)]:
            decoded = list(itertools.islice(decoders.clips(shard, Effort()), GAZED))
            stage.decoders.clips = lambda shard, effort, decoded=decoded: iter(decoded)  # type: ignore[method-assign]
            stage.make(shard)  # warm
            began = time.perf_counter()
            clips += stage.make(shard).clips
            spent += time.perf_counter() - began

        def rate() -> float:
            began = time.perf_counter()
            decoded_clips = sum(1 for shard in shards for _ in decoders.clips(shard, Effort()))
            return decoded_clips / (time.perf_counter() - began)

        alone = rate()
        with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
            beside = rate()
            busy.kill()
    stage.close()
    return {"decode": alone, "gaze": clips / spent, "beside": beside}


def jobs_of(work: Path) -> list[dict]:
    """The same clips as ours, as plain rows."""
    from pipelines.dataset.shards import open_dataset

    plan = open_dataset(str(work / "ours")).plan.rows()
    return [
        {"clip": r.clip, "video": r.object, "numbers": [min(r.start + i, r.video_frames - 1) for i in range(r.frames)]}
        for r in plan.itertuples()
    ]


def pack(writer: object, clip: str, frames: object, gaze: object) -> None:
    from PIL import Image

    sample = {"__key__": clip, "gaze.npz": gaze.to_npz()}
    for number, frame in enumerate(frames):
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "JPEG", quality=QUALITY)
        sample[f"{number:02d}.jpg"] = sink.getvalue()
    writer.write(sample)


def loop(work: Path) -> dict[str, float]:
    import av
    import numpy as np
    import torch
    import webdataset

    from autogaze import greedy, reconstruction

    torch.set_num_threads(1)
    canvas, rows = reconstruction.load("canvas"), jobs_of(work)
    began = time.perf_counter()
    with webdataset.TarWriter(str(work / "loop.tar")) as writer:
        for video in dict.fromkeys(row["video"] for row in rows):
            wanted = [row for row in rows if row["video"] == video]
            last = max(row["numbers"][-1] for row in wanted)
            needed = {n for row in wanted for n in row["numbers"]}
            kept = {}
            with av.open(video) as container:
                container.streams.video[0].codec_context.thread_count = 1
                for number, frame in enumerate(container.decode(video=0)):
                    if number in needed:
                        kept[number] = frame.reformat(224, 224, "rgb24").to_ndarray()
                    if number == last:
                        break
            for row in wanted:
                frames = np.stack([kept[n] for n in row["numbers"]])
                gaze = greedy.label(torch.from_numpy(frames[None]), canvas, threshold=THRESHOLD, max_ratio=RATIO)
                pack(writer, row["clip"], frames, gaze)
    return {"steady": len(rows) / (time.perf_counter() - began)}


def ray_data(work: Path) -> dict[str, float]:
    began = time.perf_counter()
    import logging

    import ray
    import ray.data

    # "local": not another Ray that runs on this machine, or that left its address.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows, folder = jobs_of(work), work / "raydata"
    folder.mkdir()

    def decode(row: dict) -> dict:
        import decord

        reader = decord.VideoReader(row["video"], width=224, height=224, num_threads=1)
        return {"clip": row["clip"], "frames": reader.get_batch(list(row["numbers"])).asnumpy(), "began": time.time()}

    def gaze(row: dict) -> dict:
        import numpy as np
        import torch
        import webdataset

        from autogaze import greedy, reconstruction

        torch.set_num_threads(1)
        canvas = reconstruction.load("canvas")
        frames = torch.from_numpy(np.array(row["frames"]))[None]
        found = greedy.label(frames, canvas, threshold=THRESHOLD, max_ratio=RATIO)
        with webdataset.TarWriter(str(folder / f"{row['clip']}.tar")) as writer:
            pack(writer, row["clip"], row["frames"], found)
        return {"began": row["began"], "ended": time.time()}

    done = ray.data.from_items(rows).map(decode).map(gaze).to_pandas()
    steady = done["ended"].max() - done["began"].min()
    return {"with start-up": len(rows) / (time.perf_counter() - began), "steady": len(rows) / steady}


def readers(options: argparse.Namespace, videos: list[Path]) -> None:
    """Read videos by ours and by the libraries that there is a Python for, and print clips a CPU second."""
    pythons = {"ours": sys.executable, "daft": options.daft, "nemo": options.nemo}
    ways = {way: python for way, python in pythons.items() if python}
    if len(ways) == 1:
        return
    found = {}
    for way, python in ways.items():
        environment = os.environ | ({"PYTHONPATH": str(HERE)} if way == "ours" else {})
        command = [python, str(HERE / "benchmarks" / "readers.py"), way, *map(str, videos)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found[way] = json.loads(printed.strip().splitlines()[-1])
        rate = found[way]["per_cpu_s"]
        shown = f"{rate:6.2f} clips for a second of CPU, {found[way]['clips']} clips"
        print(f"  reading, {way:<5} {shown};  ours is {found['ours']['per_cpu_s'] / rate:.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--per-video", type=int, default=24)
    parser.add_argument("--shard", type=int, default=0, help="shard.clips; 0 = the default")
    parser.add_argument("--before", type=Path, help="a checkout of an older version, measured beside this one")
    parser.add_argument("--before-shard", type=int, default=32, help="its shard.clips")
    parser.add_argument("--daft", default="", metavar="PYTHON", help="of an environment that has Daft and av")
    parser.add_argument("--nemo", default="", metavar="PYTHON", help="of one that has nemo-curator[video-cpu,cv2]")
    parser.add_argument("--read", type=int, default=8, help="videos that are read alone")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stages-only", action="store_true", help="leave out loop and ray data, for long runs")
    parser.add_argument("--readers-only", action="store_true", help="only --daft and --nemo")
    parser.add_argument("--part", choices=["stages", "loop", "ray_data"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(globals()[options.part](options.work)))
        return
    if options.corpus is None:
        parser.error("give --corpus FOLDER, any folder of videos")
    videos = sorted(path for path in options.corpus.iterdir() if path.is_file())
    step = max(1, len(videos) // options.videos)
    for number in range(options.rounds):
        readers(options, videos[::step][: options.read])
        if options.readers_only:
            continue
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            work = Path(folder)
            source = work / "videos"
            source.mkdir()
            for path in videos[::step][: options.videos]:
                os.symlink(path.resolve(), source / path.name)
            found: dict[str, dict[str, float]] = {}
            if options.before:
                found["before"] = ours(source, work / "b", options.per_video, options.before_shard, options.before)
            found["ours"] = ours(source, work / "ours", options.per_video, options.shard)
            for part in ("stages",) if options.stages_only else ("stages", "loop", "ray_data"):
                command = [sys.executable, __file__, "--part", part, "--work", folder]  # by this checkout
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[part] = json.loads(printed.strip().splitlines()[-1])
        mine, alone = found["ours"], found["stages"]
        slowest = min(("decode", "gaze"), key=lambda stage: alone[stage])
        print(
            f"round {number + 1}: {mine['clips']:.0f} clips of {FRAMES} frames "
            f"from {len(videos[::step][: options.videos])} videos"
        )
        print(f"  ours       {mine['steady']:6.2f} clips/s steady, {mine['with start-up']:6.2f} with start-up")
        print(f"  decode     {alone['decode']:6.2f} clips/s alone;  gaze {alone['gaze']:6.2f} clips/s alone")
        print(f"  speed of light: ours / {slowest} alone = {mine['steady'] / alone[slowest]:.2f}")
        print(
            f"  decode     {alone['beside']:6.2f} beside a busy core;  ours is {mine['steady'] / alone['beside']:.2f}x"
        )
        for name in [name for name in ("before", "loop", "ray_data") if name in found]:
            rate = found[name]["steady"]
            extra = f", {found[name]['with start-up']:6.2f} with start-up" if "with start-up" in found[name] else ""
            print(f"  {name:<10} {rate:6.2f} clips/s steady{extra};  ours is {mine['steady'] / rate:.2f}x")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
