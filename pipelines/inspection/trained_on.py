"""Which videos a policy was trained on, as far as the run that it lies in says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from pipelines.dataset.units import units_of
from pipelines.dataset.versions import parse_versions
from pipelines.errors import PipelineError
from pipelines.loading.samples import open_samples
from pipelines.networks.find import find_network
from pipelines.storage import store
from pipelines.storage.location import Location, places_in
from pipelines.yaml_text import read_yaml


@dataclass
class TrainingVideos:
    """What is known of the data that trained a network.

    Attributes:
        fingerprints: of the videos, where they are known.
        datasets: that it was trained on. lost: those of them that cannot be read any more, runs likewise, and weights
            that it began from and that lie in no run.
        units: of the errors that it learnt to predict, where the datasets say.
    """

    fingerprints: set[str] = field(default_factory=set)
    datasets: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    units: set[str] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Whether all of it is known."""
        return bool(self.datasets) and not self.lost


def videos_of_policy(folder: str) -> TrainingVideos:
    """The videos that trained the policy in a folder such as RUN/checkpoints/step-000500/policy, and those of the runs
    that it was begun from. Of each dataset they are the ones that the run did not hold out.
    """
    found, place, seen = TrainingVideos(), folder, set()
    while place:
        run = _run_of(_found(place))
        if run is None:  # weights from elsewhere: of the hub, or a copied folder
            if place != folder:
                found.lost.append(place)
            break
        if run in seen:
            break
        seen.add(run)
        config = _config_of(run)
        if config is None:
            found.lost.append(run)
            break
        held_out = float((config.get("loader") or {}).get("val_fraction") or 0.0)
        datasets = places_in(str(config.get("data") or ""))
        versions = parse_versions(str(config.get("data_versions") or "")) or [1] * len(datasets)
        for dataset, version in zip(datasets, versions, strict=False):
            _add(found, dataset, version, held_out)
        place = str(config.get("init") or "")
    return found


def _add(found: TrainingVideos, dataset: Location, version: int, held_out: float) -> None:
    found.datasets.append(str(dataset))
    try:
        samples = open_samples(dataset, version=version)
        for shard in range(samples.shards):
            places = samples.split_places(shard, "train", held_out)
            positions = samples.rows(shard)["position"].take(places).to_numpy()
            found.fingerprints |= set(samples.dataset.plan.clips_of(shard)["fingerprint"].to_numpy()[positions])
    except PipelineError:
        found.lost.append(str(dataset))
        return
    found.units.add(units_of(samples.about))


def _found(place: str) -> str:
    """The network's folder, where `place` names a run or one of its steps; else, and where it is gone, as it is."""
    try:
        return find_network(place, "policy", "init")
    except PipelineError:
        return place


def _run_of(place: str) -> Location | None:
    """The run whose checkpoint holds a network's folder; None if it lies in none."""
    if not place:
        return None
    where = Location(place)
    step = where.parent
    if step.parent.name != "checkpoints" or not step.name.startswith("step-"):
        return None
    return step.parent.parent


def _config_of(run: Location) -> dict[str, Any] | None:
    """The settings of a training run; None where they cannot be read."""
    try:
        config = read_yaml(store.read(run / "config.yaml"))["config"]
    except (FileNotFoundError, NotADirectoryError, yaml.YAMLError, KeyError, TypeError):
        return None
    return config if isinstance(config, dict) else None
