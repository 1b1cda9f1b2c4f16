"""A Ray for the length of one job: our own on this machine, or the cluster at an address.

Our own has no dashboard, reports no usage statistics, is closed to others by a token made for this run, and dies with
this process, however that dies.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.cpus import usable_cpus
from cluster.errors import ClusterError
from cluster.modules import CodePaths
from cluster.node import RAY_PATH_BYTES, private_folder
from cluster.processes import descendants, kill
from cluster.quiet import quiet_when_told_to_leave
from cluster.raylet import RayletDied, failing_with_its_raylet, rays_processes, told_if_one_dies

_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone
_HEAD_TIMEOUT_S = 120
_LATE_S = 10.0  # of starting Ray: then it is said
_STARTS, _DEATHS = 3, 8  # of Ray: that are late, or whose raylet dies after some 15 s; the last of them is an error
_SHORT = "/tmp"  # noqa: S108
_STORAGE = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass
class RayConfig:
    """Which Ray runs the job."""

    address: str = field(
        default="", metadata={"help": "'' starts one on this machine; 'auto' or host:port joins a cluster"}
    )
    cpus: int = field(default=0, metadata={"help": "CPUs of the Ray we start (0 = all that this process may use)"})
    object_store_mb: int = field(default=0, metadata={"help": "memory for rows in flight (0 = Ray's own choice)"})


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster has when the job starts."""

    nodes: int
    cpus: int
    gpus: int


@contextmanager
def running(config: RayConfig) -> Iterator[ClusterSize]:
    """Connect to Ray, or start it, for the length of the block. A Ray that this process already has is used, and kept.

    Raises ClusterError when no cluster answers at the address, or one whose head has lost its raylet: its GCS would
    still take the job, and Ray then wait for the head without end. Also when Ray cannot be started on this machine.
    """
    with _short_paths(config) as paths, _connected(config, paths) as size:
        yield size


@contextmanager
def _short_paths(config: RayConfig) -> Iterator[dict[str, str]]:
    """Options for a Ray of our own whose sockets would have too long names, as in a long $TMPDIR; {} for all others.

    Its files then go to a private folder in /tmp, which is removed at the end. Objects that do not fit in memory, which
    may be large, still go to $TMPDIR. Raises ClusterError: it cannot be had.
    """
    wanted = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT
    longest = RAY_PATH_BYTES - len("/ray")
    if config.address or len(os.fsencode(wanted)) <= longest:
        yield {}
        return
    if "RAY_TMPDIR" in os.environ:
        raise ClusterError(
            f"RAY_TMPDIR={wanted}: too long for the names of Ray's sockets; give a folder of at most {longest} bytes"
        )
    try:
        with private_folder(_SHORT) as folder:
            yield {"_temp_dir": str(folder / "ray"), "object_spilling_directory": wanted}
    except ClusterError as error:
        if str(error).startswith("environment.tmp="):
            raise ClusterError(
                f"TMPDIR={wanted}: too long for the names of Ray's sockets, and {_SHORT} cannot be used instead; "
                f"set RAY_TMPDIR to a folder of at most {longest} bytes"
            ) from error
        raise


