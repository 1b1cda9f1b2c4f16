"""`autogaze cluster render|preflight|status|logs|down FILE`: check a cluster, and follow the jobs submitted to it.

FILE is the YAML that `autogaze submit ... cluster=FILE` takes (docs/launch.md lists its keys).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import kuberay, slurm
from cluster.errors import ClusterError
from cluster.local import RayConfig, require_listening, running
from cluster.preflight import Check, check_cluster, each
from cluster.probes import FailedNode, Probes, alive_nodes, probing
from cluster.slurm_script import logs_folder
from cluster.spec import ClusterSpec, check_spec, storage_variables
from jobs import submit
from jobs.terminal import write_exactly
from pipelines.errors import PipelineError
from pipelines.inspection import preflight as storage


@dataclass
class RenderConfig(ClusterSpec):
    """Print what a submission would send: an sbatch script, a RayJob manifest, or the command."""

    job: str = field(default="", metadata={"help": "the job, quoted: job='preprocess input=... output=...'"})


@dataclass
class PreflightConfig(ClusterSpec):
    """Check on every node of a running cluster that a job could run there. Needs no file on a laptop."""

    input: str = field(default="", metadata={"help": "as preprocess takes it: one video of it is decoded everywhere"})
    output: str = field(default="", metadata={"help": "folder or s3:// prefix that every node must write, read, clear"})
    decoder: str = field(default="pyav", metadata={"help": "what decodes the video: pyav, decord or torchcodec"})
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass
class SubmittedConfig(ClusterSpec):
    """Look at a job that was submitted, or end it."""

    id: str = field(default="", metadata={"help": "of the job, as submit printed it (KubeRay: '' = the spec's name)"})


def render(config: RenderConfig, console: Console) -> int:
    """Print the script or manifest of a job; the exit status."""
    if not config.job:
        raise PipelineError("job= is missing: autogaze cluster render FILE job='preprocess input=... output=...'")
    try:
        words = shlex.split(config.job)
    except ValueError as error:
        raise PipelineError(f"job={config.job}: {error}") from error
    from jobs.cli import read_command  # here, not above: it imports this module by name

    command = read_command(words)
    write_exactly(submit.rendered(config, command.name, command.config))
    return 0


def preflight(config: PreflightConfig, console: Console) -> int:
    """Print one row per check; 1 if any is red."""
    check_spec(config)
    # Launchers set ray.address, as for every job; a file of backend local has address.
    address = config.ray.address or config.address or os.environ.get("RAY_ADDRESS", "")
    if not address and config.backend != "local":
        raise ClusterError(
            f"backend={config.backend}: its Ray starts with a job, so let preflight be one: "
            "autogaze submit cluster preflight FILE ... cluster=FILE"
        )
    require_listening(address)
    os.environ.update(storage_variables(config))
    with running(replace(config.ray, address=address)), probing(alive_nodes()) as probes:
        checks = check_cluster(config, probes)
        if config.output:
            checks.append(_check_output(config.output, probes))
        if config.input:
            checks += _check_input(config, probes)
    table = Table(title="preflight", title_justify="left")
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        colour = "green" if check.ok else "red"
        mark = "ok" if check.ok else "BAD"
        table.add_row(check.name, f"[{colour}]{mark}[/]", f"[{colour}]{escape(check.found)}[/]", escape(check.fix))
    console.print(table)
    bad = [check.name for check in checks if not check.ok]
    console.print(f"not ready: {', '.join(bad)}" if bad else "ready", style="red" if bad else "green", highlight=False)
    return 1 if bad else 0


def _check_output(output: str, probes: Probes) -> Check:
    """Every node writes and removes an object, and reads one that another node wrote."""
    written = probes.call(storage.write_probe, output)
    wrong = {node: answer.why for node, answer in written.items() if isinstance(answer, FailedNode)}
    urls = {node: url for node, url in written.items() if node not in wrong}
    if len(urls) > 1:
        # In a ring: each reads what the next one wrote.
        others = dict(zip(urls, [*list(urls.values())[1:], next(iter(urls.values()))], strict=True))
        for node, answer in probes.call_each(storage.read_probe, {n: (url,) for n, url in others.items()}).items():
            if isinstance(answer, FailedNode):
                wrong[node] = f"does not see what another node wrote there ({answer.why})"
    for node, answer in probes.call_each(storage.remove_probe, {n: (url,) for n, url in urls.items()}).items():
        if isinstance(answer, FailedNode):
            wrong.setdefault(node, answer.why)
    fix = "output must be one place that all nodes may write: s3://, or a folder that all of them mount"
    return Check("output", not wrong, each(wrong) or f"{len(urls)} node(s) wrote, read, removed", fix if wrong else "")


def _check_input(config: PreflightConfig, probes: Probes) -> list[Check]:
    """One node finds a video that decodes; then every node decodes it, and all frames must be equal."""
    first = probes.nodes[0].name
    sample = probes.call_each(storage.find_sample, {first: (config.input, config.decoder)})[first]
    if isinstance(sample, FailedNode):
        fix = "check input=, and that this node may read it; a long listing may take longer: name a folder of it"
        return [Check("input", False, f"{first}: {sample.why}", fix)]
    answers = probes.call(storage.decode_sample, sample, config.decoder)
    wrong = {node: answer.why for node, answer in answers.items() if isinstance(answer, FailedNode)}
    frames = {node: answer for node, answer in answers.items() if node not in wrong}
    for node, frame in frames.items():
        if frame != frames.get(first, frame):
            wrong[node] = f"decodes it to another picture than {first}"
    fix = "every node must read the input by the same URL, with the same decoder" if wrong else ""
    return [Check("input", not wrong, each(wrong) or f"{len(frames)} node(s) decoded {sample.uri}", fix)]


def status(config: SubmittedConfig, console: Console) -> int:
    """Print where the job is; the exit status."""
    check_spec(config)
    text = _slurm_status(config) if config.backend == "slurm" else kuberay.status(_kubernetes(config), config.id)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def _slurm_status(config: SubmittedConfig) -> str:
    job = slurm.status(config, _id(config))
    words = [job.state]
    words += [f"on {job.nodes}"] if job.nodes else []
    words += [f"({job.reason})"] if job.reason else []
    words += [f"exit status {job.exit}"] if job.exit is not None else []
    words += [f"{job.restarts} time(s) back in the queue"] if job.restarts else []
    if job.tasks:
        counts = Counter(job.tasks.values())
        words.append("tasks: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return f"{config.id}: {', '.join(words)}{_planning(config)}"


def _planning(config: SubmittedConfig) -> str:
    """A line about the job that plans for an array, unless it is done; with its reason where it failed."""
    first = "" if "_" in config.id else slurm.planner(config, config.id)
    if not first:
        return ""
    try:
        state = slurm.status(config, first).state
    except ClusterError:
        state = "ended"  # Slurm forgets a job after minutes
    if state == "COMPLETED":
        return ""
    return f"\nits plan, job {first}: {state}; last words: {slurm.last_words(config, first, config.id) or 'none yet'}"


def logs(config: SubmittedConfig, console: Console) -> int:
    """Print what the job has printed; the exit status."""
    check_spec(config)
    if config.backend != "slurm":
        sys.stdout.write(kuberay.logs(_kubernetes(config), config.id))
        return 0
    files = slurm.logs(config, _id(config))
    if not files:
        raise ClusterError(
            f"job {config.id}: no log yet in {logs_folder(config)}; `autogaze cluster status` shows its state. "
            "If it was submitted from another folder, run this there, or set slurm.logs"
        )
    for file in files:
        if len(files) > 1:
            sys.stdout.write(f"==> {file} <==\n")
        sys.stdout.write(file.read_text(errors="replace"))
    return 0


def down(config: SubmittedConfig, console: Console) -> int:
    """End the job and its cluster; the exit status."""
    check_spec(config)
    if config.backend == "slurm":
        slurm.cancel(config, _id(config))
    else:
        kuberay.cancel(_kubernetes(config), config.id)
    console.print(f"{config.id or config.name}: ended; the same submission goes on where it stopped", highlight=False)
    return 0


def _id(config: SubmittedConfig) -> str:
    if not config.id:
        raise ClusterError("which job? give its id, as submit printed it: autogaze cluster status FILE ID")
    return config.id


def _kubernetes(config: SubmittedConfig) -> SubmittedConfig:
    if config.backend != "kuberay":
        raise ClusterError("backend=local: its jobs run in the terminal that submitted them; there is nothing to ask")
    return config
