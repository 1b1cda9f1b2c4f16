"""`autogaze submit JOB KEY=VALUE... cluster=FILE`: the same job, run where a file says: here, on Slurm or in pods."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import ClusterError, kuberay, slurm
from cluster.spec import ClusterSpec, check_spec, storage_variables
from jobs import config as configs


def submit(file: str, name: str, config: Any, run: Callable[[Any, Console], Any], console: Console) -> int:
    """Run a job as the cluster's file says; the exit status: of the job if it runs here, else of the submission.

    Args:
        file: YAML of a ClusterSpec.
        name: of the job, as typed.
        config: its config, checked.
        run: what runs it in this process.
    Raises:
        PipelineError, ClusterError: the file cannot be used, or the launcher refuses.
    """
    spec = load_spec(file)
    if spec.backend != "kuberay":  # pods have an environment of their own, and kubectl may need another profile
        os.environ.update(storage_variables(spec))
    if spec.backend == "local":
        _join(config, spec.address)
        result = run(config, console)
        return result if isinstance(result, int) else 0
    if spec.backend == "kuberay":
        _to_kuberay(spec, name, config)
        job = spec.name
    elif spec.slurm.array:
        job = _to_array(spec, name, config)
        if not job:
            console.print(f"nothing to do: all shards of {config.output} are committed", highlight=False, markup=False)
            return 0
    else:
        job = slurm.submit(spec, command(spec, name, config), joins_ray=joins_ray(config))
    for line in (
        f"submitted to {spec.backend}: {job}",
        f"where it is:      autogaze cluster status {file} {job}",
        f"what it printed:  autogaze cluster logs {file} {job}",
        f"to end it:        autogaze cluster down {file} {job}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def load_spec(file: str) -> ClusterSpec:
    """A cluster's file, checked. Raises PipelineError, ClusterError in one line."""
    spec = configs.load(ClusterSpec, [], file)
    check_spec(spec)
    return spec


def rendered(spec: ClusterSpec, name: str, config: Any) -> str:
    """What a submission sends to the launcher. Raises ClusterError."""
    check_spec(spec)
    if spec.backend == "kuberay":
        return kuberay.to_yaml(_manifest(spec, name, config))
    if spec.backend == "slurm":
        if spec.slurm.array:
            _require_parts(name, config)
            return slurm.render_array(spec, command(spec, name, config), f"0-{spec.slurm.array - 1}")
        return slurm.render(spec, command(spec, name, config), joins_ray=joins_ray(config))
    _join(config, spec.address)
    return shlex.join(["autogaze", *name.split(), *settings(config)]) + "\n"


def command(spec: ClusterSpec, name: str, config: Any) -> list[str]:
    """The words that run the job on the cluster: every key that differs from its default is spelled out."""
    if spec.backend == "kuberay":  # Slurm's script adds the address that it learns
        _join(config, "auto")
    if spec.environment.python:
        program = [spec.environment.python, "-m", "jobs.cli"]
    else:  # an image has its own; Slurm's nodes share this one
        program = ["autogaze"] if spec.backend == "kuberay" else [sys.executable, "-m", "jobs.cli"]
    return [*program, *name.split(), *settings(config)]


def settings(config: Any) -> Iterator[str]:
    """KEY=VALUE for every key that differs from its default; jobs.config.load makes the same config of them."""
    for key in configs.keys(type(config)):
        value = attrgetter(key.name)(config)
        if value != key.default:
            text = (
                {None: "null", True: "true", False: "false"}.get(value) if value is None or key.type is bool else value
            )
            yield f"{key.name}={text}"


def joins_ray(config: Any) -> bool:
    """Whether the job works on a Ray cluster; some run in one process, as training by one rank does."""
    one_rank = hasattr(config, "scale") and config.scale.max_workers == 1
    actors = hasattr(config, "rollouts") and config.rollouts.actors > 0
    return hasattr(config, "ray") and (actors or not one_rank)


def _join(config: Any, address: str) -> None:
    """Let a job that works on Ray join the one at an address, unless it was told another."""
    if joins_ray(config) and not config.ray.address:
        config.ray.address = address


def _manifest(spec: ClusterSpec, name: str, config: Any) -> dict[str, Any]:
    return kuberay.render(spec, command(spec, name, config), joins_ray=joins_ray(config))


def _to_kuberay(spec: ClusterSpec, name: str, config: Any) -> None:
    manifest = _manifest(spec, name, config)
    if shutil.which("kubectl") is None:
        file = Path(f"{spec.name}.rayjob.yaml").absolute()
        file.write_text(kuberay.to_yaml(manifest), encoding="utf-8")
        raise ClusterError(
            f"kubectl is not installed here, nothing was submitted; the manifest is {file}: "
            f"`kubectl create -f {file.name}` submits it from where kubectl is"
        )
    kuberay.submit(spec, manifest)


def _to_array(spec: ClusterSpec, name: str, config: Any) -> str:
    """Submit the parts that have shards to make; the array's id, or '' when there are none."""
    _require_parts(name, config)
    from pipelines.preprocess import job as preprocess_job
    from pipelines.storage import (
        store,
        urls,  # here, not above: it imports torch
    )

    planned = store.exists(urls.join(urls.normalise(config.output), "dataset.json"))
    if config.retry or not planned:  # which shards hold failures, each part sees for itself
        parts = list(range(spec.slurm.array))
    else:
        parts = preprocess_job.missing_parts(config, spec.slurm.array)
    if not parts:
        return ""
    return slurm.submit_array(spec, command(spec, name, config), ",".join(map(str, parts)), plan=not planned)


def _require_parts(name: str, config: Any) -> None:
    if name != "preprocess":
        raise ClusterError(f"slurm.array: only preprocess can be cut into parts, not {name}; set slurm.array=0")
    if config.part:
        raise ClusterError(f"part={config.part}: the array says which task makes which part; leave it out")
