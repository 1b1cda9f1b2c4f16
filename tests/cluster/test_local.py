"""cluster.local: what happens when Ray does not start on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from cluster import local
from cluster.errors import ClusterError
from cluster.local import start_ray
from cluster.processes import descendants
from tests.support import places

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """In place of ray.init, which takes 30 s to fail so: leaves a process behind and raises, so many times."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: int, text: str = LATE) -> None:
        import ray

        self.fails, self.text, self.left = fails, text, list[int]()
        self.count = 0
        patch.setattr(ray, "init", self)
        patch.setattr(ray, "shutdown", lambda: None)

    def __call__(self, **options: Any) -> None:
        self.count += 1
        if self.count <= self.fails:
            self.left.append(subprocess.Popen(["sleep", "60"]).pid)
            raise Exception(self.text)


def test_a_node_that_is_late_is_removed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, 2)
    before = set(descendants(os.getpid()))
    start_ray()
    assert starts.count == 3 and len(starts.left) == 2
    assert not set(starts.left) & set(descendants(os.getpid()))
    assert before <= set(descendants(os.getpid())), "what was there is left alone"


def test_one_that_is_always_late_and_one_that_fails_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, 9)
    with pytest.raises(ClusterError, match=r"^Ray did not start on this machine: The current node timed out[^\n]+$"):
        start_ray()
    assert starts.count == 3
    starts = Starts(monkeypatch, 9, "no room for\nsockets")
    with pytest.raises(ClusterError, match=r"^Ray did not start on this machine: no room for$"):
        start_ray()
    assert starts.count == 1


@pytest.mark.slow
def test_a_ray_that_runs_already_is_told_which_object_store_is_meant(ray_session: str) -> None:
    """Its nodes were started from another environment. Credentials stay what theirs are."""
    code = """
import os, sys
from cluster.local import RayConfig, running
with running(RayConfig(address=sys.argv[1])):
    import ray
    print(sorted(ray.get(ray.remote(lambda: [v for n, v in os.environ.items() if n.startswith("AWS_")]).remote())))
"""
    said = {"AWS_ENDPOINT_URL": "http://lab:9000", "AWS_REGION": "lab-1", "AWS_PROFILE": "mine"}
    done = subprocess.run(
        [sys.executable, "-c", code, ray_session],
        env=os.environ | said | {"AWS_SECRET_ACCESS_KEY": "must-stay-here"},
        cwd=places.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'http://lab:9000'" in done.stdout and "'lab-1'" in done.stdout, done.stdout + done.stderr
    assert "'mine'" not in done.stdout and "must-stay-here" not in done.stdout


def test_a_start_that_takes_long_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import ray

    monkeypatch.setattr(local, "_LATE_S", 0.01)
    monkeypatch.setattr(ray, "init", lambda **options: time.sleep(0.5))
    start_ray()
    assert capfd.readouterr().err == "starting Ray on this machine: where that is busy, it takes minutes\n"
