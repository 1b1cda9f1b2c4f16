"""The states of a dataset that grows: version k is its first shards, up to where it ended when it was planned.

A dataset grows by new shards after those that are there, which stay as they are. So a number of shards names a state
for ever. dataset.json lists them under `versions`; one that never grew has only version 1, and no such key.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import PipelineError


@dataclass(frozen=True)
class Version:
    """A state of a dataset: version `number`, from 1, is its first `shards`."""

    number: int
    shards: int
    clips: int
    videos: int


def versions_of(about: Mapping[str, Any], url: str) -> list[Version]:
    """All versions, ascending. about: dataset.json. Raises PipelineError where it is damaged."""
    stated = about.get("versions") or [{name: about.get(name) or 0 for name in ("shards", "clips", "videos")}]
    try:
        found = [
            Version(number, int(one["shards"]), int(one["clips"]), int(one["videos"]))
            for number, one in enumerate(stated, 1)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{url}/dataset.json: damaged: its versions say {error!r}") from error
    return found


def version_named(about: Mapping[str, Any], url: str, number: int) -> Version:
    """The version of this number. Raises PipelineError where there is none."""
    there = versions_of(about, url)
    if not 0 < number <= len(there):
        raise PipelineError(f"{url}: has no version {number}; its newest is {len(there)}")
    return there[number - 1]


def about_of(about: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """dataset.json as it was while this version, not the newest one, was that. about: what it is now.

    Raises PipelineError where it is damaged.
    """
    try:
        kept = about["versions"][: version.number]
        plan = about["plan"] | {"parts": about["plan"]["parts"][: kept[-1]["parts"]]}
    except (KeyError, TypeError) as error:
        raise PipelineError(f"dataset.json: damaged: its versions or its plan lack {error!r}") from error
    was = dict(about) | {name: getattr(version, name) for name in ("shards", "clips", "videos")} | {"plan": plan}
    del was["versions"]
    return was if version.number == 1 else was | {"versions": kept}


def about_bytes(about: Mapping[str, Any]) -> bytes:
    """The bytes of a dataset.json."""
    return json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"


def newest_whole(versions: Sequence[Version], committed: Sequence[int]) -> Version | None:
    """The newest version all of whose shards are committed. committed: their numbers, ascending."""
    whole = [version for version in versions if bisect.bisect_left(committed, version.shards) == version.shards]
    return whole[-1] if whole else None


def parse_versions(text: str) -> list[int]:
    """The numbers of data_versions. Raises PipelineError for what is no number from 1 on."""
    words = text.split(",") if text else []
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise PipelineError(f"data_versions={text}: numbers of versions with commas expected, such as 2,1")
    return [int(word) for word in words]
