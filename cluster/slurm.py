"""Jobs on Slurm: a ClusterSpec and a command -> a batch script, and the calls that submit, watch and cancel it.

The script is short and made to be read: what is asked of Slurm, the environment, and one command that starts Ray on the
nodes and the job on it (cluster/slurm_node.py). It holds no secret, and stays beside the job's log.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.spec import ClusterSpec, NodeGroup, check_spec, storage_variables

_TAKEDOWN_S = 30  # between the end of the command's grace and Slurm's SIGKILL
_PLANNED_BY = "# Waits for the plan, made by job "
_TASKS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class JobStatus:
    """What Slurm says of a job. Of a job of several parts (an array), the state of the part that is furthest back."""

    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ..."""
    nodes: str = ""
    """Names of its nodes, as Slurm writes them (n[1-4])."""
    reason: str = ""
    """Why it waits or ended ('' = no reason given)."""
    exit: int | None = None
    """Exit status of the command, once it ended."""
    restarts: int = 0
    """How often it went back into the queue."""
    tasks: dict[int, str] = field(default_factory=dict)
    """State of each task of an array, by its number."""


# -- the script --------------------------------------------------------------------------------------------------------


def render(spec: ClusterSpec, command: Sequence[str], *, joins_ray: bool = True) -> str:
    """The batch script of a job.

    Args:
        command: argv of the job; it runs on the first node.
        joins_ray: whether the command takes ray.address=: Ray is then started on all nodes, and the address is added.
    Raises:
        ClusterError: the spec asks for what Slurm, or this command, cannot have.
    """
    _check(spec)
    groups = spec.groups()
    if not joins_ray and len(groups) > 1:
        raise ClusterError(f"{', '.join(list(groups)[1:])}: this job runs on one node, the head; take out the others")
    shapes = [_shape(group) for group in groups.values()]
    if all(shape == shapes[0] for shape in shapes):
        nodes = sum(group.nodes for group in groups.values())
        parts = [[f"--nodes={nodes}", *shapes[0]]]
        joins = [_join(spec, spec.head, nodes - 1, "--relative=1")] if nodes > 1 else []
    else:
        parts = [[f"--nodes={group.nodes}", *_shape(group)] for group in groups.values()]
        joins = [
            _join(spec, group, group.nodes, f"--het-group={number}")
            for number, group in enumerate(groups.values())
            if number
        ]
    places = [[*part, *_place(spec)] for part in parts]
    header = [[*places[0], *_about(spec, "%x-%j.log")], *places[1:]]
    total = sum(group.nodes for group in groups.values())
    words = ["--ray", f"--nodes={total}"] if joins_ray else []
    title = f"on {total} node(s)" + (", one Ray over them" if joins_ray else "")
    return _script(spec, title, header, spec.head, words, [shlex.quote(word) for word in command], joins)


def render_array(spec: ClusterSpec, command: Sequence[str], tasks: str) -> str:
    """The batch script of a job array: task K of N = spec.slurm.array runs the command with part=K/N on its own node.

    Each task brings its own Ray. Its node is one of the role gpu if there are any, else decode, else head.

    Args:
        command: argv of a job that takes part=.
        tasks: which of the N, as Slurm writes it: "0-7" or "3,7-9".
    Raises:
        ClusterError: as render; tasks that are not, or not below N.
    """
    _check(spec)
    of = spec.slurm.array
    if of < 1:
        raise ClusterError("slurm.array=0: set it to the number of parts that the work is cut into")
    if not _TASKS.fullmatch(tasks):
        raise ClusterError(f"tasks={tasks}: must be numbers and ranges, such as 0-7 or 3,7-9")
    if max(int(number) for number in re.findall(r"\d+", tasks)) >= of:
        raise ClusterError(f"tasks={tasks}: slurm.array={of} has the tasks 0 to {of - 1}")
    group = next(group for group in (spec.gpu, spec.decode, spec.head) if group.nodes)
    at_once = f"%{spec.slurm.array_parallel}" if spec.slurm.array_parallel else ""
    header = ["--nodes=1", *_shape(group), *_place(spec), f"--array={tasks}{at_once}", *_about(spec, "%x-%A_%a.log")]
    words = [*(shlex.quote(word) for word in command), f"ray.cpus={group.cpus}", f'part="$SLURM_ARRAY_TASK_ID"/{of}']
    return _script(spec, f"as an array of {of} tasks, each on one node", [header], group, [], words)


