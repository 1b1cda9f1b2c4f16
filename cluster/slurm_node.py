"""What a Slurm job runs on its nodes: `python -m cluster.slurm_node job|worker|wait`, from the script of cluster.slurm.

`job` is the batch process on the first node: it starts Ray's head, has the other nodes join (`worker`, by srun), asks
until all are there (`wait`), and runs the job's command. It is told of preemption and of the time limit by SIGTERM,
passes it on, lets the command end, and puts the job back into the queue. Whatever the end, it takes down all it started
and removes its folder; the workers do so when the head's Ray no longer answers.

`ray symmetric-run` does much of this, but it ends with `ray stop`, which also stops other jobs' Ray on the node, it
refuses a node on which one runs, and it dies of SIGTERM with nothing stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.processes import descendants, kill

ADDRESS = "AUTOGAZE_RAY_ADDRESS"  # tells workers where the head is
_PREFIX = "ag-"
_SOCKET_PATH = 107  # bytes that a Unix socket's name may have, and Ray's, from its folder on, in the longest case
_RAY_SOCKET = len("/ray/session_2026-11-23_00-13-38_123456_1234567/sockets/plasma_store_1")
_PR_SET_CHILD_SUBREAPER = 36
_STALE_S = 60.0
_LOST_S = 60.0  # a head that can no longer be reached at all
_TEARDOWN_S = 20.0
STOPPED = 128 + signal.SIGTERM


def _say(text: str) -> None:
    print(f"autogaze: {text}", file=sys.stderr, flush=True)


def _node_name() -> str:
    return os.environ.get("SLURMD_NODENAME", "") or socket.gethostname()


class _Failed(Exception):
    """The job cannot go on; said in one line."""


# -- a folder, and processes, of our own -------------------------------------------------------------------------------


@contextmanager
def private_folder(tmp: str) -> Iterator[Path]:
    """A folder on this node that only this user can enter, for temporary files and Ray's; removed at the end.

    One that a SIGKILL left behind is removed by the next job of the same user: nobody holds its lock any more.
    """
    _remove_stale(Path(tmp))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.environ.get('SLURM_JOB_ID', '0')}-", dir=tmp))
    except OSError as error:
        raise _Failed(f"environment.tmp={tmp}: {error.strerror}, on node {_node_name()}") from error
    lock = os.open(folder, os.O_RDONLY)  # closed on exec: no child keeps it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if len(os.fsencode(folder)) + _RAY_SOCKET > _SOCKET_PATH:
            raise _Failed(f"environment.tmp={tmp}: too long for the names of Ray's sockets; use a shorter one")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _inside(folder: Path) -> dict[str, str]:
    """The environment of what works in the folder. Not our own: Slurm would make the same folder for srun's tasks."""
    return {**os.environ, "TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}


def _remove_stale(tmp: Path) -> None:
    for folder in tmp.glob(f"{_PREFIX}[0-9]*"):
        try:
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < _STALE_S:
                continue  # a young one may be about to be locked
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
        except OSError:  # locked, or just removed by another
            continue


def adopt_orphans() -> None:
    """Let processes whose parent ends become our children, so that none of ours is ever out of sight."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(seconds: float = _TEARDOWN_S) -> None:
    """Kill every process below this one, and see them gone. For the end, when none of them has work left.

    No SIGTERM before: Ray answers it by draining its node for half a minute, which here nobody waits for.
    """
    deadline = time.monotonic() + seconds
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        kill(left)
        time.sleep(0.05)
    _reap()


def _reap() -> None:
    """Collect children that ended; those of subprocess included, whose objects then no longer wait."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, and SIGKILL when that is not enough."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Set once SIGTERM comes."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


# -- Ray ---------------------------------------------------------------------------------------------------------------


def _start_ray(folder: Path, cpus: int, gpus: int, memory_gb: int, address: str = "") -> subprocess.Popen[bytes]:
    """Ray on this node in the foreground of a child: the head, or with an address, one that joins it.

    Every port is one that is free: two jobs may share a node.
    """
    # Ray takes 30 % of the machine, which on a shared node is not ours; above 10 GB it must fit in shared memory.
    shared = os.statvfs("/dev/shm")  # noqa: S108
    store = min(int(0.3 * memory_gb * 2**30), int(0.9 * shared.f_bavail * shared.f_frsize))
    # In a folder inside ours: Ray opens the one it is given to everybody.
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={folder / 'ray'}"]
    words += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={store}"]
    words += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    if address:
        words += [f"--address={address}"]
    else:
        words += ["--head", "--port=0", "--include-dashboard=false", "--no-monitor"]  # and no autoscaler
        if importlib.util.find_spec("grpc"):  # then Ray starts a server for clients too, at a fixed port unless told
            words += [f"--ray-client-server-port={_free_port()}"]
    with (folder / "ray.log").open("wb") as log:
        # A session of its own: Ray's reaper signals its process group.
        return subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_inside(folder), start_new_session=True
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _why(folder: Path) -> str:
    """The end of what `ray start` said, in one line."""
    lines = (folder / "ray.log").read_text(errors="replace").splitlines()
    return " ".join(" ".join(lines[-5:]).split()) or "it said nothing"


def _bring_up(
    folder: Path, options: argparse.Namespace, stop: threading.Event, deadline: float, head: str = ""
) -> tuple[subprocess.Popen[bytes], str]:
    """Ray on this node once it answers, and its head's address: '' if told to stop before, or if `head` is gone."""
    written = folder / "ray" / "ray_current_cluster"
    while True:
        ray = _start_ray(folder, options.cpus, options.gpus, options.memory_gb, head)
        while not (written.exists() and (address := written.read_text().strip())):
            if time.monotonic() > deadline:
                raise _Failed(f"Ray on node {_node_name()} did not answer within timeouts.ready_s")
            if stop.wait(0.5 if head else 0.1) or (head and _head_is_gone(head)):
                return ray, ""
            if ray.poll() is not None:
                break
        else:
            return ray, address
        # Ray gives a node half a minute and no more, which one that is busy, or reads Python from afar, may not meet.
        if "timed out" not in (why := _why(folder)):
            raise _Failed(f"Ray on node {_node_name()} did not start: {why}")
        _say(f"Ray on node {_node_name()} did not start in time, and is started again")
        end_descendants()
        shutil.rmtree(folder / "ray", ignore_errors=True)


def _head_is_gone(address: str) -> bool | None:
    """Whether nothing listens there any more; None when that cannot be known."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:
        return None
    return False


def wait_for_nodes(address: str, nodes: int, seconds: float) -> int:
    """Exit status 0 once so many nodes are alive in the Ray at an address; 1 when they were not in time."""
    import logging

    import ray

    began = time.monotonic()
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    while (alive := sum(bool(node["Alive"]) for node in ray.nodes())) < nodes:
        if time.monotonic() - began > seconds:
            _say(f"{alive} of {nodes} nodes joined Ray within timeouts.ready_s={seconds:g}")
            return 1
        time.sleep(0.2)
    return 0


# -- what each node does -----------------------------------------------------------------------------------------------


def worker(options: argparse.Namespace) -> int:
    """Join the head's Ray until that is gone."""
    began, address, lost_since = time.monotonic(), os.environ[ADDRESS], 0.0
    with told_to_stop() as stop, private_folder(options.tmp) as folder:
        try:
            ray, _ = _bring_up(folder, options, stop, began + options.ready_s, address)
            deadline = float("inf")
            while time.monotonic() < deadline:
                if ray.poll() is not None:
                    if _head_is_gone(address):
                        return 0
                    raise _Failed(f"Ray on node {_node_name()} ended: {_why(folder)}")
                if stop.is_set() and deadline == float("inf"):
                    # Slurm signals the nodes of a preempted job at once; the head may still be saving a checkpoint.
                    deadline = time.monotonic() + options.grace_s
                gone = _head_is_gone(address)
                lost_since = (lost_since or time.monotonic()) if gone is None else 0.0
                if gone or (lost_since and time.monotonic() - lost_since > _LOST_S):
                    return 0
                time.sleep(0.5)
            return 0
        finally:
            end_descendants()


def job(options: argparse.Namespace) -> int:
    """Run the job's command, on a Ray over all nodes when `options.ray`; its exit status."""
    with told_to_stop() as stop, private_folder(options.tmp) as folder:
        others: list[subprocess.Popen[bytes]] = []
        ray: subprocess.Popen[bytes] | None = None
        command = list(options.command)
        try:
            if options.ray:
                began = time.monotonic()
                deadline = began + options.ready_s
                os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
                ray, address = _bring_up(folder, options, stop, deadline)
                os.environ[ADDRESS] = address
                if address:
                    others += [subprocess.Popen(shlex.split(words), start_new_session=True) for words in options.join]
                    _await_nodes(address, options.nodes, others, stop, deadline)
                    _say(f"Ray on {options.nodes} node(s), ready after {time.monotonic() - began:.1f} s")
                    command.append(f"ray.address={address}")
            status = STOPPED if stop.is_set() else _run(command, ray, folder, stop, options.grace_s)
        finally:
            if ray is not None:  # first, since that tells the workers
                kill([ray.pid, *descendants(ray.pid)])
            _await_end(others)
            end_descendants()
        stopped = stop.is_set()
    if not stopped:
        return status
    if options.requeue and _requeue():
        _say("back in the queue; the job goes on when it starts again")
    return STOPPED


def _await_nodes(
    address: str, nodes: int, others: list[subprocess.Popen[bytes]], stop: threading.Event, deadline: float
) -> None:
    if nodes == 1:
        return
    words = ["wait", f"--address={address}", f"--nodes={nodes}", f"--seconds={max(deadline - time.monotonic(), 1)}"]
    asking = subprocess.Popen([sys.executable, "-m", "cluster.slurm_node", *words], stdin=subprocess.DEVNULL)
    try:
        while asking.poll() is None and not stop.wait(0.1):
            if any(process.poll() is not None for process in others):
                raise _Failed("a node could not join Ray; its own message is above")
            if time.monotonic() > deadline + 30:
                raise _Failed("Ray's head stopped answering while nodes joined")
        if asking.returncode:
            raise _Failed("not all nodes joined; raise timeouts.ready_s, or look at the nodes' messages above")
    finally:
        if asking.poll() is None:
            _end(asking, 5)


def _run(
    command: list[str], ray: subprocess.Popen[bytes] | None, folder: Path, stop: threading.Event, grace_s: float
) -> int:
    """The command to its end; after SIGTERM, which is passed on once, at most `grace_s` longer."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_inside(folder))
    except OSError as error:
        raise _Failed(f"{command[0]}: {error.strerror}; is autogaze installed on the nodes?") from error
    deadline = float("inf")
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if stop.is_set() and deadline == float("inf"):
                _say("told to stop: the command has until timeouts.grace_s to save its state")
                process.terminate()
                deadline = time.monotonic() + grace_s
            if ray is not None and ray.poll() is not None and not stop.is_set():
                raise _Failed(f"Ray's head ended: {_why(folder)}")
            time.sleep(0.1)
        return process.returncode if process.returncode is not None else STOPPED
    finally:
        if process.poll() is None:
            _end(process, 5)


def _await_end(others: list[subprocess.Popen[bytes]]) -> None:
    """Let the srun commands end: their workers see that the head is gone. Those that do not are cancelled."""
    deadline = time.monotonic() + _TEARDOWN_S
    for process in others:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            _end(process, 10)


def _requeue() -> bool:
    """Ask Slurm to start this job again later; not one that was cancelled, whose state is no longer RUNNING."""
    number = os.environ["SLURM_JOB_ID"]
    asked = subprocess.run(["squeue", "-h", "-j", number, "-o", "%T"], capture_output=True, text=True, check=False)
    if asked.stdout.strip().splitlines()[:1] != ["RUNNING"]:
        return False
    done = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, check=False)
    if done.returncode:
        _say(f"not put back into the queue: {' '.join(done.stderr.split())}")
    return not done.returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.slurm_node", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("job", "worker"):
        verb = verbs.add_parser(name)
        verb.add_argument("--tmp", default="/tmp")  # noqa: S108
        verb.add_argument("--cpus", type=int, required=True)
        verb.add_argument("--gpus", type=int, default=0)
        verb.add_argument("--memory-gb", type=int, required=True)
        verb.add_argument("--ready-s", type=float, default=300)
        verb.add_argument("--grace-s", type=float, default=120)
        if name == "job":
            verb.add_argument("--ray", action="store_true", help="start Ray on all nodes, and tell the command where")
            verb.add_argument("--nodes", type=int, default=1)
            verb.add_argument("--requeue", action="store_true")
            verb.add_argument("--join", action="append", default=[], help="command that starts workers on other nodes")
            verb.add_argument("command", nargs="+")
    verb = verbs.add_parser("wait")
    verb.add_argument("--address", required=True)
    verb.add_argument("--nodes", type=int, required=True)
    verb.add_argument("--seconds", type=float, required=True)
    return parser


def main() -> int:
    """One process of the job; its exit status."""
    options = _parser().parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    if options.verb == "wait":
        return wait_for_nodes(options.address, options.nodes, options.seconds)
    adopt_orphans()
    try:
        return job(options) if options.verb == "job" else worker(options)
    except _Failed as error:
        _say(" ".join(str(error).split()))
        return 1


if __name__ == "__main__":
    sys.exit(main())
