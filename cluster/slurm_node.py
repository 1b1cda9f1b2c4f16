"""What a Slurm job runs on its nodes: this module, with job, worker or wait, as cluster.slurm_script writes it.

`job` is the batch process on the first node. It starts Ray's head, has the other nodes join (`worker`, by srun), waits
until all are there (`wait`), and runs the job's command. Preemption and the time limit reach it as SIGTERM: it passes
the signal on, lets the command end, and puts the job back into the queue. However it ends, it stops everything it
started and removes its folder; the workers do the same when the head's Ray no longer answers.

`ray symmetric-run` does much of this, but it ends with `ray stop`, which also stops the Ray of other jobs on the node,
it refuses a node on which a Ray runs, and SIGTERM kills it with nothing stopped.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import modules
from cluster.errors import ClusterError
from cluster.node import inside, node_name, private_folder, say
from cluster.processes import adopt_orphans, descendants, end_descendants, end_process, kill
from cluster.slurm_ray import bring_up, head_is_gone, ray_log_end, wait_for_nodes

ADDRESS = "AUTOGAZE_RAY_ADDRESS"  # the environment variable in which workers find the head
_LOST_S = 60.0  # a head that can no longer be reached at all
_TEARDOWN_S = 20.0
STOPPED = 128 + signal.SIGTERM


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Set once SIGTERM comes."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def worker(options: argparse.Namespace) -> int:
    """Join the head's Ray until that is gone."""
    began, address, lost_since = time.monotonic(), os.environ[ADDRESS], 0.0
    with stop_requested() as stop, private_folder(options.tmp) as folder:
        try:
            ray, _ = bring_up(folder, options, stop, began + options.ready_s, address)
            deadline = float("inf")
            while time.monotonic() < deadline:
                if ray.poll() is not None:
                    if head_is_gone(address):
                        return 0
                    raise ClusterError(f"Ray on node {node_name()} ended: {ray_log_end(folder)}")
                if stop.is_set() and deadline == float("inf"):
                    # Slurm signals the nodes of a preempted job at once; the head may still be saving a checkpoint.
                    deadline = time.monotonic() + options.grace_s
                gone = head_is_gone(address)
                lost_since = (lost_since or time.monotonic()) if gone is None else 0.0
                if gone or (lost_since and time.monotonic() - lost_since > _LOST_S):
                    return 0
                time.sleep(0.5)
            return 0
        finally:
            end_descendants()


def job(options: argparse.Namespace) -> int:
    """Run the job's command, on a Ray over all nodes when `options.ray`; its exit status."""
    with stop_requested() as stop, private_folder(options.tmp) as folder:
        others: list[subprocess.Popen[bytes]] = []
        ray: subprocess.Popen[bytes] | None = None
        command = list(options.command)
        try:
            if options.ray:
                began = time.monotonic()
                deadline = began + options.ready_s
                os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
                ray, address = bring_up(folder, options, stop, deadline)
                os.environ[ADDRESS] = address
                if address:
                    others += [subprocess.Popen(shlex.split(words), start_new_session=True) for words in options.join]
                    _await_nodes(address, options.nodes, others, stop, deadline)
                    say(f"Ray on {options.nodes} node(s), ready after {time.monotonic() - began:.1f} s")
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
        say("back in the queue; the job goes on when it starts again")
    return STOPPED


def _await_nodes(
    address: str, nodes: int, others: list[subprocess.Popen[bytes]], stop: threading.Event, deadline: float
) -> None:
    if nodes == 1:
        return
    words = ["wait", f"--address={address}", f"--nodes={nodes}", f"--seconds={max(deadline - time.monotonic(), 1)}"]
    waiting = subprocess.Popen([*modules.words("cluster.slurm_node"), *words], stdin=subprocess.DEVNULL)
    try:
        while waiting.poll() is None and not stop.wait(0.1):
            if any(process.poll() is not None for process in others):
                raise ClusterError("a node could not join Ray; its own message is above")
            if time.monotonic() > deadline + 30:
                raise ClusterError("Ray's head stopped answering while nodes joined")
        if waiting.returncode:
            raise ClusterError("not all nodes joined; raise timeouts.ready_s, or look at the nodes' messages above")
    finally:
        if waiting.poll() is None:
            end_process(waiting, 5)


def _run(
    command: list[str], ray: subprocess.Popen[bytes] | None, folder: Path, stop: threading.Event, grace_s: float
) -> int:
    """Run the command; its exit status. SIGTERM is passed on once, and then it has `grace_s` left."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=inside(folder))
    except OSError as error:
        raise ClusterError(f"{command[0]}: {error.strerror}; is autogaze installed on the nodes?") from error
    deadline = float("inf")
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if stop.is_set() and deadline == float("inf"):
                say("SIGTERM: the command has timeouts.grace_s to save its state")
                process.terminate()
                deadline = time.monotonic() + grace_s
            if ray is not None and ray.poll() is not None and not stop.is_set():
                raise ClusterError(f"Ray's head ended: {ray_log_end(folder)}")
            time.sleep(0.1)
        return process.returncode if process.returncode is not None else STOPPED
    finally:
        if process.poll() is None:
            end_process(process, 5)


def _await_end(others: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the srun commands, whose workers end because the head is gone, and cancel those that do not."""
    deadline = time.monotonic() + _TEARDOWN_S
    for process in others:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            end_process(process, 10)


def _requeue() -> bool:
    """Put this job back into the queue; not a cancelled one, which Slurm no longer lists as RUNNING."""
    number = os.environ["SLURM_JOB_ID"]
    state = subprocess.run(["squeue", "-h", "-j", number, "-o", "%T"], capture_output=True, text=True, check=False)
    if state.stdout.strip().splitlines()[:1] != ["RUNNING"]:
        return False
    done = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"not put back into the queue: {' '.join(done.stderr.split())}")
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
            verb.add_argument(
                "--ray", action="store_true", help="start Ray on all nodes, and add its address to the command"
            )
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
    except ClusterError as error:
        say(" ".join(str(error).split()))
        return 1


if __name__ == "__main__":
    sys.exit(main())
