"""Preprocess a video store into gaze shards: scan -> plan -> [decode -> gaze -> commit] per shard, on Ray Data.

Ray Data schedules, streams, restarts and applies back-pressure; one row of its dataset is one shard at every stage. A
shard is a pure function of its rows of the plan, so any worker may make it, twice, or half: a job started again makes
exactly the shards whose index is missing, and ends with the bytes of an undisturbed run. For the same reason the work
can be cut into parts (part=K/N) that know nothing of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from autogaze.patches import VOCABULARY
from pipelines.corpus import manifest as manifests
from pipelines.corpus import videos as corpus_videos
from pipelines.corpus.plan import clip_bytes, make_plan, plan_bytes
from pipelines.dataset import frames, shards
from pipelines.dataset.shards import DATASET_FORMAT
from pipelines.errors import PipelineError
from pipelines.gazing import gazers
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.preprocess.config import (
    PreprocessConfig,
    check_config,
    dataset_config,
    gaze_settings,
    parse_part,
    shards_of_part,
)
from pipelines.storage import store, urls
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint


@dataclass(frozen=True)
class Job:
    """A planned job: what is to be made, and what of it is there already."""

    config: PreprocessConfig
    gazer: ResolvedGaze
    output: str
    plan: pd.DataFrame
    missing: list[int]
    notice: str = ""

    @property
    def shards(self) -> int:
        """How many the plan has; with part=K/N, how many of them are this part's."""
        return len(shards_of_part(self.config.part, _planned(self.plan)))

    @property
    def rows(self) -> pd.DataFrame:
        """The plan's rows of these shards."""
        mine = shards_of_part(self.config.part, _planned(self.plan))
        return self.plan[self.plan["shard"].between(mine.start, mine.stop - 1)]

    @property
    def keeps_videos(self) -> bool:
        """Whether decoding keeps copies of remote videos on the nodes: see pipelines.preprocess.decode_stage."""
        videos, shard = self.plan["video"].to_numpy(), self.plan["shard"].to_numpy()
        straddling = (videos[1:] == videos[:-1]) & (shard[1:] != shard[:-1])
        places = self.plan["object"].to_numpy()[1:][straddling]
        return self.config.cache_mb > 0 and not all(map(urls.is_local, places))

    @property
    def row_bytes(self) -> int:
        """Bytes of the decoded frames of the largest shard: what one row of the Ray dataset weighs at most."""
        return int(self.plan["shard"].value_counts().max()) * clip_bytes(self.config.clip.frames)


def resume(config: PreprocessConfig) -> Job | None:
    """The job that `output` already holds, or None when it is to be planned. Needs no Ray and writes nothing.

    Raises PipelineError: missing or empty input, output made with another config, weights or software, a checkpoint
    that does not load.
    """
    check_config(config)
    gazer = resolve_gaze(config)
    output = urls.normalise(config.output)
    if store.exists(urls.join(output, "dataset.json")):
        dataset = shards.open_dataset(output)
        _require_same(dataset.about, describe(config, gazer), output)
        return _job(config, gazer, output, dataset.plan, _input_changes(config, output))
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    if not config.input.endswith(".parquet"):
        corpus_videos.list_videos(config.input)
    return None


def make_ready(config: PreprocessConfig, job: Job | None) -> None:
    """Prove that `output` can be written, clear what killed writers left, and take back what retry= asks for.

    job: what `resume` found.
    """
    output = urls.normalise(config.output)
    store.require_writable(output)
    _, parts = parse_part(config.part)
    if parts == 1:  # what looks left over may be what another part writes just now; tidy() has the last word
        _remove_temporaries(output)
    if job is not None and config.retry == "failed" and config.part != "plan":
        mine = shards_of_part(config.part, _planned(job.plan))
        for shard in shards.committed_shards(output):
            if shard in mine and "failed" in shards.read_index(output, shard)["outcome"].to_pylist():
                shards.uncommit_shard(output, shard)


def _remove_temporaries(output: str) -> None:
    for folder in (output, urls.join(output, "shards"), urls.join(output, "index")):
        store.remove_temporaries(folder)


def tidy(job: Job) -> None:
    """Clear what killed parts left, if with this one the dataset is complete."""
    _, parts = parse_part(job.config.part)
    if parts > 1 and len(shards.committed_shards(job.output)) == _planned(job.plan):
        _remove_temporaries(job.output)


def missing_parts(config: PreprocessConfig, parts: int) -> list[int]:
    """The K of part=K/`parts` that have shards to make; all of them while there is no plan. Needs no Ray.

    Raises PipelineError as resume does.
    """
    if parts < 1:
        raise PipelineError(f"parts={parts}: must be at least 1")
    job = resume(replace(config, part=""))
    if job is None:
        return list(range(parts))
    missing = set(job.missing)
    return [part for part in range(parts) if not missing.isdisjoint(shards_of_part(f"{part}/{parts}", job.shards))]


