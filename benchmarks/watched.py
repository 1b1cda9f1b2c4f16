"""A command run beside a look at its processes: the core seconds of each kind of them, between any two moments."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from memory import family

HERE = Path(__file__).resolve().parent.parent
_EVERY_S = 0.2


class Watched:
    """Run a command, by the code of a checkout, and wait for it. Raises SystemExit where it fails.

    Attributes:
        printed: by the command.
        samples: moments, and the core seconds of it and all processes under it until then, by kind.
    """

    def __init__(self, command: Sequence[str], code: Path = HERE) -> None:
        environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        job = subprocess.Popen(command, env=environment, cwd=code, stdout=subprocess.PIPE, text=True)
        used = dict[int, tuple[str, float]]()
        self.samples: list[tuple[float, Counter[str]]] = [(0.0, Counter())]
        while job.poll() is None:
            for process in family(job.pid):
                try:
                    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                    command = Path(f"/proc/{process}/cmdline").read_bytes()
                except OSError:
                    continue
                kind = "driver" if process == job.pid else kind_of(command)
                if not command and process in used:  # it has ended, and its parent has not asked how
                    kind = used[process][0]
                used[process] = kind, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            now = Counter[str]()
            for kind, seconds in used.values():
                now[kind] += seconds  # type: ignore[assignment]
            self.samples.append((time.time(), now))
            time.sleep(_EVERY_S)
        assert job.stdout is not None
        self.printed = job.stdout.read()
        if job.returncode:
            raise SystemExit(job.returncode)

    def spent(self, begin: float, end: float) -> Counter[str]:
        """Core seconds between two moments, by kind of process."""
        before, after = (
            max((s for s in self.samples if s[0] <= moment), key=lambda s: s[0])[1] for moment in (begin, end)
        )
        return Counter({kind: seconds - before[kind] for kind, seconds in after.items()})


def kind_of(command: bytes) -> str:
    """What a process of a run is, by its command line."""
    kinds = {b"pipelines.video.child": "decoders", b"ray::Map": "actors", b"ray::": "workers of Ray's"}
    return next((kind for mark, kind in kinds.items() if mark in command), "Ray")


def span(records: Path) -> tuple[float, float]:
    """When the first clip of a run began, seconds since 1970, and how long it was from there to the last commit."""
    (record,) = (json.loads(path.read_text()) for path in records.iterdir())
    stage = record["stages"][record["slowest_stage"]]
    began = datetime.fromisoformat(record["started"]).timestamp() + record["start_up"]["actors"]
    return began, float(stage["seconds"] / stage["workers"] / record["speed_of_light"])
