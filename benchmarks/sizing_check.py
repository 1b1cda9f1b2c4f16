"""Is what `autogaze size` predicts what happens? Predictions beside runs, and beside what can be computed or acted out.

    python benchmarks/sizing_check.py --corpus VIDEOS/train      # real runs with one and two decoders
    python benchmarks/sizing_check.py --rules                    # the job's own threads, with work that sleeps
    python benchmarks/sizing_check.py --nodes 1 10 100 1000      # a closed form, on more and more nodes

Of a real run the time counts from its first clip to its last commit, as its
record has it: Ray's start-up is not predicted. Rates are measured anew before each run, on as many cores as the
machine has. Where other work shares the machine a run has fewer cores than was predicted for, and takes longer; so core
seconds are compared, too: those that all processes of the run used between the two moments, Ray's included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from watched import Watched, span

HERE = Path(__file__).resolve().parent.parent
WORKERS = ((1, 1), (2, 1))  # decoders and gazers


def autogaze(*words: object) -> str:
    """Run a command; what it printed."""
    env = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"autogaze {' '.join(map(str, words))}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def real(corpus: Path, rounds: int, keys: list[str], measure_s: float, cores: int, shards: list[int]) -> None:
    """Predict a run, run it, and compare."""
    of = "core s predicted | had | error | cores had | predicted: core s of; had: core s of |"
    print(f"| shard.clips | decoders, gazers | predicted, s | measured, s | error | {of}")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        manifest = Path(folder, "manifest.parquet")
        autogaze("scan", f"input={corpus}", f"output={manifest}", f"ray.cpus={cores}")
        for number in range(rounds):
            for shard, (decoders, gazers) in itertools.product(shards, WORKERS):
                words = [f"input={manifest}", f"workers.decode={decoders}", f"workers.gaze={gazers}", *keys]
                words.append(f"shard.clips={shard}")
                rates = Path(folder, f"rates-{number}-{shard}-{decoders}.json")
                more = [f"rates={rates}", f"cores={cores}", f"measure_s={measure_s}", "format=json"]
                found = json.loads(autogaze("size", *words, *more))["prediction"]
                output = Path(folder, f"gaze-{number}-{shard}-{decoders}-{gazers}")
                job = [sys.executable, "-m", "jobs.cli", "preprocess", *words, f"output={output}", f"ray.cpus={cores}"]
                run = Watched(job)
                began, measured = span(Path(f"{output}.runs"))
                of = run.spent(began, began + measured)
                core_s = of.total()
                predicted, work = found["seconds"], found["seconds"] * found["busy"]["cores"] * cores
                shown = (
                    f"{predicted:.1f} | {measured:.1f} | {predicted / measured - 1:+.1%} | {work:.1f} | {core_s:.1f}"
                )
                shown += f" | {work / core_s - 1:+.1%} | {core_s / measured:.2f} | "
                parts = {part: share * predicted * cores for part, share in found["inside"].items()}
                shown += "; ".join(
                    ", ".join(f"{name} {seconds:.1f}" for name, seconds in each.items() if seconds > 0.05)
                    for each in (parts, dict(of.most_common()))
                )
                print(f"| {shard} | {decoders}, {gazers} | {shown} |", flush=True)


# -- the job's own threads, with work that sleeps --------------------------------------------------------------------

CASES = (
    # decoders, gazers, clips of a shard; seconds a clip: decode, JPEG, gaze, write
    (1, 1, 64, (0.010, 0.001, 0.002, 0.0005)),
    (2, 1, 64, (0.010, 0.001, 0.002, 0.0005)),
    (4, 1, 96, (0.010, 0.001, 0.004, 0.0005)),
    (4, 2, 96, (0.004, 0.002, 0.006, 0.0005)),
    (3, 3, 160, (0.006, 0.001, 0.004, 0.002)),
)


def rules(cases: int, shards: int, rounds: int) -> None:
    """Let the job's own decoding, window and gaze threads do work that only sleeps, and simulate the same. The best of
    some rounds counts: where other work has the cores, threads wake up late."""
    print("| decoders, gazers | seconds a clip: decode, JPEG, gaze, write | simulated, s | acted out, s | error |")
    print("|---|---|---|---|---|", flush=True)
    for decoders, gazers, clips, costs in CASES[:cases]:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            found = [
                acted_out(Path(folder, str(number)), decoders, gazers, clips, costs, shards) for number in range(rounds)
            ]
        predicted, measured = min(found, key=lambda each: each[1])
        shown = f"{predicted:.2f} | {measured:.2f} | {predicted / measured - 1:+.1%}"
        print(f"| {decoders}, {gazers} | {', '.join(map(str, costs))} | {shown} |", flush=True)


def acted_out(
    folder: Path, decoders: int, gazers: int, clips: int, costs: tuple[float, ...], shards: int
) -> tuple[float, float]:
    """Seconds that some shards of videos of 3 to 70 clips take: simulated, and with the job's own threads."""
    import numpy as np
    import pyarrow as pa

    from pipelines.corpus.manifest import MANIFEST_SCHEMA
    from pipelines.corpus.plan import ClipConfig
    from pipelines.corpus.plan_writer import write_plan
    from pipelines.corpus.planning import Planner
    from pipelines.corpus.videos import video_fingerprint
    from pipelines.preprocess import decoding
    from pipelines.preprocess.decoding import ClipDecoders, Decoding
    from pipelines.preprocess.graph import IN_FLIGHT, SHARDS_AT_ONCE
    from pipelines.preprocess.rows import Effort
    from pipelines.preprocess.streams import grouped, in_order
    from pipelines.sizing.machines import ClipCost, Machine, simulate
    from pipelines.sizing.rates import DecodeRates, Rates
    from pipelines.sizing.rules import shard_cost
    from pipelines.sizing.workload import of_manifest
    from pipelines.video.base import DecodeConfig

    folder.mkdir()
    batch, (decode, jpeg, search, write) = 16, costs
    rows = []
    for number, count in enumerate(np.random.default_rng(1).integers(3, 70, 2 * shards * clips // 36).tolist()):
        video = folder / f"{number:04d}.mp4"
        video.write_bytes(b"%d" % number)
        known = {"uri": str(video), "object": str(video), "offset": 0, "bytes": video.stat().st_size, "version": ""}
        known |= {"fingerprint": video_fingerprint(str(video)), "container": "", "codec": "", "width": 64, "height": 48}
        rows.append(known | {"rotation": 0, "fps": 25.0, "frames": 16 * count, "duration": 1.0, "status": "ok"})
    manifest = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    job = of_manifest([manifest], str(folder), ClipConfig(), clips)
    plan = write_plan(str(folder / "plan"), Planner(str(folder), ClipConfig(), clips), [manifest])
    how = Decoding(DecodeConfig(), "jpeg", decoders=decoders)

    rates = Rates(
        "", 1, "pyav", "", "cpu", 16, batch, DecodeRates(0.0, 0.0, decode / 16, {}), jpeg, write, search, 0.0, {}
    )
    machine = Machine(10**6, 1, decoders, gazers, True, batch, how.memory, SHARDS_AT_ONCE, IN_FLIGHT, 1e12)
    made = [shard_cost(shard, rates) for run in job.sample for shard in run][:shards]
    trace = simulate(machine, 1, made, ClipCost(jpeg, search, write, 0.0, 0.0))

    frames = np.zeros((16, 8, 8, 3), np.uint8)

    def decoded(decoder: Any, source: Any, wanted: Any) -> Iterator[tuple[int, np.ndarray]]:
        time.sleep(decode * len(wanted))
        yield from ((place, frames) for place in range(len(wanted)))

    def encoded(*_: Any) -> list[tuple[str, bytes]]:
        time.sleep(jpeg)
        return []

    def gazed(group: list[Any]) -> int:
        time.sleep(search * len(group))
        return len(group)

    waiting = iter(range(shards))
    turn = threading.Lock()

    def make_shards(actor: ClipDecoders, pool: ThreadPoolExecutor) -> None:
        while True:
            with turn:
                shard = next(waiting, None)
            if shard is None:
                return
            for count in in_order(pool, gazed, grouped(actor.clips(shard, Effort()), batch), gazers):
                time.sleep(write * count)

    with (
        mock.patch.object(decoding, "decoded_clips", decoded),
        mock.patch.object(decoding, "encode_frames", encoded),
        ClipDecoders(plan, how) as actor,
        ThreadPoolExecutor(gazers) as pool,
        ThreadPoolExecutor(SHARDS_AT_ONCE) as makers,
    ):
        began = time.perf_counter()
        for each in [makers.submit(make_shards, actor, pool) for _ in range(SHARDS_AT_ONCE)]:
            each.result()
        return trace.now, time.perf_counter() - began


# -- many nodes, beside a closed form --------------------------------------------------------------------------------


def closed_form(nodes: list[int]) -> None:
    """A job of equal shards, on more and more nodes: rounds of shards, as so many equal servers take them.

    No node is faster than its cores; one is simulated, and the others are held against it.
    """
    from pipelines.corpus.plan import ClipConfig
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.sizing.predict import Predictor
    from pipelines.sizing.rates import DecodeRates, Rates
    from pipelines.sizing.rules import Cluster
    from pipelines.sizing.workload import of_alike

    stored = {"jpeg": 3e5, "raw": 2.4e6, "none": 7e3}
    decode, jpeg, write, search = 0.0045, 0.0005, 0.0002, 0.002
    costs = DecodeRates(0.0, 0.0, decode, {})
    rates = Rates("", 1, "pyav", "", "cpu", 16, 16, costs, jpeg, write, search, 0.0, stored)
    job = of_alike(250_000, 10, (1280, 720), "h264", 25.0, 4.0, ClipConfig(), 960)
    core_seconds = 16 * decode + jpeg + write + search
    print(
        "| nodes of 64 cores | predicted, s | work / cores, s | rounds at one node's pace, s | error | computed in, s |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    predictor = Predictor(job, rates, PreprocessConfig(input="corpus", output="dataset"))
    one = predictor.predict(Cluster(1, 64, 0, 1.25e9, 1e18))
    shard = one.seconds * one.actors / job.shards
    for count in nodes:
        began = time.perf_counter()
        found = predictor.predict(Cluster(count, 64, 0, 1.25e9, 1e18))
        least = job.clips * core_seconds / (count * 64)
        rounds = math.ceil(job.shards / found.actors) * shard
        shown = f"{found.seconds:,.0f} | {least:,.0f} | {rounds:,.0f} | {found.seconds / rounds - 1:+.1%}"
        print(f"| {count:,} | {shown} | {time.perf_counter() - began:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure-s", type=float, default=20.0)
    parser.add_argument("--cores", type=int, default=2, help="that Ray counts, and the prediction")
    parser.add_argument("--keys", nargs="*", default=[], help="further keys of both, such as clip.per_video=8")
    parser.add_argument("--shard-clips", type=int, nargs="+", default=[64], help="shard.clips of the runs")
    parser.add_argument("--rules", action="store_true")
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--shards", type=int, default=6, help="of a case of --rules")
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    options = parser.parse_args()
    if options.rules:
        rules(options.cases, options.shards, options.rounds)
    if options.nodes:
        closed_form(options.nodes)
    if options.corpus:
        real(options.corpus, options.rounds, options.keys, options.measure_s, options.cores, options.shard_clips)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
