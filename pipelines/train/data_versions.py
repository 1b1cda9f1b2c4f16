"""Which state of its datasets a run reads: the one it was begun with, or of a new run the newest that is whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from pipelines.dataset.features import open_any
from pipelines.dataset.versions import parse_versions, versions_of
from pipelines.errors import PipelineError
from pipelines.loading.samples import whole_version
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.train.config import TrainConfig
from pipelines.train.identity import read_run

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def with_data_versions(config: ConfigT) -> tuple[ConfigT, list[str]]:
    """A config with the versions of its datasets filled in, and lines for the user: which are not the newest.

    '' stands for the first version of each, so a run over datasets that never grew says nothing of versions.
    Raises PipelineError for a dataset or a run that cannot be read.
    """
    place = Location(config.run) / "config.yaml"
    given = parse_versions(config.data_versions)
    if store.exists(place):
        began_with = parse_versions(str(read_run(place)["config"].get("data_versions") or ""))
        numbers = began_with or [1] * len(config.datasets)
        if given and given != numbers:
            raise PipelineError(
                f"run={config.run}: was begun with data_versions={','.join(map(str, numbers))}, not "
                f"{config.data_versions}; leave it out, or choose another run"
            )
    elif given:
        numbers = given
    else:
        opened = [open_any(url) for url in config.datasets]
        numbers = [whole_version(dataset, dataset.committed()).number for dataset in opened]
    notes = []
    for url, number in zip(config.datasets, numbers, strict=True):
        versions = versions_of(open_any(url).about, url)
        if number < len(versions):
            ours, newest = versions[number - 1], versions[-1]
            notes.append(
                f"{url}: version {number} is read ({ours.shards:,} shards, {ours.clips:,} clips); the newest is "
                f"{newest.number} ({newest.shards:,} shards, {newest.clips:,} clips)"
            )
    text = ",".join(map(str, numbers)) if any(number > 1 for number in numbers) else ""
    return replace(config, data_versions=text), notes
