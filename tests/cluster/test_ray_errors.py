"""cluster.local: a long $TMPDIR works, and what keeps Ray from being joined or started is one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import local
from cluster.errors import ClusterError
from cluster.local import RayConfig, running
from cluster.node import RAY_PATH_BYTES

Options = dict[str, Any]


class Started(Exception):
    """Raised in place of starting a Ray."""


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Options]:
    """What a Ray of our own would be started with, in the environment of the moment."""
    seen: list[Options] = []

    def start(**given: Any) -> None:
        seen.append(given | {"there": os.path.isdir(os.path.dirname(given.get("_temp_dir", "/x/y")))})
        raise Started

    def ask() -> Options:
        with pytest.raises(Started), running(RayConfig()):
            pass
        return seen[-1]

    monkeypatch.setattr(local, "start_ray", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have connected this process
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return ask


def test_a_long_tmpdir_gets_a_short_folder_that_is_removed(
    options: Callable[[], Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 108)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    given = options()
    folder = Path(given["_temp_dir"])
    assert len(os.fsencode(folder)) <= RAY_PATH_BYTES and given["there"] and not folder.parent.exists()
    assert given["object_spilling_directory"] == str(long), "which may be large"
    assert list(long.iterdir()) == []


def test_the_longest_tmpdir_that_ray_can_use_is_used(
    options: Callable[[], Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * (RAY_PATH_BYTES - len("/ray/tmp/")))
    assert "_temp_dir" not in options()
    monkeypatch.setenv("TMPDIR", os.environ["TMPDIR"] + "x")
    assert "_temp_dir" in options()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert "_temp_dir" not in options(), "the user has chosen another"


def test_a_folder_that_is_too_long_and_cannot_be_replaced_is_one_line(
    options: Callable[[], Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/" + "x" * 108)
    monkeypatch.setattr(local, "_SHORT", "/proc/nothing")
    with pytest.raises(ClusterError, match=r"^TMPDIR=/x+: too long .*; set RAY_TMPDIR to a folder of"):
        options()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "y" * 108)
    with pytest.raises(ClusterError, match=r"^RAY_TMPDIR=/y+: too long .*; give a folder of at most \d+ bytes$"):
        options()


def test_a_ray_with_another_token_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray puts it after half a minute, whether the token or the version is another."""
    import ray

    def refuse(address: str, **options: Any) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have connected this process
    monkeypatch.setattr(local, "require_listening", lambda *given: None)
    token = pytest.raises(
        ClusterError, match=r"its token is another \(set RAY_AUTH_MODE and RAY_AUTH_TOKEN as where it"
    )
    with token, running(RayConfig(address="10.0.0.1:6379")):
        pass
    with pytest.raises(ClusterError, match="start one with `ray start --head`"), running(RayConfig(address="auto")):
        pass


def test_a_machine_that_is_too_busy_for_ray_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(**options: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ClusterError, match="the machine is busy: set RAY_raylet_start_wait_time_s=120, and run it"):
        local.start_ray()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="/proc says which processes have died")
def test_a_start_whose_raylet_dies_fails_at_once_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private import services, state

    monkeypatch.setattr(state.GlobalState, "_initialize_global_state", lambda self, options: None)
    monkeypatch.setattr(state.GlobalState, "node_table", lambda self: [{"NodeID": "another"}])
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    (tmp_path / "raylet").symlink_to("/bin/true")
    starts: list[subprocess.Popen[bytes]] = []

    def dying(**options: Any) -> None:
        starts.append(subprocess.Popen([tmp_path / "raylet"]))
        services.get_node("127.0.0.1:1", "ours")

    monkeypatch.setattr(ray, "init", dying)
    with pytest.raises(ClusterError, match="did not start on this machine: its raylet died; Ray gives it 15 s"):
        local.start_ray()
    assert [start.wait() for start in starts] == [0] * 8, "each was its own, though nobody had waited for those before"
