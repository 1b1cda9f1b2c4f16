"""The batch script of a Slurm job, from a ClusterSpec and a command. Pure functions; cluster.slurm submits the script.

The script is short and meant to be read: what it asks of Slurm, the environment, and one command that starts Ray on the
nodes and then the job (cluster/slurm_node.py). It holds no secret, and a copy stays beside the job's log.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import modules
from cluster.errors import ClusterError
from cluster.spec import ClusterSpec, NodeGroup, check_spec, storage_variables

_TAKEDOWN_S = 30  # between the end of the command's grace and Slurm's SIGKILL
_TASKS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


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
    parts = [[*part, *_partition(spec)] for part in parts]
    header = [[*parts[0], *_job_options(spec, "%x-%j.log")], *parts[1:]]
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
        ClusterError: as render; or tasks that are not written like that, or not below N.
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
    header = [
        "--nodes=1",
        *_shape(group),
        *_partition(spec),
        f"--array={tasks}{at_once}",
        *_job_options(spec, "%x-%A_%a.log"),
    ]
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
    """The size of one node of a group, as sbatch options."""
    gpus = f"{group.gpu_kind}:{group.gpus}" if group.gpu_kind else str(group.gpus)
    shape = ["--ntasks-per-node=1", f"--cpus-per-task={group.cpus}", f"--mem={group.memory_gb}G"]
    return [*shape, f"--gpus-per-node={gpus}"] if group.gpus else shape


def _partition(spec: ClusterSpec) -> list[str]:
    """The options that every part of a heterogeneous job must repeat."""
    slurm = spec.slurm
    wanted = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "time": slurm.time}
    return [f"--{name}={value}" for name, value in wanted.items() if value]


def _job_options(spec: ClusterSpec, log: str) -> list[str]:
    """The options that only the first part of a job has."""
    return [
        f"--job-name={spec.name}",
        f'--output="{logs_folder(spec) / log}"',
        "--open-mode=append",  # a requeued job appends to its log
        "--requeue" if spec.slurm.requeue else "--no-requeue",
        f"--signal=B:TERM@{spec.timeouts.grace_s + _TAKEDOWN_S}",
    ]


def _join(spec: ClusterSpec, group: NodeGroup, nodes: int, where: str) -> str:
    """The command that starts Ray's workers on the nodes of a group."""
    words = [*modules.words("cluster.slurm_node", _python(spec)), "worker", *_node_options(spec, group)]
    if spec.environment.setup:
        words = ["bash", "-c", f"{spec.environment.setup}\nexec {shlex.join(words)}"]
    srun = ["srun", where, f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={group.cpus}"]
    srun += ["--export=ALL", "--kill-on-bad-exit=0", "--wait=0", *words]
    return shlex.join(srun)


def _node_options(spec: ClusterSpec, group: NodeGroup) -> list[str]:
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
    words = [*_node_options(spec, group), *(["--requeue"] if spec.slurm.requeue else []), *words]
    arguments = [shlex.join(words), *(f"--join={shlex.quote(join)}" for join in joins), f"-- {' '.join(command)}"]
    lines += ["exec " + " \\\n  ".join([f"{shlex.join(modules.words('cluster.slurm_node', python))} job", *arguments])]
    return "\n".join(lines) + "\n"


def _python(spec: ClusterSpec) -> str:
    return spec.environment.python or sys.executable


def logs_folder(spec: ClusterSpec) -> Path:
    """The folder for logs and scripts: slurm.logs, else the folder that the submission is made from."""
    return Path(spec.slurm.logs or ".").expanduser().absolute()
