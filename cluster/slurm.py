"""Jobs on Slurm: submit a ClusterSpec and a command, look at the job, read its log, end it.

cluster/slurm_script.py writes the batch script; a copy of it stays beside the job's log.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.errors import ClusterError
from cluster.slurm_script import logs_folder, render, render_array
from cluster.spec import ClusterSpec, NodeGroup

_PLANNED_BY = "# Waits for the plan, made by job "


@dataclass(frozen=True)
class JobStatus:
    """A job as Slurm reports it. For an array, the state is that of the task that is furthest from done."""

    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ..."""
    nodes: str = ""
    """Names of its nodes, as Slurm writes them (n[1-4])."""
    reason: str = ""
    """Why it waits or ended ('' = no reason given)."""
    exit: int | None = None
    """Exit status of the command, once it ended."""
    restarts: int = 0
    """How often it was put back into the queue."""
    tasks: dict[int, str] = field(default_factory=dict)
    """State of each task of an array, by its number."""


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
    head = _planner_spec(spec)
    first = _sbatch(head, render(head, [*command, f"ray.cpus={spec.head.cpus}", "part=plan"], joins_ray=False))
    try:
        script += f"{_PLANNED_BY}{first}\n"
        return _sbatch(spec, script, f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    except ClusterError:
        _cancel(first)
        raise


def planner(spec: ClusterSpec, job_id: str) -> str:
    """The id of the job that plans for an array, read from the array's script; '' if there is none."""
    script = logs_folder(spec) / f"{spec.name}-{re.split('[_+]', job_id)[0]}.sh"
    text = script.read_text(encoding="utf-8", errors="replace") if script.exists() else ""
    line = re.search(rf"^{_PLANNED_BY}(\d+)$", text, re.MULTILINE)
    return line[1] if line else ""


def last_words(spec: ClusterSpec, job_id: str, planned: str) -> str:
    """The last line that the job which plans for an array has printed: where it failed, its reason. '' = nothing.

    planned: id of the array. job_id: of the job that plans.
    """
    files = [file for file in logs(spec, planned) if file.stem.endswith(f"-plan-{job_id}")]
    lines = files[0].read_text(errors="replace").split("\n") if files else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _planner_spec(spec: ClusterSpec) -> ClusterSpec:
    """The spec of the job on the head alone that plans for an array."""
    return replace(spec, decode=NodeGroup(), gpu=NodeGroup(), name=f"{spec.name[:35]}-plan")


def status(spec: ClusterSpec, job_id: str) -> JobStatus:
    """The state of a job. Raises ClusterError if Slurm does not know it, or has forgotten it."""
    _require_id(job_id)
    try:
        text = _slurm("scontrol", "show", "job", "--oneliner", job_id, SLURM_BITSTR_LEN="0")  # no "..." in long lists
    except ClusterError as error:
        return _accounted(spec, job_id, error)
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]
    waiting = ("PENDING", "CONFIGURING", "SUSPENDED", "RUNNING", "COMPLETING", "COMPLETED")
    # For an array: a task that waits, else one that runs, else one that failed, else any.
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
    """The tasks of a list such as 1,4-6 or 1-31:2 (every second one)."""
    numbers: list[int] = []
    for part in tasks.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers


def _accounted(spec: ClusterSpec, job_id: str, error: ClusterError) -> JobStatus:
    """The state of a job that Slurm's controller has forgotten, from its accounting."""
    form = ["--noheader", "--parsable2", "--allocations", "--format=State,NodeList,ExitCode"]
    try:
        rows = _slurm("sacct", "--jobs", job_id, *form).splitlines()
    except ClusterError:
        rows = []
    if not rows:
        kept = f"; its log may be {files[-1]}" if (files := logs(spec, job_id)) else ""
        raise ClusterError(f"job {job_id}: Slurm does not know it, or no longer{kept} ({error})") from error
    state, nodes, code = rows[0].split("|")
    return JobStatus(state.split()[0], nodes, "", int(code.split(":")[0]))


def logs(spec: ClusterSpec, job_id: str) -> list[Path]:
    """The logs that exist: of a job, or of an array's plan and of each of its tasks."""
    _require_id(job_id)
    folder = logs_folder(spec)
    files = [*folder.glob(f"{spec.name}-{job_id}.log"), *folder.glob(f"{spec.name}-{job_id}_*.log")]
    files.sort(key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    plan = [*folder.glob(f"{_planner_spec(spec).name}-{first}.log")] if (first := planner(spec, job_id)) else []
    return plan + files


def cancel(spec: ClusterSpec, job_id: str) -> None:
    """End a job for good: it gets SIGTERM and Slurm's KillWait to stop what it started.

    Ending an array also ends the job that plans for it.
    """
    _require_id(job_id)
    first = "" if "_" in job_id else planner(spec, job_id)
    _cancel(job_id)
    if first:
        with suppress(ClusterError):  # Slurm has forgotten it: it ended long ago
            _cancel(first)


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
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as out:  # a path may be any bytes
            out.write(script)
        _refuse_impossible(name)
        job_id = _slurm("sbatch", "--parsable", *options, name).strip().partition(";")[0]
        os.replace(name, folder / f"{spec.name}-{job_id}.sh")
    finally:
        Path(name).unlink(missing_ok=True)
    return job_id


def _refuse_impossible(script: str) -> None:
    """Raise ClusterError for a job that no nodes could ever run: many Slurms accept it and let it wait for ever.

    Slurm's answer is the same where the nodes are only down for now; such a job may wait. Any other mistake shows when
    the job is submitted.
    """
    try:
        _slurm("sbatch", "--test-only", script)
    except ClusterError as error:
        if "configuration is not available" in str(error):
            away = re.findall("down|drain|fail|maint|boot|power|unk", _slurm("sinfo", "--noheader", "--format=%T"))
            if not away:
                raise ClusterError(f"{error}; compare the groups with `sinfo -N -l`") from error


def _slurm(*words: str, **variables: str) -> str:
    """Output of a Slurm command, run with these variables. Raises ClusterError, its message in one line."""
    try:
        done = subprocess.run(
            words, env=os.environ | variables, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not found; run this where Slurm's commands are, on a login node") from error
    wrong = [line for line in done.stderr.splitlines() if f"{words[0]}: error:" in line]
    if done.returncode or wrong:
        message = " ".join(" ".join(wrong or [done.stderr]).split()) or f"exit status {done.returncode}"
        raise ClusterError(message if message.startswith(f"{words[0]}:") else f"{words[0]}: {message}")
    return done.stdout
