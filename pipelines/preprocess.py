"""Preprocess a video store into gaze shards: scan -> plan -> [decode -> gaze -> commit] per shard, on Ray Data.

Ray Data schedules, streams, restarts and applies back-pressure; one row of its dataset is one shard at every stage. A
shard is a pure function of its rows of the plan, so any worker may make it, twice, or half: a job started again makes
exactly the shards whose index is missing, and ends with the bytes of an undisturbed run. For the same reason the work
can be cut into parts (part=K/N) that know nothing of each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from autogaze.patches import VOCABULARY
from pipelines import frames, shards, store
from pipelines import manifest as manifests
from pipelines.decode import DecodeConfig, decoder_fingerprint
from pipelines.decode_stage import DecodeStage
from pipelines.errors import PipelineError
from pipelines.gaze_stage import GazeStage, settle
from pipelines.gazers import Settled, how_searched
from pipelines.plan import clip_bytes, make_plan, plan_bytes
from pipelines.preprocess_config import (
    PreprocessConfig,
    WorkersConfig,
    check_config,
    dataset_config,
    parse_part,
    shards_of_part,
)
from pipelines.ray_data import configure_ray_data, pipeline_errors

__all__ = [
    "Job",
    "PreprocessConfig",
    "Totals",
    "Workers",
    "WorkersConfig",
    "check_config",
    "describe",
    "execute",
    "make_ready",
    "missing_parts",
    "plan_job",
    "resume",
    "run_record",
    "share_workers",
    "tidy",
]

FORMAT = 2

# What a worker asks of Ray. Decoding keeps a core busy; canvas gaze works a tenth of the time, and decoding actors fill
# what it leaves. A network works ten times as long on a clip as the decoder, and more, so on CPUs it is the other way
# round: a gaze actor on every CPU, and few decoding actors between them. All ask for less than a core: they fit.
_DECODE_CPUS, _GAZE_CPUS = 0.75, 0.5
_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS, _CPUS_PER_DECODER = 0.5, 0.75, 8
_INDEXES_AT_ONCE = 8


@dataclass(frozen=True)
class Workers:
    """Actors per stage, where gaze runs (cpu, cuda or mps), and the CPUs that an actor asks for."""

    decode: int
    gaze: int
    device: str
    decode_cpus: float = _DECODE_CPUS
    gaze_cpus: float = _GAZE_CPUS


def share_workers(config: PreprocessConfig, cpus: int, gpus: int, nodes: int = 1) -> Workers:
    """Share a cluster out among the stages.

    Raises PipelineError when the cluster is too small for what was asked (Ray would wait for ever) or lacks the device.
    """
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    on_gpu, on_cpus = device == "cuda", device == "cpu" and (config.gaze != "canvas" or config.targets.frames > 0)
    if on_gpu and gpus == 0:
        raise PipelineError("device=cuda: this cluster has no GPU; use device=cpu")
    if device == "mps":
        _require_mps(nodes)
    if config.policy.cuda_graphs == "on" and not on_gpu:
        raise PipelineError(f"policy.cuda_graphs=on: the policy runs on {device}; use auto or off")
    decode_cpus, gaze_cpus = (_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS) if on_cpus else (_DECODE_CPUS, _GAZE_CPUS)
    gaze_cpus = 0.0 if on_gpu else gaze_cpus
    decode = config.workers.decode or max(1, cpus // (_CPUS_PER_DECODER if on_cpus else 1))
    gaze = config.workers.gaze or {"cuda": gpus, "mps": 1, "cpu": max(1, cpus if on_cpus else cpus // 4)}[device]
    needed = decode * decode_cpus + gaze * gaze_cpus
    if needed > cpus or (on_gpu and gaze > gpus):
        raise PipelineError(
            f"workers.decode={decode} and workers.gaze={gaze} need {math.ceil(needed)} CPUs"
            + (f" and {gaze} GPUs" if on_gpu else "")
            + f"; the cluster has {cpus} CPUs and {gpus} GPUs (on one machine, ray.cpus= sets how many Ray counts)"
        )
    return Workers(decode, gaze, device, decode_cpus, gaze_cpus)


def _require_mps(nodes: int) -> None:
    import torch

    if nodes > 1:
        raise PipelineError(f"device=mps: is for one machine, and the cluster has {nodes} nodes; use device=cpu")
    if not torch.backends.mps.is_available():
        raise PipelineError("device=mps: this machine's torch has no mps; use device=cpu")


@dataclass(frozen=True)
class Job:
    """A planned job: what is to be made, and what of it is there already."""

    config: PreprocessConfig
    gazer: Settled
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
        """Whether decoding keeps copies of remote videos on the nodes: see pipelines.decode_stage."""
        videos, shard = self.plan["video"].to_numpy(), self.plan["shard"].to_numpy()
        straddling = (videos[1:] == videos[:-1]) & (shard[1:] != shard[:-1])
        places = self.plan["object"].to_numpy()[1:][straddling]
        return self.config.cache_mb > 0 and not all(map(store.is_local, places))

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
    gazer = settle(config)
    output = store.normalise(config.output)
    if store.exists(store.join(output, "dataset.json")):
        dataset = shards.open_dataset(output)
        _require_same(dataset.about, describe(config, gazer), output)
        return _job(config, gazer, output, dataset.plan, _input_changes(config, output))
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    if not config.input.endswith(".parquet"):
        manifests.list_videos(config.input)
    return None


def make_ready(config: PreprocessConfig, job: Job | None) -> None:
    """Prove that `output` can be written, clear what killed writers left, and take back what retry= asks for.

    job: what `resume` found.
    """
    output = store.normalise(config.output)
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
    for folder in (output, store.join(output, "shards"), store.join(output, "index")):
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
    gazer, output = settle(config), store.normalise(config.output)
    if config.input.endswith(".parquet"):
        manifest = manifests.read_manifest(store.normalise(config.input))
        root = _common_root(manifest)
    else:
        manifest = manifests.scan(config.input, timeout_s=config.decoder_timeout_s)
        root = store.normalise(config.input)
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
        store.publish(manifests.manifest_bytes(manifest), store.join(output, "manifest.parquet"))
        store.publish(data, store.join(output, "plan.parquet"))
        # Last, since it says that all of this is complete: a job killed before this line plans again.
        text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
        store.publish(text, store.join(output, "dataset.json"))
    return _job(config, gazer, output, plan)


def _job(config: PreprocessConfig, gazer: Settled, output: str, plan: pd.DataFrame, notice: str = "") -> Job:
    done = set(shards.committed_shards(output))
    mine = shards_of_part(config.part, _planned(plan))
    return Job(config, gazer, output, plan, [shard for shard in mine if shard not in done], notice)


def _planned(plan: pd.DataFrame) -> int:
    """How many shards a plan has."""
    return int(plan["shard"].max()) + 1 if len(plan) else 0


def describe(config: PreprocessConfig, gazer: Settled) -> dict[str, Any]:
    """dataset.json of a config, less what only the plan knows: everything the dataset's bytes depend on."""
    return {
        "format": FORMAT,
        "config": dataset_config(config) | {"threshold": gazer.threshold, "max_ratio": gazer.max_ratio},
        "software": {
            "decoder": decoder_fingerprint(_decode_config(config)),
            "jpeg": frames.jpeg_fingerprint() if config.frames == "jpeg" else "",
        },
        "models": gazer.models,
        "units": gazer.units,
        "vocabulary": {"scales": list(VOCABULARY.scales), "patch_size": VOCABULARY.patch_size},
    }


