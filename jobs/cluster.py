"""`autogaze cluster render|preflight|status|logs|down FILE`: look at what a cluster's file says, and at what it runs.

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

from cluster import ClusterError, kuberay, slurm
from cluster.local import RayConfig, require_listening, running
from cluster.preflight import Check, FailedNode, Probes, alive_nodes, check_cluster, each, probing
from cluster.spec import ClusterSpec, check_spec, storage_variables
from jobs import submit
from pipelines.errors import PipelineError
from pipelines.inspection import preflight as storage


@dataclass
class RenderConfig(ClusterSpec):
    """Print what a submission would send: an sbatch script, a RayJob manifest, or the command."""

    job: str = field(default="", metadata={"help": "the job, quoted: job='preprocess input=... output=...'"})


@dataclass
class PreflightConfig(ClusterSpec):
    """Ask every node of a running cluster whether a job could work there. Needs no file on a laptop."""

    input: str = field(default="", metadata={"help": "as preprocess takes it: one video of it is decoded everywhere"})
    output: str = field(default="", metadata={"help": "folder or s3:// prefix that every node must write, read, clear"})
    decoder: str = field(default="pyav", metadata={"help": "what decodes the video: pyav, decord or torchcodec"})
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass
class AskConfig(ClusterSpec):
    """Ask the launcher about a job that was submitted."""

    id: str = field(default="", metadata={"help": "of the job, as submit printed it (KubeRay: '' = the spec's name)"})


def render(config: RenderConfig, console: Console) -> int:
    """Print the script or manifest of a job; the exit status."""
    if not config.job:
        raise PipelineError("job= is missing: autogaze cluster render FILE job='preprocess input=... output=...'")
    try:
        words = shlex.split(config.job)
    except ValueError as error:
        raise PipelineError(f"job={config.job}: {error}") from error
    from jobs.cli import parse_job  # here, not above: it imports this module by name

    job = parse_job(words)
    sys.stdout.write(submit.rendered(config, job.name, job.config))
    return 0


def preflight(config: PreflightConfig, console: Console) -> int:
    """Print one row per check; 1 if any is red."""
    check_spec(config)
    # A launcher says ray.address, as to every job; a person with a file of backend local says address.
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
    """Every node writes, reads and removes an object of its own, and reads one that another wrote."""
    written = probes.ask(storage.write_probe, output)
    wrong = {node: told.why for node, told in written.items() if isinstance(told, FailedNode)}
    urls = {node: url for node, url in written.items() if node not in wrong}
    if len(urls) > 1:
        # In a ring, so that each reads what it did not write.
        others = dict(zip(urls, [*list(urls.values())[1:], next(iter(urls.values()))], strict=True))
        for node, told in probes.ask_each(storage.read_probe, {n: (url,) for n, url in others.items()}).items():
            if isinstance(told, FailedNode):
                wrong[node] = f"does not see what another node wrote there ({told.why})"
    for node, told in probes.ask_each(storage.remove_probe, {n: (url,) for n, url in urls.items()}).items():
        if isinstance(told, FailedNode):
            wrong.setdefault(node, told.why)
    fix = "output must be one place that all nodes may write: s3://, or a folder that all of them mount"
    return Check("output", not wrong, each(wrong) or f"{len(urls)} node(s) wrote, read, removed", fix if wrong else "")


def _check_input(config: PreflightConfig, probes: Probes) -> list[Check]:
    """One node finds a video that decodes; then all decode it, to the same frame."""
    first = probes.nodes[0].name
    sample = probes.ask_each(storage.find_sample, {first: (config.input, config.decoder)})[first]
    if isinstance(sample, FailedNode):
        fix = "check input=, and that this node may read it; a long listing may take longer: name a folder of it"
        return [Check("input", False, f"{first}: {sample.why}", fix)]
    told = probes.ask(storage.decode_sample, sample, config.decoder)
    wrong = {node: answer.why for node, answer in told.items() if isinstance(answer, FailedNode)}
    frames = {node: answer for node, answer in told.items() if node not in wrong}
    for node, frame in frames.items():
        if frame != frames.get(first, frame):
            wrong[node] = f"decodes it to another picture than {first}"
    fix = "every node must read the input by the same URL, with the same decoder" if wrong else ""
    return [Check("input", not wrong, each(wrong) or f"{len(frames)} node(s) decoded {sample.uri}", fix)]


def status(config: AskConfig, console: Console) -> int:
    """Print where the job is; the exit status."""
    check_spec(config)
    text = _slurm_status(config) if config.backend == "slurm" else kuberay.status(_kubernetes(config), config.id)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def _slurm_status(config: AskConfig) -> str:
    told = slurm.status(config, _id(config))
    words = [told.state]
    words += [f"on {told.nodes}"] if told.nodes else []
    words += [f"({told.reason})"] if told.reason else []
    words += [f"exit status {told.exit}"] if told.exit is not None else []
    words += [f"{told.restarts} time(s) back in the queue"] if told.restarts else []
    if told.tasks:
        counts = Counter(told.tasks.values())
        words.append("tasks: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return f"{config.id}: {', '.join(words)}"


def logs(config: AskConfig, console: Console) -> int:
    """Print what the job has printed; the exit status."""
    check_spec(config)
    if config.backend != "slurm":
        sys.stdout.write(kuberay.logs(_kubernetes(config), config.id))
        return 0
    files = slurm.logs(config, _id(config))
    if not files:
        raise ClusterError(
            f"job {config.id}: no log yet in {slurm.logs_folder(config)}; `autogaze cluster status` says how far it "
            "is. Of one that was submitted in another folder, ask there, or set slurm.logs"
        )
    for file in files:
        if len(files) > 1:
            sys.stdout.write(f"==> {file} <==\n")
        sys.stdout.write(file.read_text(errors="replace"))
    return 0


def down(config: AskConfig, console: Console) -> int:
    """End the job and its cluster; the exit status."""
    check_spec(config)
    if config.backend == "slurm":
        slurm.cancel(config, _id(config))
    else:
        kuberay.cancel(_kubernetes(config), config.id)
    console.print(f"{config.id or config.name}: ended; the same submission goes on where it stopped", highlight=False)
    return 0


def _id(config: AskConfig) -> str:
    if not config.id:
        raise ClusterError("which job? give its id, as submit printed it: autogaze cluster status FILE ID")
    return config.id


def _kubernetes(config: AskConfig) -> AskConfig:
    if config.backend != "kuberay":
        raise ClusterError("backend=local: its jobs run in the terminal that submitted them; there is nothing to ask")
    return config
