"""Is what `autogaze size` predicts what happens? Predictions beside runs, and beside what can be computed or acted out.

    python benchmarks/sizing.py check --corpus VIDEOS/train              # real runs with one and two workers
    python benchmarks/sizing.py check --rules                            # the job's own threads, with work that sleeps
    python benchmarks/sizing.py check --nodes 1 10 100 1000              # up to 1,000 nodes, beside a closed form

Of a real run the time counts from its first clip to its last commit, as its record has it: Ray's start-up is not
predicted. Rates are measured anew before each round, on as many cores as the machine has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
WORKERS = ((1, 1), (2, 1), (2, 2))  # decoders and gazers


def autogaze(*words: object) -> str:
    """Run a command; what it printed."""
    env = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"autogaze {' '.join(map(str, words))}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def real(corpus: Path, rounds: int, keys: list[str], measure_s: float, cores: int) -> None:
    """Predict a run, run it, and compare."""
    print("| round | decoders, gazers | predicted, s | measured, s | error |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        manifest = Path(folder, "manifest.parquet")
        autogaze("scan", f"input={corpus}", f"output={manifest}")
        for number in range(rounds):
            rates = Path(folder, f"rates-{number}.json")
            for decoders, gazers in WORKERS:
                words = [f"input={manifest}", f"workers.decode={decoders}", f"workers.gaze={gazers}", *keys]
                more = [f"rates={rates}", f"cores={cores}", f"measure_s={measure_s}", "format=json"]
                predicted = json.loads(autogaze("size", *words, *more))["prediction"]["seconds"]
                output = Path(folder, f"gaze-{number}-{decoders}-{gazers}")
                autogaze("preprocess", *words, f"output={output}", f"ray.cpus={cores}")
                measured = span(Path(f"{output}.runs"))
                error = predicted / measured - 1
                print(
                    f"| {number + 1} | {decoders}, {gazers} | {predicted:.1f} | {measured:.1f} | {error:+.1%} |",
                    flush=True,
                )


def span(records: Path) -> float:
    """Seconds from the first clip of a run to its last commit."""
    (record,) = (json.loads(path.read_text()) for path in records.iterdir())
    stage = record["stages"][record["slowest_stage"]]
    return float(stage["seconds"] / stage["workers"] / record["speed_of_light"])


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure-s", type=float, default=20.0)
    parser.add_argument("--cores", type=int, default=2, help="that Ray counts, and the prediction")
    parser.add_argument("--keys", nargs="*", default=[], help="further keys of both, such as clip.per_video=8")
    parser.add_argument("--rules", action="store_true")
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    options = parser.parse_args(words)
    if options.corpus:
        real(options.corpus, options.rounds, options.keys, options.measure_s, options.cores)