def _decode_config(config: PreprocessConfig) -> DecodeConfig:
    return DecodeConfig(decoder=config.decoder, size=VOCABULARY.frame_size, timeout_s=config.decoder_timeout_s)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _require_same(there: dict[str, Any], here: dict[str, Any], output: str) -> None:
    if there.get("format") != here["format"]:
        raise PipelineError(f"output={output}: holds format {there.get('format')}, this version writes {FORMAT}")
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
    planned = manifests.read_manifest(store.join(output, "manifest.parquet"))
    before = dict(zip(planned["object"], planned["version"], strict=True))
    now = {manifests.in_utf8(entry.url): entry.version for entry in manifests.list_videos(config.input)}
    added, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(now[url] != before[url] for url in now.keys() & before.keys())
    if not added + gone + changed:
        return ""
    return (
        f"the input changed since this dataset was planned ({added} new, {changed} changed, {gone} gone); "
        "this run finishes the plan it has; a new output takes in the new state"
    )


@dataclass
class Totals:
    """What a run has done so far; one `add` per committed shard."""

    clips: int = 0
    bytes: int = 0  # committed, tars and indexes
    ok: int = 0
    frames: int = 0
    tokens: int = 0
    loss: float = 0.0  # sum over ok clips
    met: float = 0.0
    restarts: int = 0  # decoder children replaced
    failed: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)  # busy seconds per stage, all actors together
    began: float = float("inf")
    ended: float = 0.0
    first: float = float("inf")  # when the first shard was committed

    def add(self, row: dict[str, Any]) -> None:
        for name in ("clips", "bytes", "ok", "frames", "tokens", "loss", "met", "restarts"):
            setattr(self, name, getattr(self, name) + row[name])
        self.failed.update(json.loads(row["failed"]))
        for stage, spent in json.loads(row["seconds"]).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self.first = min(self.first, row["ended"])
        self.began, self.ended = min(self.began, row["began"]), max(self.ended, row["ended"])

    def speed_of_light(self, workers: dict[str, int]) -> tuple[str, float]:
        """(slowest stage, rate of the whole / rate of that stage alone with its workers always busy)."""
        busy = {stage: self.seconds[stage] / count for stage, count in workers.items()}
        slowest = max(busy, key=lambda stage: busy[stage])
        span = self.ended - self.began
        return slowest, busy[slowest] / span if span > 0 else 0.0