@contextmanager
def _connected(config: RayConfig, paths: dict[str, str]) -> Iterator[ClusterSize]:
    """As `running`. paths: further options of a Ray that we start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side warns of normal operation on our terminal
    # Ray reads these when it is imported, and so it is imported below; a process that already has goes by the settings
    # it had then. A token in our own environment reaches the processes we start and no file: a token file in the home
    # folder would switch authentication on for every other Ray of this user.
    if not config.address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    if ray.is_initialized() and config.address in ("", "auto", ray.get_runtime_context().gcs_address):
        yield _size()
        return
    code = ray.job_config.JobConfig()
    code._py_driver_sys_path = CodePaths()
    sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: not set from Python
    # Ray otherwise prints one line per dataset and a banner per connection; a job has its own progress and summary.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "job_config": code}
    if config.address:
        require_listening(config.address, "ray.address")
        # Its nodes have the environment of their `ray start`; which server `s3://` means is this job's to say.
        where = {name: os.environ[name] for name in _STORAGE if name in os.environ}
        try:
            with _no_banner():
                ray.init(address=config.address, runtime_env={"env_vars": where} if where else None, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            remedy = "start one with `ray start --head`, or leave ray.address empty to run on this machine"
            if "Failed to connect" in first and config.address != "auto":  # though somebody listens there
                remedy = (
                    "its token is another (set RAY_AUTH_MODE and RAY_AUTH_TOKEN as where it was started), its version "
                    "of Ray is, or the port is not that of `ray start --head`"
                )
            raise ClusterError(f"ray.address={config.address}: no Ray cluster answers ({first}); {remedy}") from error
    else:
        start_ray(
            **paths,
            # Two stages hold a CPU each: a machine of one core runs them in turns.
            num_cpus=config.cpus or max(2, usable_cpus()),
            object_store_memory=config.object_store_mb << 20 or None,
            include_dashboard=False,
            **quiet,
        )
    _handle_sigterm(sigterm if callable(sigterm) else _leave)
    try:
        if config.address:
            _require_head(config.address)
        with quiet_when_told_to_leave() as leaving:
            try:
                with told_if_one_dies(rays_processes(), leaving):
                    yield _size()
            finally:
                ray.shutdown()
    finally:
        ray.shutdown()
        _handle_sigterm(sigterm)


def _size() -> ClusterSize:
    """Of the cluster that this process is connected to."""
    import ray

    resources = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return ClusterSize(len(alive), int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def start_ray(**options: Any) -> None:
    """Start a Ray on this machine, again where it does not come up in time, as on a busy machine."""
    import ray

    others, late, deaths = set(descendants(os.getpid())), 0, 0
    while True:
        try:
            with _told_if_late(), _no_banner(), failing_with_its_raylet():
                ray.init(address="local", **options)  # not whatever other Ray runs on this machine
            return
        except SystemExit as told:  # SIGTERM, by a handler of Ray's own that leaves with its number
            if told.code == signal.SIGTERM:
                _leave(signal.SIGTERM, None)
            raise
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            kill(set(descendants(os.getpid())) - others)  # a node that was late
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            if isinstance(error, RayletDied):
                deaths += 1
                remedy = "; Ray gives it 15 s, and the machine is busy: run it again when it is less so"
            elif "timed out" in str(error):
                late += 1
                remedy = "; the machine is busy: set RAY_raylet_start_wait_time_s=120, and run it again"
            else:
                raise ClusterError(f"Ray did not start on this machine: {first}") from error
            if late == _STARTS or deaths == _DEATHS:
                raise ClusterError(f"Ray did not start on this machine: {first}{remedy}") from error


def _require_head(address: str) -> None:
    """Raise ClusterError unless a task runs on the head node, where Ray Data and Ray Train put actors of theirs."""
    import ray

    # Whether Ray lists the head as alive says little: it learns of a killed raylet after half a minute.
    answer = ray.remote(num_cpus=0, resources={_HEAD: 0.001}, max_retries=0)(_nothing).remote()
    end = time.monotonic() + _HEAD_TIMEOUT_S
    while not ray.wait([answer], timeout=1)[0]:
        died = not any(node["Alive"] and _HEAD in node["Resources"] for node in ray.nodes())
        if died or time.monotonic() > end:
            what = "has died" if died else f"has run nothing for {_HEAD_TIMEOUT_S} s"
            raise ClusterError(
                f"ray.address={address}: the cluster's head node {what}; "
                "start the cluster again (`ray stop`, then `ray start --head` there), then this command"
            )
    try:
        ray.get(answer)
    except ray.exceptions.RayError as error:  # the head died under it
        raise ClusterError(f"ray.address={address}: the cluster's head node failed; look at `ray status`") from error


def _nothing() -> None:
    return None


def _handle_sigterm(handler: Any) -> None:
    """Take SIGTERM back from Ray, whose C++ side answers it with a stack trace and an abort."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _leave(number: int, frame: object) -> None:
    """End as after any error: what is open is closed, and Ray is stopped."""
    raise SystemExit(128 + number)


def require_listening(address: str, key: str = "address") -> None:
    """Raise ClusterError when nobody listens at host:port: Ray itself would try for minutes before it says so."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # 'auto', which Ray looks up
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"{key}={address}: no Ray cluster answers ({error.strerror or error}); "
            f"start one with `ray start --head`, or leave {key} empty to run on this machine"
        ) from error


@contextmanager
def _told_if_late() -> Iterator[None]:
    """Say on standard error what is waited for, where Ray's start takes long."""
    out = os.dup(2)  # which _no_banner silences
    told = threading.Timer(
        _LATE_S, os.write, (out, b"starting Ray on this machine: where that is busy, it takes minutes\n")
    )
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()
        told.join()
        os.close(out)


@contextmanager
def _no_banner() -> Iterator[None]:
    """Ray's C++ side announces its log level on file descriptor 2; what goes wrong it raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
