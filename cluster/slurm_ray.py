"""Ray on one node of a Slurm job: start it, learn whether it answers, and whether its head still does."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from cluster import modules
from cluster.errors import ClusterError
from cluster.node import inside, node_name, say
from cluster.processes import end_descendants


def _start_ray(folder: Path, cpus: int, gpus: int, memory_gb: int, address: str = "") -> subprocess.Popen[bytes]:
    """Ray on this node in the foreground of a child: the head, or with an address, one that joins it.

    Every port is one that is free: two jobs may share a node.
    """
    # Ray would take 30 % of the whole machine, which on a shared node is not ours. It must also fit in /dev/shm.
    shared = os.statvfs("/dev/shm")  # noqa: S108
    store = min(int(0.3 * memory_gb * 2**30), int(0.9 * shared.f_bavail * shared.f_frsize))
    # In a folder inside ours, because Ray makes its own readable for everybody.
    words = [*modules.words("ray.scripts.scripts"), "start", "--block", f"--temp-dir={folder / 'ray'}"]
    words += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={store}"]
    words += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    if address:
        words += [f"--address={address}"]
    else:
        words += ["--head", "--port=0", "--include-dashboard=false", "--no-monitor"]  # and no autoscaler
        if importlib.util.find_spec("grpc"):  # then Ray also starts a server for clients, by default at a fixed port
            words += [f"--ray-client-server-port={_free_port()}"]
    with (folder / "ray.log").open("wb") as log:
        # A session of its own: Ray's reaper signals its process group.
        return subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=inside(folder), start_new_session=True
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def ray_log_end(folder: Path) -> str:
    """The last lines that `ray start` wrote, as one line."""
    lines = (folder / "ray.log").read_text(errors="replace").splitlines()
    return " ".join(" ".join(lines[-5:]).split()) or "it wrote nothing"


def bring_up(
    folder: Path, options: argparse.Namespace, stop: threading.Event, deadline: float, head: str = ""
) -> tuple[subprocess.Popen[bytes], str]:
    """Start Ray on this node, and again if it is late: its process, and its head's address once it answers.

    The address is '' if `stop` was set before, or if `head`, the Ray to join, is gone. Raises ClusterError: Ray does
    not start, or not before `deadline`, a time of time.monotonic.
    """
    written = folder / "ray" / "ray_current_cluster"
    while True:
        ray = _start_ray(folder, options.cpus, options.gpus, options.memory_gb, head)
        while not (written.exists() and (address := written.read_text().strip())):
            if time.monotonic() > deadline:
                raise ClusterError(f"Ray on node {node_name()} did not answer within timeouts.ready_s")
            if stop.wait(0.5 if head else 0.1) or (head and head_is_gone(head)):
                return ray, ""
            if ray.poll() is not None:
                break
        else:
            return ray, address
        # Ray gives a node half a minute, too little for a busy one or one that reads Python over the network.
        if "timed out" not in (why := ray_log_end(folder)):
            raise ClusterError(f"Ray on node {node_name()} did not start: {why}")
        say(f"Ray on node {node_name()} did not start in time; starting it again")
        end_descendants()
        shutil.rmtree(folder / "ray", ignore_errors=True)


def head_is_gone(address: str) -> bool | None:
    """Whether nothing listens there any more; None where that cannot be known."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:
        return None
    return False


def wait_for_nodes(address: str, nodes: int, seconds: float) -> int:
    """0 once so many nodes are alive in the Ray at an address; 1 if they are not within `seconds`."""
    import logging

    import ray

    began = time.monotonic()
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    while (alive := sum(bool(node["Alive"]) for node in ray.nodes())) < nodes:
        if time.monotonic() - began > seconds:
            say(f"{alive} of {nodes} nodes joined Ray within timeouts.ready_s={seconds:g}")
            return 1
        time.sleep(0.2)
    return 0