def _check(spec: ClusterSpec) -> None:
    check_spec(spec)
    for role, group in spec.groups().items():
        if group.max_nodes > group.nodes:
            raise ClusterError(f"{role}.max_nodes={group.max_nodes}: Slurm jobs do not grow; set {role}.nodes")
    for name in ("partition", "account", "qos", "time"):
        if re.search(r"\s", getattr(spec.slurm, name)):
            raise ClusterError(f"slurm.{name}={getattr(spec.slurm, name)}: must have no spaces")
    if re.search(r"[%\"\\\n]", str(logs_folder(spec))):
        raise ClusterError(f"slurm.logs={logs_folder(spec)}: must have no quotes and no %, which Slurm replaces")


def _shape(group: NodeGroup) -> list[str]:
    """What one node of a group is, in sbatch's words."""
    gpus = f"{group.gpu_kind}:{group.gpus}" if group.gpu_kind else str(group.gpus)
    shape = ["--ntasks-per-node=1", f"--cpus-per-task={group.cpus}", f"--mem={group.memory_gb}G"]
    return [*shape, f"--gpus-per-node={gpus}"] if group.gpus else shape


def _place(spec: ClusterSpec) -> list[str]:
    """What every part of a heterogeneous job must say for itself."""
    slurm = spec.slurm
    wanted = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "time": slurm.time}
    return [f"--{name}={value}" for name, value in wanted.items() if value]


def _about(spec: ClusterSpec, log: str) -> list[str]:
    return [
        f"--job-name={spec.name}",
        f'--output="{logs_folder(spec) / log}"',
        "--open-mode=append",  # a job that was requeued goes on in its log
        "--requeue" if spec.slurm.requeue else "--no-requeue",
        f"--signal=B:TERM@{spec.timeouts.grace_s + _TAKEDOWN_S}",
    ]


def _join(spec: ClusterSpec, group: NodeGroup, nodes: int, where: str) -> str:
    """The command that starts Ray's workers on the nodes of a group."""
    words = [_python(spec), "-m", "cluster.slurm_node", "worker", *_node(spec, group)]
    if spec.environment.setup:
        words = ["bash", "-c", f"{spec.environment.setup}\nexec {shlex.join(words)}"]
    srun = ["srun", where, f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={group.cpus}"]
    srun += ["--export=ALL", "--kill-on-bad-exit=0", "--wait=0", *words]
    return shlex.join(srun)


def _node(spec: ClusterSpec, group: NodeGroup) -> list[str]:
    sizes = [f"--cpus={group.cpus}", f"--gpus={group.gpus}", f"--memory-gb={group.memory_gb}"]
    waits = [f"--ready-s={spec.timeouts.ready_s}", f"--grace-s={spec.timeouts.grace_s}"]
    return [*sizes, f"--tmp={spec.environment.tmp}", *waits]


def _script(
    spec: ClusterSpec,
    title: str,
    header: list[list[str]],
    group: NodeGroup,
    words: list[str],
    command: list[str],
    joins: Sequence[str] = (),
) -> str:
    """Args: header: options of each part of the job; words: of `cluster.slurm_node job`; command: quoted for bash."""
    lines = ["#!/bin/bash", f"# {spec.name}: {title}. Written by autogaze; `sbatch` takes it as it is."]
    for number, options in enumerate(header):
        lines += ["#SBATCH hetjob"] * (number > 0) + [f"#SBATCH {option}" for option in options]
    python = _python(spec)
    lines += ["", "# What every node finds."]
    lines += [spec.environment.setup] if spec.environment.setup else []
    lines += [f'export PATH={shlex.quote(os.path.dirname(python))}:"$PATH"'] if "/" in python else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in storage_variables(spec).items()]
    lines += [
        "",
        "# Starts what the job needs, runs it, and takes everything down again. SIGTERM (preemption, or the time",
    ]
    lines += ["# limit) is passed on; the job saves its state, goes back into the queue if it may, and goes on later."]
    words = [*_node(spec, group), *(["--requeue"] if spec.slurm.requeue else []), *words]
    told = [shlex.join(words), *(f"--join={shlex.quote(join)}" for join in joins), f"-- {' '.join(command)}"]
    lines += ["exec " + " \\\n  ".join([f"{shlex.quote(python)} -m cluster.slurm_node job", *told])]
    return "\n".join(lines) + "\n"


