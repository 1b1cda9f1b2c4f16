"""What a run is, and may not change when it goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import yaml

from pipelines.errors import PipelineError
from pipelines.storage import store, urls
from pipelines.train.config import TrainConfig
from pipelines.train.task import Task

# What may differ when a run goes on: where it runs, and how often it looks and saves. Where data and teachers lie may
# differ too: what they are is compared.
_FREE = ("run", "data", "teachers", "scale", "every", "micro_batch", "val_clips")


_FREE_ROLLOUTS = ("actors", "gpus", "timeout_s", "dump")


_FREE_LOADER = ("workers", "cache_mb", "bad_samples")


def claim_run(config: TrainConfig, task: Task, fingerprint: str) -> None:
    """Write down what this run is, or check that it is still that. Raises PipelineError naming what differs.

    fingerprint: of the samples: what was made anew at the same place is other data.
    """
    url = urls.join(urls.normalise(config.run), "config.yaml")
    about = _document(config, task) | {"data_fingerprint": fingerprint}
    if not store.exists(url):
        store.publish(yaml.safe_dump(about, sort_keys=False).encode(), url)
        return
    try:
        begun = yaml.safe_load(store.read(url))
    except yaml.YAMLError as error:
        raise PipelineError(f"{url}: damaged; choose another run") from error
    if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
        raise PipelineError(f"{url}: is not of a training run; choose another run")
    for name, value in _flat(_kept(about)).items():
        other = _flat(_kept(begun)).get(name)
        if other != value:
            raise PipelineError(f"run={config.run}: was begun with {name}={other}, not {value}; choose another run")


def _document(config: TrainConfig, task: Task) -> dict[str, Any]:
    document = {"kind": type(config).__name__, "config": asdict(config), "about": task.about()}
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def _kept(document: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in document["config"].items() if name not in _FREE}
    for part, free in (("loader", _FREE_LOADER), ("rollouts", _FREE_ROLLOUTS)):
        if part in config:
            config[part] = {name: value for name, value in config[part].items() if name not in free}
    return document | {"config": config}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _flat(part, f"{prefix}.{name}" if prefix and prefix != "config" else name)
    return found
