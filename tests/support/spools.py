"""Shards while they are being written, and what is left of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support import runs, s3_servers


def spooled(output: Path) -> int:
    """Bytes of the shards that are being written."""
    total = 0
    for path in output.glob("shards/.tmp-*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def kill_two_in_a_spool(job: str, made: runs.Run, output: Path, stage: str, size: int) -> None:
    """Make a run's output again, and kill two processes that have `stage` in their command line: each when the shards
    that are being written have over `size` bytes, the second in another shard.
    """
    process = runs.start(job, *made.settings, f"output={output}", "ray.cpus=2")

    def due(dead: int) -> bool:
        return spooled(output) > size and len(list(output.glob("index/*.parquet"))) >= dead

    runs.kill_two(process, stage, due)


def spool_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where this process, and those it starts, spool."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / f"autogaze-spool-{os.getuid()}"


def stored(server: s3_servers.Rclone, folder: str) -> dict[str, str]:
    """What a folder of the bucket has; what the killed server left of its own is not ours."""
    tree = runs.tree(server.folder / s3_servers.BUCKET / folder)
    return {name: mark for name, mark in tree.items() if ".rclone_" not in name}