def _python(spec: ClusterSpec) -> str:
    return spec.environment.python or sys.executable


def logs_folder(spec: ClusterSpec) -> Path:
    """Where a submission from this folder has its logs, and keeps its scripts."""
    return Path(spec.slurm.logs or ".").expanduser().absolute()


# -- calls -------------------------------------------------------------------------------------------------------------


def submit(spec: ClusterSpec, command: Sequence[str], *, joins_ray: bool = True) -> str:
    """Submit a job; its id. The script is kept beside the log, as <name>-<id>.sh.

    Raises ClusterError, with Slurm's words, when there is no Slurm or it refuses.
    """
    return _sbatch(spec, render(spec, command, joins_ray=joins_ray))


def submit_array(spec: ClusterSpec, command: Sequence[str], tasks: str = "", *, plan: bool = True) -> str:
    """Submit a job array over the parts in `tasks` ('' = all); its id.

    With plan, a job of one node runs the command with part=plan first, so that the store is scanned once; the array
    waits for it, and is cancelled when it fails.
    """
    script = render_array(spec, command, tasks or f"0-{spec.slurm.array - 1}")
    if not plan:
        return _sbatch(spec, script)
    head = _alone(spec)
    first = _sbatch(head, render(head, [*command, f"ray.cpus={spec.head.cpus}", "part=plan"], joins_ray=False))
    try:
        script += f"{_PLANNED_BY}{first}\n"
        return _sbatch(spec, script, f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    except ClusterError:
        _cancel(first)
        raise


def _planner(spec: ClusterSpec, job_id: str) -> str:
    """The id of the job that plans for an array, or ''. The array's script says it."""
    script = logs_folder(spec) / f"{spec.name}-{re.split('[_+]', job_id)[0]}.sh"
    said = re.search(rf"^{_PLANNED_BY}(\d+)$", script.read_text(), re.MULTILINE) if script.exists() else None
    return said[1] if said else ""


def _alone(spec: ClusterSpec) -> ClusterSpec:
    """The spec of the job on the head alone that plans for an array."""
    values = vars(spec) | {"decode": NodeGroup(), "gpu": NodeGroup(), "name": f"{spec.name[:35]}-plan"}
    return ClusterSpec(**values)


def status(spec: ClusterSpec, job_id: str) -> JobStatus:
    """The state of a job. Raises ClusterError when Slurm does not know it (any more)."""
    _require_id(job_id)
    try:
        text = _slurm("scontrol", "show", "job", "--oneliner", job_id, SLURM_BITSTR_LEN="0")  # no "..." in long lists
    except ClusterError as error:
        return _accounted(spec, job_id, error)
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]
    waiting = ("PENDING", "CONFIGURING", "SUSPENDED", "RUNNING", "COMPLETING", "COMPLETED")
    # Of an array: what still waits, else what runs, else what went wrong, else the rest.
    order = {state: place for place, state in enumerate(waiting)}
    row = min(rows, key=lambda row: order.get(row["JobState"], len(waiting) - 1.5))
    if "ArrayJobId" not in row:
        row = rows[0]  # of a heterogeneous job the first part runs the command
    ended = row["JobState"] not in waiting[:-1]
    code, by_signal = (int(part) for part in row.get("ExitCode", "0:0").split(":"))
    return JobStatus(
        row["JobState"],
        "" if row.get("NodeList") in (None, "(null)") else row["NodeList"],
        "" if row.get("Reason") in (None, "None") else row["Reason"],
        (128 + by_signal if by_signal else code) if ended else None,
        int(row.get("Restarts", 0)),
        {
            number: row["JobState"]
            for row in rows
            if "ArrayTaskId" in row
            for number in _numbers(row["ArrayTaskId"].partition("%")[0])
        },
    )