def execute(job: Job, workers: Workers, on_shard: Callable[[Totals], None]) -> Totals:
    """Make the missing shards; `on_shard` is called after each commit. Needs a running Ray.

    Raises PipelineError: the output is full or denied, storage stayed away, or too many clips failed.
    """
    import ray.data  # here, not above: see cluster.local
    from ray.data import ActorPoolStrategy, ExecutionResources

    totals = Totals()
    if not job.missing:
        return totals
    decode, gaze = min(workers.decode, len(job.missing)), min(workers.gaze, len(job.missing))
    config, clips = job.config, len(job.rows)
    failed_before = _failed_before(job) if config.max_failed_fraction < 1 else Counter[str]()
    _require_few(failed_before, clips, config)
    configure_ray_data()
    # A few rows in flight per actor. Without a bound, decoders faster than gaze fill the object store.
    ray.data.DataContext.get_current().execution_options.resource_limits = ExecutionResources(
        object_store_memory=4 * (decode + gaze) * job.row_bytes
    )
    rows: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in job.missing], override_num_blocks=len(job.missing)
    )
    rows = rows.map(
        DecodeStage,  # type: ignore[arg-type]  # Ray makes the actor; its stub knows functions only
        fn_constructor_args=(
            job.output,
            _decode_config(config),
            config.frames,
            config.jpeg_quality,
            config.cache_mb if job.keeps_videos else 0,
        ),
        compute=ActorPoolStrategy(
            size=decode,
            max_tasks_in_flight_per_actor=3,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=workers.decode_cpus,
    )
    rows = rows.map(
        GazeStage,  # type: ignore[arg-type]
        fn_constructor_args=(job.output, job.gazer, config.frames, workers.device),
        compute=ActorPoolStrategy(size=gaze, max_tasks_in_flight_per_actor=2),
        num_cpus=workers.gaze_cpus,
        num_gpus=1 if workers.device == "cuda" else 0,
    )
    for row in pipeline_errors(rows.iter_rows()):
        totals.add(row)
        on_shard(totals)
        _require_few(failed_before + totals.failed, clips, config)
    return totals


def _failed_before(job: Job) -> Counter[str]:
    """Reasons of the failed clips that earlier runs committed."""

    def failed(shard: int) -> Counter[str]:
        rows = shards.read_index(job.output, shard).to_pandas()
        return Counter(rows["reason"][rows["outcome"] == "failed"])

    with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
        return sum(pool.map(failed, set(job.rows["shard"]) - set(job.missing)), Counter[str]())


def _require_few(failed: Counter[str], clips: int, config: PreprocessConfig) -> None:
    if failed.total() > config.max_failed_fraction * clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items()))
        raise PipelineError(
            f"stopped: {failed.total()} of {clips} clips failed ({reasons}), "
            f"more than max_failed_fraction={config.max_failed_fraction}; what is committed stays"
        )


