"""A real Slurm of two nodes on this host, beside any other (own configuration, ports, munge); what its jobs leave."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.slurm import JobStatus, status
from cluster.spec import ClusterSpec

DAEMONS = ("munged", "slurmctld", "slurmd")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=8000 Gres=gpu:toy:1 Weight=9
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str:
    """Why no Slurm can be started here ('' = it can)."""
    missing = [name for name in DAEMONS if not _daemon(name)]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "slurmd wants root"


def _daemon(name: str) -> str | None:
    return shutil.which(name, path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Slurm for the length of the block; its configuration file, which $SLURM_CONF is to name."""
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = _free_ports(3)
    names = dict(zip(("ctld", "n1", "n2"), ports, strict=True))
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(folder=folder, host=host, user="root", **names))
    (folder / "gres.conf").write_text("NodeName=n2 Name=gpu Type=toy File=/dev/null\n")
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    munge += [f"--key-file={key}", f"--socket={folder}/munge.socket", "--foreground", "--force"]
    environment = os.environ | {"SLURM_CONF": str(conf)}
    commands = [["munged", *munge], ["slurmctld", "-D", "-f", str(conf)]]
    commands += [["slurmd", "-D", "-f", str(conf), "-N", node] for node in ("n1", "n2")]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for words in commands:
            with (folder / f"{words[0]}.out").open("ab") as out:
                words[0] = _daemon(words[0]) or words[0]
                daemons.append(subprocess.Popen(words, env=environment, stdout=out, stderr=out))
            if words[0].endswith("munged"):
                _await((folder / "munge.socket").exists, "munged does not answer")

        def idle() -> bool:
            words = ["sinfo", "-h", "-o", "%D %T"]
            asked = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            return asked.stdout.strip() == "2 idle"

        _await(idle, f"Slurm's nodes do not come up; see {folder}")
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _await(condition: Callable[[], object], otherwise: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


# -- jobs --------------------------------------------------------------------------------------------------------------


def take_down(node: str) -> None:
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=down", "Reason=test"], check=True)


def bring_back(node: str) -> None:
    # Refused when the node has come back by itself (ReturnToService).
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=resume"], check=False, capture_output=True)


def ended(spec: ClusterSpec, job_id: str, seconds: float = 200) -> JobStatus:
    """What became of a job, once it and its processes have ended. One that waits to be started again, is."""
    deadline, hurried = time.monotonic() + seconds, 0
    while (now := status(spec, job_id)).state not in _ENDED:
        assert time.monotonic() < deadline, f"{now}\n{log(spec, job_id)}"
        if now.state == "PENDING" and now.restarts > hurried:
            # Slurm lets two minutes pass before it starts a requeued job. Some it needs: slurmd refuses one that comes
            # back in the second in which it ended.
            hurried = now.restarts
            subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now+3"], check=False)
        time.sleep(0.3)
    return now


def log(spec: ClusterSpec, job_id: str) -> str:
    found = [path for path in Path(spec.slurm.logs).iterdir() if path.suffix == ".log"]
    return "\n".join(path.read_text() for path in sorted(found) if f"-{job_id}" in path.name)


def left(job_ids: list[str]) -> list[str]:
    """Command lines of living processes that belong to jobs, by their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            line = (entry / "cmdline").read_bytes() if environment else b""
        except OSError:
            continue
        if any(f"SLURM_JOB_ID={number}".encode() in environment.split(b"\0") for number in job_ids) and line:
            found.append(f"{entry.name} {line.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found
