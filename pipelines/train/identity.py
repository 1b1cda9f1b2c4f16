"""What makes a run the run it is: the settings and the data that may not change when it is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import yaml

from pipelines.errors import PipelineError
from pipelines.schema import settings_of
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.train.config import TrainConfig
from pipelines.train.task import Task


def claim_run(config: TrainConfig, task: Task, fingerprint: str) -> None:
    """Write the run's config.yaml, or check that it still fits. Raises PipelineError naming what differs.

    Compared are the settings that must have the same value on resume (pipelines.schema), and the fingerprints of data
    and teachers, whose paths may change.

    fingerprint: of the samples, since data at the same path may have been made anew.
    """
    url = Location(config.run) / "config.yaml"
    if store.exists(Location(config.run) / "dataset.json"):
        raise PipelineError(f"run={config.run}: a dataset is there; choose another folder for the run")
    about = _document(config, task) | {"data_fingerprint": fingerprint}
    if not store.exists(url):
        store.publish(yaml.safe_dump(about, sort_keys=False).encode(), url)
        return
    try:
        begun = yaml.safe_load(store.read(url))
    except yaml.YAMLError as error:
        raise PipelineError(f"{url}: damaged; choose another run") from error
    if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
        raise PipelineError(f"{url}: is not that of a training run; choose another run")
    free = {key.name for key in settings_of(config) if key.on_resume != "same value"}
    before, now = _flat(begun), _flat(about)
    differing = [name for name, value in now.items() if name not in free and before.get(name) != value]
    # Another kind of training explains every other difference, and a setting what differs because of it.
    settings = [name for name in differing if name in {key.name for key in settings_of(config)}]
    causes = ["kind"] if "kind" in differing else settings or differing[:1]
    if differing:
        shown = "; ".join(f"{name}={before.get(name)}, not {now[name]}" for name in causes)
        raise PipelineError(f"run={config.run}: was begun with {shown}; choose another run")


def _document(config: TrainConfig, task: Task) -> dict[str, Any]:
    document = {"kind": type(config).__name__, "config": asdict(config), "about": task.about()}
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a document by their dotted names; those of its config by their keys: {"loader.seed": 0, ...}."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, each in value.items():
        leaves |= _flat(each, f"{prefix}.{name}" if prefix and prefix != "config" else name)
    return leaves
