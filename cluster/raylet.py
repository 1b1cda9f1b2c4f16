"""Ray's own processes on this machine: where one of them dies, Ray ends us, and says nothing."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

_DIED = (
    "Ray's {} on this machine died: killed, perhaps for want of memory; "
    "what is committed stays, run the same command again, it continues"
)
_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # which a progress bar hides
_WAIT = "RAY_raylet_start_wait_time_s"
STATUS = 1  # Ray's own, where it is quicker


def rays_processes() -> dict[str, int]:
    """Process ids of the raylet that this process is connected to, and of the GCS if it has started one; by name.

    Those are left out that cannot be told.
    """
    import ray

    node = ray._private.worker.global_worker.node
    if node is None:
        return {}
    raylet = _with_argument(f"--raylet_socket_name={node.raylet_socket_name}".encode())
    found = {} if raylet is None else {"raylet": raylet}
    for started in node.all_processes.get("gcs_server", ()):
        found["GCS"] = started.process.pid
    return found


def _with_argument(wanted: bytes) -> int | None:
    """The process that has this argument."""
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with suppress(OSError):
                if wanted in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                    return int(entry)
    return None


@contextmanager
def failing_with_its_raylet() -> Iterator[None]:
    """Within the block, a start of Ray whose raylet has died fails at once, with RayletDied.

    Ray itself goes on to wait for it, for 30 s or RAY_raylet_start_wait_time_s. On a busy machine it dies often: it
    gives the agent beside it 15 s, which nothing sets (WaitForDashboardAgentPorts in Ray's node_manager.cc).
    """
    from ray._private import services, state

    wait = getattr(services, "get_node", None)
    if wait is None:  # another version of Ray: it waits as long as it likes
        yield
        return

    def get_node(gcs_address: str, node_id: str) -> Any:
        nodes = state.GlobalState()
        nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
        while not any(node["NodeID"] == node_id for node in nodes.node_table()):
            if _dead_raylets() - before:
                raise RayletDied("its raylet died")
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return wait(gcs_address, node_id)

    before = _dead_raylets()  # of starts that failed
    end = time.monotonic() + float(os.environ.get(_WAIT) or 30)
    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = wait


class RayletDied(Exception):
    """A raylet that was being started is no more."""


def _dead_raylets() -> set[int]:
    """Children of this process that were raylets, have ended, and that nobody has waited for yet."""
    dead = set()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with suppress(OSError, IndexError):
                head, _, rest = Path(f"/proc/{entry}/stat").read_text().rpartition(")")
                state, parent = rest.split()[:2]
                if (head.partition("(")[2], state, parent) == ("raylet", "Z", str(os.getpid())):
                    dead.add(int(entry))
    return dead


@contextmanager
def told_if_one_dies(processes: Mapping[str, int], leaving: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within the block, the death of one of these processes ends ours with a line on standard error and STATUS.

    leaving: whether this process has been told to leave: then it is no news that the others do.
    """
    with ExitStack() as opened:
        names: dict[int, str] = {}
        for name, pid in processes.items() if hasattr(os, "pidfd_open") else ():
            with suppress(OSError):  # it has died already, or the kernel is an old one
                names[os.pidfd_open(pid)] = name
        over, end = os.pipe()
        for descriptor in (*names, over):
            opened.callback(os.close, descriptor)

        def watch() -> None:
            ready, _, _ = select.select([*names, over], [], [])
            if over not in ready and not leaving():
                _end(names[ready[0]])

        watcher = threading.Thread(target=watch, name="autogaze-raylet", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            os.close(end)
            watcher.join()


def _end(name: str) -> None:
    # Not sys.stderr: another thread may hold its lock.
    shown = _SHOW_CURSOR if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{shown}{_DIED.format(name)}\n".encode())
    os._exit(STATUS)
