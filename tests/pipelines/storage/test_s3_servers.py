"""tests.support.s3_servers: which rclone can serve S3 is asked of the program, whatever its version says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import s3_servers


@pytest.mark.parametrize(
    "script, usable",
    [
        ('echo "Serve a remote over a given protocol.\n  rclone serve <protocol> [opts] <remote>"', False),  # 1.60
        ('echo "Error: unknown command" >&2; exit 1', False),
        ('echo "\\`serve s3\\` implements a basic s3 server that serves a remote via s3."', True),
    ],
)
def test_an_rclone_without_the_command_counts_as_none(
    script: str, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rclone"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert s3_servers.rclone.__wrapped__() == (str(program) if usable else None)
