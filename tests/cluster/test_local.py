"""cluster.local: what happens when Ray does not start on this machine."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from cluster import ClusterError
from cluster.local import _start
from cluster.processes import descendants

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
    _start()
    assert starts.count == 3 and len(starts.left) == 2
    assert not set(starts.left) & set(descendants(os.getpid()))
    assert before <= set(descendants(os.getpid())), "what was there is left alone"


def test_one_that_is_always_late_and_one_that_fails_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, 9)
    with pytest.raises(ClusterError, match=r"^Ray did not start on this machine: The current node timed out[^\n]+$"):
        _start()
    assert starts.count == 3
    starts = Starts(monkeypatch, 9, "no room for\nsockets")
    with pytest.raises(ClusterError, match=r"^Ray did not start on this machine: no room for$"):
        _start()
    assert starts.count == 1
