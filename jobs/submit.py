"""`autogaze submit JOB KEY=VALUE... cluster=FILE`: run a job where a file says: here, on Slurm or in pods."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import kuberay, modules, slurm, slurm_script
from cluster.errors import ClusterError
from cluster.spec import ClusterSpec, check_spec, storage_variables
from jobs import config as configs
from pipelines.errors import PipelineError
from pipelines.schema import settings_of
from pipelines.storage.location import places_in

_MAKE_SHARDS = ("preprocess", "encode")
_WORDS = {None: "null", True: "true", False: "false"}


def submit(file: str, name: str, config: Any, run: Callable[[Any, Console], int], console: Console) -> int:
    """Run a job where the cluster's file says. Returns the exit status: of a job that runs here, else of submitting.

    Args:
        file: YAML of a ClusterSpec.
        name: of the job, as on the command line.
        config: its config, checked.
        run: runs it in this process, for backend local.
    Raises:
        PipelineError, ClusterError: the file cannot be used, or the launcher refuses.
    """
    spec = load_spec(file)
    _require_fit(spec, name, config)
    if spec.backend != "kuberay":  # pods have an environment of their own, and kubectl may need another profile
        os.environ.update(storage_variables(spec))
    if spec.backend == "local":
        _join(config, spec.address)
        return run(config, console)
    if spec.backend == "kuberay":
        _submit_to_kuberay(spec, name, config)
        job = spec.name
    elif spec.slurm.array:
        job = _submit_array(spec, name, config)
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
    """Read and check a cluster's file. Raises PipelineError, ClusterError in one line."""
    spec = configs.load(ClusterSpec, [], file)
    check_spec(spec)
    return spec


def rendered(spec: ClusterSpec, name: str, config: Any) -> str:
    """What a submission would send to the launcher. Raises ClusterError."""
    check_spec(spec)
    _require_fit(spec, name, config)
    if spec.backend == "kuberay":
        return kuberay.to_yaml(_manifest(spec, name, config))
    if spec.backend == "slurm":
        if spec.slurm.array:
            _require_parts(name, config)
            return slurm_script.render_array(spec, command(spec, name, config), f"0-{spec.slurm.array - 1}")
        return slurm_script.render(spec, command(spec, name, config), joins_ray=joins_ray(config))
    _join(config, spec.address)
    return shlex.join(["autogaze", *name.split(), *changed_settings(config)]) + "\n"


def command(spec: ClusterSpec, name: str, config: Any) -> list[str]:
    """The command that runs the job on the cluster; it carries every key that differs from its default."""
    if spec.backend == "kuberay":  # Slurm's script adds the address, which it learns on its nodes
        _join(config, "auto")
    if spec.backend == "kuberay" and not spec.environment.python:
        program = ["autogaze"]  # an image has its own
    else:  # Slurm's nodes share the submitter's
        program = modules.words("jobs.cli", spec.environment.python)
    return [*program, *name.split(), *changed_settings(config)]


def changed_settings(config: Any) -> Iterator[str]:
    """KEY=VALUE for every key that differs from its default; jobs.config.load turns them into an equal config."""
    for key, default in zip(settings_of(config), settings_of(type(config)()), strict=True):
        if key.value != default.value:
            is_word = key.value is None or key.type is bool
            yield f"{key.name}={_WORDS[key.value] if is_word else key.value}"


def joins_ray(config: Any) -> bool:
    """Whether the job uses a Ray cluster. Some run in one process, such as training with one rank."""
    return hasattr(config, "ray") and getattr(config, "needs_ray", True)


def _join(config: Any, address: str) -> None:
    """Set the Ray that a job joins, where it uses Ray and its config names no other."""
    if joins_ray(config) and not config.ray.address:
        config.ray.address = address


def _manifest(spec: ClusterSpec, name: str, config: Any) -> dict[str, Any]:
    return kuberay.render(spec, command(spec, name, config), joins_ray=joins_ray(config))


def _submit_to_kuberay(spec: ClusterSpec, name: str, config: Any) -> None:
    manifest = _manifest(spec, name, config)
    if shutil.which("kubectl") is None:
        file = Path(f"{spec.name}.rayjob.yaml").absolute()
        file.write_text(kuberay.to_yaml(manifest), encoding="utf-8")
        raise ClusterError(
            f"kubectl is not installed here, nothing was submitted; the manifest is {file}: "
            f"`kubectl create -f {file.name}` submits it from where kubectl is"
        )
    kuberay.submit(spec, manifest)


def _submit_array(spec: ClusterSpec, name: str, config: Any) -> str:
    """Submit the parts that still have shards to make; the array's id, or '' if there are none."""
    _require_parts(name, config)
    from pipelines.storage import store
    from pipelines.storage.location import Location

    planned = store.exists(Location(config.output) / "dataset.json")
    if config.retry or not planned:  # each part finds out for itself which of its shards hold failures
        parts = list(range(spec.slurm.array))
    else:
        parts = _missing_parts(name)(config, spec.slurm.array)
    if not parts:
        return ""
    return slurm.submit_array(spec, command(spec, name, config), ",".join(map(str, parts)), plan=not planned)


def _missing_parts(name: str) -> Callable[[Any, int], list[int]]:
    """Of a job that makes shards, what says which parts have some to make; imported here, since it imports torch."""
    if name == "encode":
        from pipelines.encode.job import missing_encode_parts

        return missing_encode_parts
    from pipelines.preprocess.job import missing_parts

    return missing_parts


def _share(name: str) -> Callable[[Any, int, int, int], object]:
    """Of a job that makes shards, what shares CPUs, GPUs and nodes among its workers."""
    if name == "encode":
        from pipelines.encode.workers import share_encode_workers

        return share_encode_workers
    from pipelines.preprocess.workers import share_workers

    return share_workers


def _require_fit(spec: ClusterSpec, name: str, config: Any) -> None:
    """Raise ClusterError for a job that would be sent and then fail: for want of a folder, or of CPUs."""
    if spec.backend == "kuberay":
        for key in settings_of(config):
            if key.place in ("location", "locations", "input") and any(
                place.is_local for place in places_in(key.value)
            ):
                raise ClusterError(
                    f"{key.name}={key.value}: is a path of this machine, which pods do not have; give an s3:// URL"
                )
    if name not in _MAKE_SHARDS or spec.backend == "local":
        return
    groups = spec.groups()
    if spec.backend == "slurm" and spec.slurm.array:  # each task has one node
        role, group = next((role, groups[role]) for role in ("gpu", "decode", "head") if role in groups)
        where, cpus, gpus, nodes = f"a node of {role}", group.cpus, group.gpus, 1
    else:
        nodes = sum(group.nodes for group in groups.values())
        where = f"the nodes of {', '.join(groups)}"
        cpus, gpus = (sum(group.nodes * getattr(group, of) for group in groups.values()) for of in ("cpus", "gpus"))
    try:
        _share(name)(config, cpus, gpus, nodes)
    except PipelineError as error:
        raise ClusterError(f"on {where} ({cpus} CPUs, {gpus} GPUs): {error}") from error


def _require_parts(name: str, config: Any) -> None:
    if name not in _MAKE_SHARDS:
        raise ClusterError(
            f"slurm.array: only {' and '.join(_MAKE_SHARDS)} can be cut into parts, not {name}; set slurm.array=0"
        )
    if config.part:
        raise ClusterError(f"part={config.part}: the array says which task makes which part; leave it out")