def run_record(
    job: Job,
    totals: Totals,
    workers: Workers,
    cluster: dict[str, int],
    began: float,
    seconds: float,
    status: str,
    start_up: dict[str, float],
) -> dict[str, Any]:
    """What a run did, for the report: kept beside the dataset, in <output>.runs/, since no two runs' times agree.

    Args:
        cluster: nodes, cpus, gpus.
        began: seconds since the epoch.
        seconds: how long it took, without starting Ray.
        status: done, interrupted, or running: then it says how far the run was at `began + seconds`.
        start_up: seconds of the phases before `began`. Two more come after it: until the actors begin their first clip,
            and from then on until the first shard is committed.
    """
    if totals.clips:
        start_up = start_up | {"actors": totals.began - began, "first_shard": totals.first - totals.began}
    counts = {"decode": workers.decode, "gaze": workers.gaze}
    slowest, light = totals.speed_of_light(counts) if totals.clips else ("", 0.0)
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "started": time.strftime(stamp, time.gmtime(began)),
        "finished": time.strftime(stamp, time.gmtime(began + seconds)),
        "status": status,
        **cluster,
        "workers": counts,
        "device": workers.device,
        "gaze": _how_gazed(job.gazer, workers.device),
        "clips": {"ok": totals.ok, "failed": sum(totals.failed.values())},
        "failed_by_reason": dict(sorted(totals.failed.items())),
        "decoder_restarts": totals.restarts,
        "frames": totals.frames,
        "tokens": totals.tokens,
        "seconds": round(seconds, 3),
        "start_up": {phase: round(spent, 3) for phase, spent in start_up.items()},
        "frames_per_s": round(totals.frames / seconds, 2) if seconds else 0.0,
        "stages": {
            stage: {"seconds": round(spent, 3), "workers": counts["gaze" if stage in _IN_GAZE else "decode"]}
            for stage, spent in sorted(totals.seconds.items())
        },
        "slowest_stage": slowest,
        "speed_of_light": round(light, 4),
    }


def _how_gazed(gazer: Settled, device: str) -> str:
    """What gazed and how, in words: what may differ between runs and changes the speed."""
    settings, words = gazer.settings, gazer.name
    if gazer.name == "policy":
        graphs = device == "cuda" and settings.policy.cuda_graphs != "off"
        words = f"policy in {settings.policy.dtype}, {settings.policy.batch} clips at once"
        words += f", CUDA graphs {'on' if graphs else 'off'}"
    elif gazer.name == "videomae":
        words = f"videomae in {settings.reconstructor.dtype}, {how_searched(settings.labels)}"
    return words + (f", targets of {settings.targets} frames" if settings.targets else "")


_IN_GAZE = ("gaze", "search", "write")
