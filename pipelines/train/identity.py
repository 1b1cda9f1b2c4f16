"""What makes a run the run it is: the settings and the data that may not change when it is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import yaml

from pipelines.errors import PipelineError
from pipelines.loading.loader import ShardLoader
from pipelines.schema import settings_of
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.train.config import EXTEND, TrainConfig
from pipelines.train.task import Task
from pipelines.yaml_text import read_yaml


def claim_run(config: TrainConfig, task: Task, fingerprint: str, done: int = 0, steps: int = 1) -> None:
    """Write the run's config.yaml, or check that it still fits. Raises PipelineError naming what differs.

    Compared are the settings that must have the same value on resume (pipelines.schema), and the fingerprints of data
    and teachers, whose paths may change. With `config.extend`, settings that a run may be extended by become those of
    the run from here on; what they were, and until which step, is kept under `extended`.

    Args:
        fingerprint: of the samples, since data at the same path may have been made anew.
        done, steps: steps that the newest checkpoint has, and that the run is to have by this config.
    """
    url = Location(config.run) / "config.yaml"
    if store.exists(Location(config.run) / "dataset.json"):
        raise PipelineError(f"run={config.run}: a dataset is there; choose another folder for the run")
    about = _document(config, task) | {"data_fingerprint": fingerprint}
    if not store.exists(url):
        _write(about, url)
        return
    begun = read_run(url)
    keys = settings_of(config)
    # A run that was begun before a setting existed had its default, or what the config says such runs did.
    before = {key.name: key.value for key in settings_of(type(config)())} | config.before | _flat(begun)
    now = _flat(about)
    free = {key.name for key in keys if key.on_resume in ("any value", "same content")} | _sizes(task)
    differing = [name for name, value in now.items() if name not in free and before.get(name) != value]
    if not differing:
        return
    extendable = {key.name for key in keys if key.on_resume == EXTEND}
    fixed = [name for name in differing if name not in extendable]
    if fixed or not config.extend:
        # Another kind of training explains every other difference, and a setting what differs because of it.
        named = {key.name for key in keys}.intersection(fixed if config.extend else differing)
        shown = [name for name in differing if name in named] or fixed[:1]
        if "kind" in differing:
            shown = ["kind"]
        told = "; ".join(f"{name}={before.get(name)}, not {now[name]}" for name in shown)
        or_else = "" if fixed else ", or add extend=true to go on with this one so from here"
        raise PipelineError(f"run={config.run}: was begun with {told}; choose another run{or_else}")
    if steps < done:
        raise PipelineError(f"run={config.run}: has done {done} steps already, and {steps} are asked for; give more")
    history = [*begun.get("extended", []), {"step": done, "before": {name: before[name] for name in differing}}]
    _write(about | {"extended": history}, url)


def data_fingerprint(config: TrainConfig, loader: ShardLoader) -> str:
    """The fingerprint of a run's data, made as when the run was begun: older versions made it of all samples' rows."""
    url = Location(config.run) / "config.yaml"
    if store.exists(url):
        begun = str(read_run(url).get("data_fingerprint"))
        if begun.partition("-")[0] != loader.fingerprint.partition("-")[0]:
            return loader.row_fingerprint()
    return loader.fingerprint


def read_run(url: Location) -> dict[str, Any]:
    """A run's config.yaml. Raises PipelineError when it is damaged, or of something else."""
    try:
        begun = read_yaml(store.read(url))
    except yaml.YAMLError as error:
        raise PipelineError(f"{url}: damaged; choose another run") from error
    if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
        raise PipelineError(f"{url}: is not that of a training run; choose another run")
    return begun


def _write(document: dict[str, Any], url: Location) -> None:
    store.publish(yaml.safe_dump(document, sort_keys=False).encode(), url)


def _document(config: TrainConfig, task: Task) -> dict[str, Any]:
    settings = asdict(config) | task.sizes()
    del settings["extend"]  # says what a command does, not what the run is
    document = {"kind": type(config).__name__, "config": settings, "about": task.about()}
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def _sizes(task: Task) -> set[str]:
    """The keys of sizes that are a checkpoint's: the network itself is compared, under `about`."""
    return {f"{section}.{name}" for section, sizes in task.sizes().items() for name in sizes}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a document by their dotted names; those of its config by their keys: {"loader.seed": 0, ...}."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, each in value.items():
        leaves |= _flat(each, f"{prefix}.{name}" if prefix and prefix != "config" else name)
    return leaves
