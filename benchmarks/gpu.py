"""The GPU tests and then the benchmarks on one GPU, in order of worth, in at most eight minutes: `make gpu`.

    python benchmarks/gpu.py                                    # needs PyTorch, numpy, safetensors, Pillow and pytest
    python benchmarks/gpu.py --device cpu                       # a try on a CPU, at small sizes
    python benchmarks/gpu.py --data DATASET --seconds 300       # clips of a dataset; less time

Nothing of the project need be installed. What needs more (pandas and pyarrow: datasets; transformers: teachers; Ray:
rollout actors) is skipped where it is not there, and said to be. Each benchmark has a time limit of its own; what comes
after the end of the whole is left out. Results: OUTPUT/results.json and OUTPUT/results.md, written after each part, and
a log of each. The exit status is 0 if every test and benchmark that was run succeeded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """A benchmark: its command on a GPU, a small one on a CPU, most seconds, and packages it cannot do without."""

    name: str
    gpu: str
    cpu: str
    seconds: int
    needs: tuple[str, ...] = ()


DATASETS = ("pandas", "pyarrow", "fsspec", "rich", "yaml")
TINY = "--small --steps 5 --every 0 --batch 1"

JOBS = (
    Job(
        "gaze",
        "generation.py --batch 64 --rounds 2 --repeats 1",
        "generation.py --as-gpu --float32-only --batch 1 --rounds 1 --repeats 1",
        80,
    ),
    Job(
        "training step",
        "train.py --task policy --batch 8 64 --dtype bfloat16 float32 --steps 14 --every 0",
        f"train.py --task policy {TINY}",
        60,
        DATASETS,
    ),
    Job("RL group", "train.py --task rl --batch 4 --steps 10 --every 0", f"train.py --task rl {TINY}", 40, DATASETS),
    Job(
        "RL, requests of 8 groups",
        "train.py --task rl --batch 16 --groups 8 --workers 8 --dtype bfloat16 float32 --steps 6 --every 0",
        "",
        40,
        DATASETS,
    ),
    Job(
        "reconstructor step",
        "train.py --task reconstructor --batch 4 --dtype bfloat16 float32 --steps 7 --every 0",
        f"train.py --task reconstructor {TINY}",
        60,
        DATASETS,
    ),
    Job(
        "reconstructor step, recomputed",
        "train.py --task reconstructor --batch 16 --dtype bfloat16 --steps 7 --every 0 --recompute",
        f"train.py --task reconstructor {TINY} --recompute",
        45,
        DATASETS,
    ),
    Job(
        "labels",
        "labels.py --released --teachers --dtype bfloat16 --clips 1 --tokens 2 --labels exact candidates=64",
        "labels.py --clips 1 --frames 2 --tokens 1 --labels candidates=32",
        45,
        ("transformers",),
    ),
    Job("profile", "gpu_profile.py --dtype bfloat16", "gpu_profile.py --batch 1 --units gaze", 40),
    Job(
        "canvas greedy",
        "canvas_greedy.py --clips 256 --batch 64 256 --repeats 2 --plain 0",
        "canvas_greedy.py --clips 2 --batch 2 --repeats 1 --plain 0 --threshold 0.05",
        40,
    ),
    Job(
        "tiling",
        "tiling.py --frames 64 --batch 128 --threads 8",
        "tiling.py --frames 16 --height 448 --width 448",
        45,
    ),
    Job("labels, float32", "labels.py --released --clips 1 --tokens 2 --labels exact", "", 40),
    Job(
        "RL group, videomae",
        "train.py --task rl --batch 2 --steps 6 --every 0 --reconstructor videomae",
        "",
        60,
        DATASETS,
    ),
    Job(
        "training step, packed and compiled",
        "train.py --batch 64 --dtype bfloat16 float32 --steps 14 --every 0 --micro-tokens 250000 --compile --tf32",
        f"train.py {TINY} --micro-tokens 5000 --tf32",
        90,
        DATASETS,
    ),
    Job("precision", "precision.py --clips 8 --frames 16", "precision.py --clips 1 --frames 2 --gazes 2 --tries 2", 30),
    Job("gaze, one clip", "generation.py --batch 1 --rounds 1 --repeats 1", "", 60),
)
TESTS_S = 200


@dataclass
class Report:
    """What came of it all, and the two files of it."""

    output: Path
    machine: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, outcome: str, seconds: float, command: str = "", **facts: Any) -> None:
        self.parts.append({"part": name, "outcome": outcome, "seconds": round(seconds, 1), "command": command, **facts})
        document = {"machine": self.machine, "parts": self.parts}
        (self.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
        (self.output / "results.json").with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        lines = [f"{self.machine['device']}, {self.machine['software']}, {self.machine['cpus']} CPUs", ""]
        lines += [f"{part['part']}: {part['outcome']} ({part['seconds']:.0f} s)" for part in self.parts]
        lines += ["", "| what | | rate | ms | settings |", "|---|---|---|---|---|"]
        for part in self.parts:
            for row in part.get("results", []):
                lines.append(table_row(row))
        return "\n".join(lines) + "\n"


def table_row(row: dict[str, Any]) -> str:
    told = {
        name: value for name, value in row.items() if name not in ("name", "unit", "value", "ms_a_step", "ms_a_token")
    }
    settings = ", ".join(f"{name} {shown(value)}" for name, value in told.items())
    rate = "" if row["unit"] == "ms" else f"{shown(row['value'])} {row['unit']}"
    each = row["value"] if row["unit"] == "ms" else row.get("ms_a_step", row.get("ms_a_token"))
    return f"| {row['name']} | {row.get('dtype', '')} | {rate} | {'' if each is None else shown(each)} | {settings} |"


def shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it at small sizes")
    parser.add_argument("--seconds", type=float, help="for all of it (default 480 on a GPU, and no limit on a CPU)")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), metavar="FOLDER", help="for results and logs")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used; default: drawn clips")
    names = ["tests", *(job.name for job in JOBS)]
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(map(repr, names))}")
    options = parser.parse_args()
    for name in options.only or []:
        if name not in names:
            parser.error(f"--only {name!r}: no such part; there are {', '.join(map(repr, names))}")
    if options.device != "cpu" and not torch.cuda.is_available():
        print("PyTorch finds no GPU here. On a machine without one: make gpu DEVICE=cpu", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    seconds = options.seconds or (math.inf if options.device == "cpu" else 480)
    report, end = Report(options.output, machine(options.device)), time.monotonic() + seconds
    print(f"{report.machine['device']}, {report.machine['software']}, {report.machine['cpus']} CPUs", flush=True)
    good = True
    if options.only is None or "tests" in options.only:
        left = end - time.monotonic()
        good = tests(options, report, left if options.device == "cpu" else min(TESTS_S, left))
    for job in JOBS:
        if options.only is None or job.name in options.only:
            good &= benchmark(job, options, report, end)
    print(f"\n{report.markdown()}\n{options.output}/results.json, {options.output}/results.md and logs", flush=True)
    return 0 if good else 1


def machine(device: str) -> dict[str, Any]:
    cuda = device != "cpu"
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    memory = f", {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB" if cuda else ""
    software = f"torch {torch.__version__}" + (f", CUDA {torch.version.cuda}" if cuda else "")
    return {"device": name + memory, "software": software, "cpus": len(os.sched_getaffinity(0))}


def tests(options: argparse.Namespace, report: Report, seconds: float) -> bool:
    if importlib.util.find_spec("pytest") is None:
        report.add("tests", "skipped: pytest is not installed", 0)
        return True
    seen = (options.output / "tests.xml").resolve()
    seen.unlink(missing_ok=True)
    # Of tests/gpu alone: the conftest.py above it wants what the whole project installs.
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--confcutdir=tests/gpu", "-p", "no:cacheprovider", "-q"]
    command += ["-o", "addopts=--import-mode=importlib", "--tb=short", "-rfEs", "--durations=8"]
    command += [f"--device={options.device}", f"--junitxml={seen}"]
    if options.device == "cpu":  # the rest of the tests has these on a CPU, where bfloat16 is slow
        command += ["-k", "not bfloat16"]
    began = time.monotonic()
    status = run(command, options.output / "tests.log", seconds)
    counts = {}
    if seen.exists():
        suite = next(ElementTree.parse(seen).getroot().iter("testsuite"))
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    outcome = f"stopped after {seconds:.0f} s" if status is None else "passed" if status == 0 else "FAILED"
    if counts:
        outcome += (
            f", {counts['tests']} tests, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped"
        )
    report.add("tests", outcome, time.monotonic() - began, " ".join(command[1:]), **counts)
    return status == 0


def benchmark(job: Job, options: argparse.Namespace, report: Report, end: float) -> bool:
    """Run one; whether it did not fail. What the time does not reach, or lacks a package, is no failure."""
    words = (job.cpu if options.device == "cpu" else job.gpu).split()
    if not words:
        return True
    missing = [name for name in job.needs if importlib.util.find_spec(name) is None]
    if missing:
        report.add(job.name, f"skipped: {', '.join(missing)} is not installed", 0)
        return True
    left = end - time.monotonic()
    if left < 10:
        report.add(job.name, "skipped: no time was left", 0)
        return True
    found = options.output / f"{job.name.replace(', ', '-').replace(' ', '-')}.jsonl"
    found.unlink(missing_ok=True)
    # A GPU's limits are not a CPU's: there the whole is limited alone.
    limit = left if options.device == "cpu" else min(job.seconds, left)
    script, *arguments = words
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--device", options.device]
    command += ["--json", str(found), *data_of(script, options)]
    began = time.monotonic()
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    status = run(command, found.with_suffix(".log"), limit)
    outcome = f"stopped after {limit:.0f} s" if status is None else "done" if status == 0 else "FAILED"
    results = [json.loads(line) for line in found.read_text().splitlines()] if found.exists() else []
    shown_command = " ".join(["python", f"benchmarks/{script}", *arguments, "--device", options.device])
    report.add(job.name, outcome, time.monotonic() - began, shown_command, results=results)
    return status == 0 or (status is None and bool(results))


def data_of(script: str, options: argparse.Namespace) -> list[str]:
    if script == "tiling.py":  # its frames are made
        return []
    if options.data is not None:
        return ["--data", options.data]
    return ["--data", "drawn"] if script in ("labels.py", "canvas_greedy.py") else []


def run(command: list[str], log: Path, seconds: float) -> int | None:
    """Run a command, its output shown and kept; its exit status, or None if it was stopped for taking too long."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = os.environ.get("OMP_NUM_THREADS", "8")
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(None if seconds == math.inf else max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(log.read_text()[-6000:], end="", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
