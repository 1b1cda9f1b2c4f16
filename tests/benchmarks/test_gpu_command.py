"""`make gpu`: what it runs, what it leaves out, and what it writes, tried on a CPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, cwd=ROOT, timeout=280)


def parts(output: Path) -> dict[str, dict]:
    return {part["part"]: part for part in json.loads((output / "results.json").read_text())["parts"]}


@pytest.mark.slow
def test_without_a_gpu_it_says_how_to_try_it():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = gpu("--device", "cuda")
    assert done.returncode == 2 and "make gpu DEVICE=cpu" in done.stderr


def test_a_part_that_there_is_not_is_refused(monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--only", "profiel"])
    with pytest.raises(SystemExit) as refused:
        importlib.import_module("gpu").main()
    assert refused.value.code == 2 and "'profiel': no such part" in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_that_no_time_is_left_for_is_named_as_skipped(tmp_path):
    done = gpu("--device", "cpu", "--seconds", "5", "--only", "profile", "--output", str(tmp_path))
    assert done.returncode == 0
    assert parts(tmp_path)["profile"]["outcome"] == "skipped: no time was left"
    assert "skipped: no time was left" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["training step", "RL group", "reconstructor step", "canvas greedy", "tiling", "labels"]
)
def test_each_benchmark_runs_on_a_cpu_and_leaves_numbers(tmp_path, name):
    done = gpu("--device", "cpu", "--only", name, "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:]
    part = parts(tmp_path)[name]
    assert part["outcome"] == "done"
    assert part["results"] and all(row["value"] > 0 for row in part["results"])
