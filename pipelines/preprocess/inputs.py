"""What a job reads: the manifest of its input, and how the input has changed since it was planned."""

from __future__ import annotations

import pandas as pd

from pipelines.corpus import manifest as manifests
from pipelines.corpus import videos as corpus_videos
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig
from pipelines.storage.location import Location


def read_input(config: PreprocessConfig) -> tuple[pd.DataFrame, str]:
    """The manifest of the input, and the URL that names of its videos are relative to. A store is scanned: on Ray.

    Raises PipelineError when the input has no videos.
    """
    place, from_manifest = Location(config.input), config.input.endswith(".parquet")
    manifest = (
        manifests.read_manifest(place)
        if from_manifest
        else manifests.scan(config.input, timeout_s=config.decoder_timeout_s)
    )
    if manifest.empty:
        raise PipelineError(f"input={config.input}: the manifest has no videos")
    return manifest, _common_root(manifest) if from_manifest else place


def _common_root(manifest: pd.DataFrame) -> str:
    """The deepest folder that holds all videos of a manifest."""
    parts = [uri.split("/")[:-1] for uri in manifest["uri"]]
    shared = parts[0]
    for other in parts[1:]:
        length = next((i for i, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b), len(shared))
        shared = shared[: min(length, len(other))]
    return "/".join(shared)


def input_changes(config: PreprocessConfig, output: Location) -> str:
    """One line when the input no longer holds what was planned, else ''. The plan stays as it is."""
    if config.input.endswith(".parquet"):
        return ""
    planned = manifests.read_manifest(output / "manifest.parquet")
    before = dict(zip(planned["object"], planned["version"], strict=True))
    now = {corpus_videos.in_utf8(entry.url): entry.version for entry in corpus_videos.list_videos(config.input)}
    added, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(now[url] != before[url] for url in now.keys() & before.keys())
    if not added + gone + changed:
        return ""
    return (
        f"the input changed since this dataset was planned ({added} new, {changed} changed, {gone} gone); "
        "this run finishes the plan it has; a new output takes in the new state"
    )