def _numbers(tasks: str) -> list[int]:
    """The tasks that Slurm writes as 1,4-6 or, at regular distances, as 1-31:2."""
    numbers: list[int] = []
    for part in tasks.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers


def _accounted(spec: ClusterSpec, job_id: str, error: ClusterError) -> JobStatus:
    """What Slurm's accounting says of a job that its controller has forgotten."""
    form = ["--noheader", "--parsable2", "--allocations", "--format=State,NodeList,ExitCode"]
    try:
        rows = _slurm("sacct", "--jobs", job_id, *form).splitlines()
    except ClusterError:
        rows = []
    if not rows:
        kept = f"; its log may be {found[-1]}" if (found := logs(spec, job_id)) else ""
        raise ClusterError(f"job {job_id}: Slurm does not know it, or no longer{kept} ({error})") from error
    state, nodes, code = rows[0].split("|")
    return JobStatus(state.split()[0], nodes, "", int(code.split(":")[0]))


def logs(spec: ClusterSpec, job_id: str) -> list[Path]:
    """The log of a job, or of an array's plan and of each of its tasks, that exists already."""
    _require_id(job_id)
    folder = logs_folder(spec)
    found = [*folder.glob(f"{spec.name}-{job_id}.log"), *folder.glob(f"{spec.name}-{job_id}_*.log")]
    found.sort(key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    plan = [*folder.glob(f"{_alone(spec).name}-{planner}.log")] if (planner := _planner(spec, job_id)) else []
    return plan + found


def cancel(spec: ClusterSpec, job_id: str) -> None:
    """End a job: it is told, has Slurm's KillWait to take down what it started, and does not come back.

    With an array, the job that plans for it.
    """
    _require_id(job_id)
    planner = "" if "_" in job_id else _planner(spec, job_id)
    _cancel(job_id)
    if planner:
        with suppress(ClusterError):  # Slurm has forgotten it: it ended long ago
            _cancel(planner)


def _cancel(job_id: str) -> None:
    _slurm("scancel", "--verbose", job_id)  # without, it is silent about a job that is not there


def _require_id(job_id: str) -> None:
    if not re.fullmatch(r"\d+([_+]\d+)?", job_id):
        raise ClusterError(f"job {job_id}: a job's id is a number, such as 123 or, of an array's task, 123_4")


def _sbatch(spec: ClusterSpec, script: str, *options: str) -> str:
    folder = logs_folder(spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{spec.name}-", suffix=".sh", dir=folder)
    except OSError as error:
        raise ClusterError(f"slurm.logs={folder}: {error.strerror}") from error
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(script)
        _refuse_impossible(name)
        job_id = _slurm("sbatch", "--parsable", *options, name).strip().partition(";")[0]
        os.replace(name, folder / f"{spec.name}-{job_id}.sh")
    finally:
        Path(name).unlink(missing_ok=True)
    return job_id


def _refuse_impossible(script: str) -> None:
    """Raise ClusterError for a job that no nodes could ever run; many a Slurm takes it, and lets it wait for ever.

    Slurm says the same of a job whose nodes are down just now, and that one may wait. Of anything else that is wrong
    the submission itself is the judge.
    """
    try:
        _slurm("sbatch", "--test-only", script)
    except ClusterError as error:
        if "configuration is not available" in str(error):
            away = re.findall("down|drain|fail|maint|boot|power|unk", _slurm("sinfo", "--noheader", "--format=%T"))
            if not away:
                raise ClusterError(f"{error}; compare the groups with `sinfo -N -l`") from error


def _slurm(*words: str, **variables: str) -> str:
    """What a Slurm command prints, with these in its environment. Raises ClusterError with its words, in one line."""
    try:
        done = subprocess.run(
            words, env=os.environ | variables, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not found; run this where Slurm's commands are, on a login node") from error
    wrong = [line for line in done.stderr.splitlines() if f"{words[0]}: error:" in line]
    if done.returncode or wrong:
        said = " ".join(" ".join(wrong or [done.stderr]).split()) or f"exit status {done.returncode}"
        raise ClusterError(said if said.startswith(f"{words[0]}:") else f"{words[0]}: {said}")
    return done.stdout
