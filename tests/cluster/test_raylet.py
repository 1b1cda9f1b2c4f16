"""The death of the raylet is a line of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import places

# The raylet of this is `sleep`: it is killed, or the process is told to leave first, or comes to its own end.
JOB = """
import subprocess, sys, time
from cluster.raylet import told_if_one_dies
raylet = subprocess.Popen(["sleep", "60"])
with told_if_one_dies({"raylet": raylet.pid}, leaving=lambda: sys.argv[1] == "leaving"):
    if sys.argv[1] != "ends":
        raylet.kill()
        time.sleep(60 if sys.argv[1] == "dies" else 0.3)
raylet.kill()
raylet.wait()
sys.exit(7)
"""


@pytest.mark.parametrize(("how", "status"), [("dies", 1), ("leaving", 7), ("ends", 7)])
def test_a_raylet_that_dies_is_one_line(how: str, status: int) -> None:
    words = [sys.executable, "-c", JOB, how]
    done = subprocess.run(words, capture_output=True, text=True, cwd=places.ROOT, check=False, timeout=50)
    assert done.returncode == status
    told = done.stderr.splitlines()
    assert told == [] if status == 7 else "raylet on this machine died" in told[0] and "it continues" in told[0]
    assert len(told) <= 1