def plan_job(config: PreprocessConfig, write: bool = True) -> Job:
    """Scan and plan a new dataset, and unless told not to write it down. Needs a running Ray."""
    gazer, output = resolve_gaze(config), urls.normalise(config.output)
    if config.input.endswith(".parquet"):
        manifest = manifests.read_manifest(urls.normalise(config.input))
        root = _common_root(manifest)
    else:
        manifest = manifests.scan(config.input, timeout_s=config.decoder_timeout_s)
        root = urls.normalise(config.input)
    if manifest.empty:
        raise PipelineError(f"input={config.input}: the manifest has no videos")
    plan = make_plan(manifest, root, config.clip, config.shard.clips)
    if write:
        data = plan_bytes(plan)
        about = describe(config, gazer) | {
            "plan": hashlib.sha256(data).hexdigest(),
            "videos": len(manifest),
            "clips": len(plan),
            "shards": _planned(plan),
        }
        store.publish(manifests.manifest_bytes(manifest), urls.join(output, "manifest.parquet"))
        store.publish(data, urls.join(output, "plan.parquet"))
        # Last, since it says that all of this is complete: a job killed before this line plans again.
        text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
        store.publish(text, urls.join(output, "dataset.json"))
    return _job(config, gazer, output, plan)


def _job(config: PreprocessConfig, gazer: ResolvedGaze, output: str, plan: pd.DataFrame, notice: str = "") -> Job:
    done = set(shards.committed_shards(output))
    mine = shards_of_part(config.part, _planned(plan))
    return Job(config, gazer, output, plan, [shard for shard in mine if shard not in done], notice)


def _planned(plan: pd.DataFrame) -> int:
    """How many shards a plan has."""
    return int(plan["shard"].max()) + 1 if len(plan) else 0


def describe(config: PreprocessConfig, gazer: ResolvedGaze) -> dict[str, Any]:
    """dataset.json of a config, less what only the plan knows: everything the dataset's bytes depend on."""
    return {
        "format": DATASET_FORMAT,
        "config": dataset_config(config) | {"threshold": gazer.threshold, "max_ratio": gazer.max_ratio},
        "software": {
            "decoder": decoder_fingerprint(decode_config(config)),
            "jpeg": frames.jpeg_fingerprint() if config.frames == "jpeg" else "",
        },
        "models": gazer.models,
        "units": gazer.units,
        "vocabulary": {"scales": list(VOCABULARY.scales), "patch_size": VOCABULARY.patch_size},
    }


def decode_config(config: PreprocessConfig) -> DecodeConfig:
    return DecodeConfig(decoder=config.decoder, size=VOCABULARY.frame_size, timeout_s=config.decoder_timeout_s)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _require_same(there: dict[str, Any], here: dict[str, Any], output: str) -> None:
    if there.get("format") != here["format"]:
        raise PipelineError(
            f"output={output}: holds format {there.get('format')}, this version writes {DATASET_FORMAT}"
        )
    old, new = dict(_flat({k: there.get(k, {}) for k in here})), dict(_flat(here))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differing:
        shown = "; ".join(
            f"{n.removeprefix('config.')} is {old.get(n)!r} there, {new.get(n)!r} here" for n in differing
        )
        raise PipelineError(f"output={output}: made with another config: {shown}. Use the same, or another output")


def _common_root(manifest: pd.DataFrame) -> str:
    """The longest folder all videos share: what names are relative to when the input is a manifest."""
    parts = [uri.split("/")[:-1] for uri in manifest["uri"]]
    shared = parts[0]
    for other in parts[1:]:
        length = next((i for i, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b), len(shared))
        shared = shared[: min(length, len(other))]
    return "/".join(shared)


def _input_changes(config: PreprocessConfig, output: str) -> str:
    """One line when the input no longer holds what was planned, else ''. The plan stays: it names this dataset."""
    if config.input.endswith(".parquet"):
        return ""
    planned = manifests.read_manifest(urls.join(output, "manifest.parquet"))
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


def resolve_gaze(config: PreprocessConfig) -> ResolvedGaze:
    """The gaze of a (checked) config, its networks loaded once on the CPU to know them.

    Raises PipelineError: a checkpoint does not load, or does not fit what the job makes.
    """
    settled = gazers.resolve(gaze_settings(config))
    settled.require(config.clip.frames)
    if settled.vocabulary != VOCABULARY:
        raise PipelineError(
            f"policy.checkpoint={config.policy.checkpoint}: has scales {settled.vocabulary.scales}, and preprocess "
            f"makes frames for {VOCABULARY.scales}"
        )
    return settled
