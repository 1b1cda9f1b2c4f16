"""What a benchmark measured, for programs: one JSON object a line, appended to the file of --json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


class Results:
    """Where a benchmark writes its numbers beside what it prints. Without a path it writes nothing.

    results = Results(options.json)
    results.add("gaze, batch 64", "clips/s", 812.0, dtype="float32")
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", type=Path, metavar="FILE", help="append each number, one JSON object a line")

    def add(self, name: str, unit: str, value: float, **facts: float | str | bool) -> None:
        """A number: what was measured, in which unit, and what else there is to know (settings, memory, spread)."""
        if self.path is not None:
            line = json.dumps({"name": name, "unit": unit, "value": value, **facts})
            with self.path.open("a") as file:
                file.write(line + "\n")
