"""Preprocess a video store into gaze shards: scan -> plan -> [decode -> gaze -> commit] per shard, on Ray Data.

Ray Data schedules, streams, restarts and applies back-pressure; one row of its dataset is one shard at every stage. A
shard is a pure function of its rows of the plan, so any worker may make it, twice, or half: a job started again makes
exactly the shards whose index is missing, and ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from autogaze import reconstruction
from autogaze.patches import VOCABULARY
from pipelines import frames, shards, store
from pipelines import manifest as manifests
from pipelines.decode import DECODERS, DecodeConfig, decoder_fingerprint
from pipelines.decode_stage import DecodeStage
from pipelines.errors import PipelineError
from pipelines.gaze_stage import GazeStage
from pipelines.plan import ClipConfig, check_clip_config, make_plan, plan_bytes
from pipelines.ray_data import configure_ray_data, pipeline_errors
from pipelines.shards import ShardConfig

FORMAT = 1
GAZES = ("canvas",)
DEVICES = ("auto", "cpu", "cuda")
_ROW_LIMIT = 2 << 30  # an Arrow array addresses its bytes with 31 bits


# What a worker asks of Ray. Decoding keeps a core busy; canvas gaze works a tenth of the time, and decoding actors fill
# what it leaves. Both ask for less than a core, so that every core can decode beside it.
_DECODE_CPUS, _GAZE_CPUS = 0.75, 0.5


@dataclass(frozen=True)
class Workers:
    """Actors per stage, and where gaze runs."""

    decode: int
    gaze: int
    on_gpu: bool


@dataclass
class WorkersConfig:
    """How many actors each stage has; 0 shares the cluster's CPUs (and GPUs, for gaze) out."""

    decode: int = field(default=0, metadata={"help": "decoding actors (0 = one per CPU)"})
    gaze: int = field(default=0, metadata={"help": "gaze actors (0 = one per GPU, or per four CPUs)"})


@dataclass
class PreprocessConfig:
    """A preprocess job. `input` and `output` must be given."""

    input: str = field(
        default="", metadata={"help": "folder, file, s3:// prefix, tar of videos, or a manifest.parquet"}
    )
    output: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset"})
    gaze: str = field(default="canvas", metadata={"help": "what gazes: canvas (greedy, training-free)"})
    threshold: float = field(
        default=0.05, metadata={"help": "stop a frame at this reconstruction error (mean |difference| in [0, 1])"}
    )
    max_ratio: float = field(default=0.75, metadata={"help": "at most this share of a frame's 265 patches"})
    clip: ClipConfig = field(default_factory=ClipConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    frames: str = field(default="jpeg", metadata={"help": "store frames as jpeg, raw (npy) or none"})
    jpeg_quality: int = field(default=90, metadata={"help": "1-95, for frames=jpeg"})
    decoder: str = field(default="pyav", metadata={"help": "pyav, decord or torchcodec"})
    decoder_timeout_s: float = field(
        default=60.0, metadata={"help": "a video with no clip for this long fails as decoder_timeout"}
    )
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    device: str = field(default="auto", metadata={"help": "gaze on auto (cuda when the cluster has GPUs), cpu or cuda"})
    max_failed_fraction: float = field(
        default=1.0, metadata={"help": "stop when more than this share of all clips failed"}
    )
    retry: str = field(default="", metadata={"help": "'failed' makes again the shards that hold failed clips"})


# Fields that change no byte of the dataset, and so may differ from one run to the next.
_FREE = ("output", "workers", "device", "max_failed_fraction", "retry", "decoder_timeout_s")


def dataset_config(config: PreprocessConfig) -> dict[str, Any]:
    """The part of the config that the dataset's bytes are a function of."""
    values = asdict(config)
    kept = {name.name: values[name.name] for name in fields(PreprocessConfig) if name.name not in _FREE}
    return kept | {"input": store.normalise(config.input)}


def check_config(config: PreprocessConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    for name in ("input", "output"):
        if not getattr(config, name):
            raise PipelineError(f"{name}= is missing: autogaze preprocess input=/data/videos output=/data/gaze")
    for name, known in (
        ("gaze", GAZES),
        ("frames", frames.STORAGE),
        ("decoder", DECODERS),
        ("device", DEVICES),
        ("retry", ("", "failed")),
    ):
        if getattr(config, name) not in known:
            raise PipelineError(f"{name}={getattr(config, name)}: must be one of {', '.join(filter(None, known))}")
    for name, least, most in (
        ("threshold", 0.0, 1.0),
        ("max_ratio", 0.0, 1.0),
        ("max_failed_fraction", 0.0, 1.0),
        ("jpeg_quality", 1, 95),
    ):
        if not least <= getattr(config, name) <= most:
            raise PipelineError(f"{name}={getattr(config, name)}: must be between {least} and {most}")
    if config.decoder_timeout_s <= 0:
        raise PipelineError(f"decoder_timeout_s={config.decoder_timeout_s}: must be more than 0")
    for name, value in (("workers.decode", config.workers.decode), ("workers.gaze", config.workers.gaze)):
        if value < 0:
            raise PipelineError(f"{name}={value}: must be 0 (automatic) or more")
    check_clip_config(config.clip, config.shard.clips)
    if row_bytes(config) >= _ROW_LIMIT:
        most = _ROW_LIMIT // (row_bytes(config) // config.shard.clips) - 1
        raise PipelineError(
            f"shard.clips={config.shard.clips} with clip.frames={config.clip.frames}: a shard's frames pass through "
            f"memory as one block of at most 2 GiB; use shard.clips={most} or fewer"
        )
    source, output = store.normalise(config.input) + "/", store.normalise(config.output) + "/"
    if output.startswith(source):
        raise PipelineError(
            f"output={config.output}: lies inside the input, where the next scan would take its tars for videos; "
            "put it beside the input"
        )


def row_bytes(config: PreprocessConfig) -> int:
    """Bytes of one shard's decoded frames: what one row of the Ray dataset weighs."""
    return config.shard.clips * config.clip.frames * VOCABULARY.frame_size**2 * 3


def share_workers(config: PreprocessConfig, cpus: int, gpus: int) -> Workers:
    """Share a cluster out among the stages.

    Raises PipelineError when the cluster is too small for what was asked: Ray would wait for ever.
    """
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    if on_gpu and gpus == 0:
        raise PipelineError("device=cuda: this cluster has no GPU; use device=cpu")
    decode = config.workers.decode or max(1, cpus)
    gaze = config.workers.gaze or (gpus if on_gpu else max(1, cpus // 4))
    needed = decode * _DECODE_CPUS + (0 if on_gpu else gaze * _GAZE_CPUS)
    if needed > cpus or (on_gpu and gaze > gpus):
        raise PipelineError(
            f"workers.decode={decode} and workers.gaze={gaze} need {math.ceil(needed)} CPUs"
            + (f" and {gaze} GPUs" if on_gpu else "")
            + f"; the cluster has {cpus} CPUs and {gpus} GPUs (on one machine, ray.cpus= sets how many Ray counts)"
        )
    return Workers(decode, gaze, on_gpu)


@dataclass(frozen=True)
class Job:
    """A planned job: what is to be made, and what of it is there already."""

    config: PreprocessConfig
    output: str
    plan: pd.DataFrame
    missing: list[int]
    notice: str = ""

    @property
    def shards(self) -> int:
        return int(self.plan["shard"].max()) + 1 if len(self.plan) else 0


def resume(config: PreprocessConfig) -> Job | None:
    """The job that `output` already holds, or None when it is to be planned. Needs no Ray and writes nothing.

    Raises PipelineError: missing or empty input, output made with another config or software.
    """
    check_config(config)
    output = store.normalise(config.output)
    if store.exists(store.join(output, "dataset.json")):
        dataset = shards.open_dataset(output)
        _require_same(dataset.about, describe(config), output)
        return _job(config, output, dataset.plan, _input_changes(config, output))
    if shards.committed_shards(output):
        raise PipelineError(f"output={output}: holds shards but no dataset.json; choose another output")
    if not config.input.endswith(".parquet"):
        manifests.list_videos(config.input)
    return None


def make_ready(config: PreprocessConfig) -> None:
    """Prove that `output` can be written, clear what killed writers left, and take back what retry= asks for."""
    output = store.normalise(config.output)
    store.require_writable(output)
    for folder in (output, store.join(output, "shards"), store.join(output, "index")):
        store.remove_temporaries(folder)
    if config.retry == "failed":
        for shard in shards.committed_shards(output):
            if "failed" in shards.read_index(output, shard)["outcome"].to_pylist():
                shards.uncommit_shard(output, shard)


def plan_job(config: PreprocessConfig, write: bool = True) -> Job:
    """Scan and plan a new dataset, and unless told not to write it down. Needs a running Ray."""
    output = store.normalise(config.output)
    if config.input.endswith(".parquet"):
        manifest = manifests.read_manifest(store.normalise(config.input))
        root = _common_root(manifest)
    else:
        manifest, root = manifests.scan(config.input), store.normalise(config.input)
    if manifest.empty:
        raise PipelineError(f"input={config.input}: the manifest has no videos")
    plan = make_plan(manifest, root, config.clip, config.shard.clips)
    if write:
        data = plan_bytes(plan)
        about = describe(config) | {
            "plan": hashlib.sha256(data).hexdigest(),
            "videos": len(manifest),
            "clips": len(plan),
            "shards": int(plan["shard"].max()) + 1,
        }
        store.publish(manifests.manifest_bytes(manifest), store.join(output, "manifest.parquet"))
        store.publish(data, store.join(output, "plan.parquet"))
        # Last, since it says that all of this is complete: a job killed before this line plans again.
        text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
        store.publish(text, store.join(output, "dataset.json"))
    return _job(config, output, plan)


def _job(config: PreprocessConfig, output: str, plan: pd.DataFrame, notice: str = "") -> Job:
    done = set(shards.committed_shards(output))
    planned = sorted(set(plan["shard"].tolist()))
    return Job(config, output, plan, [shard for shard in planned if shard not in done], notice)


def describe(config: PreprocessConfig) -> dict[str, Any]:
    """dataset.json of a config, less what only the plan knows: everything the dataset's bytes depend on."""
    return {
        "format": FORMAT,
        "config": dataset_config(config),
        "software": {
            "decoder": decoder_fingerprint(_decode_config(config)),
            "jpeg": frames.jpeg_fingerprint() if config.frames == "jpeg" else "",
        },
        "models": {config.gaze: reconstruction.load(config.gaze).fingerprint},
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
    now = {entry.url: entry.version for entry in manifests.list_videos(config.input)}
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

    def add(self, row: dict[str, Any]) -> None:
        for name in ("clips", "ok", "frames", "tokens", "loss", "met", "restarts"):
            setattr(self, name, getattr(self, name) + row[name])
        self.failed.update(json.loads(row["failed"]))
        for stage, spent in json.loads(row["seconds"]).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
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
    limit = job.config.max_failed_fraction * len(job.plan)
    config = job.config
    configure_ray_data()
    # A few rows in flight per actor. Without a bound, decoders faster than gaze fill the object store.
    ray.data.DataContext.get_current().execution_options.resource_limits = ExecutionResources(
        object_store_memory=4 * (decode + gaze) * row_bytes(config)
    )
    rows: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in job.missing], override_num_blocks=len(job.missing)
    )
    rows = rows.map(
        DecodeStage,  # type: ignore[arg-type]  # Ray makes the actor; its stub knows functions only
        fn_constructor_args=(job.output, _decode_config(config), config.frames, config.jpeg_quality),
        compute=ActorPoolStrategy(
            size=decode,
            max_tasks_in_flight_per_actor=3,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=_DECODE_CPUS,
    )
    rows = rows.map(
        GazeStage,  # type: ignore[arg-type]
        fn_constructor_args=(
            job.output,
            config.gaze,
            config.threshold,
            config.max_ratio,
            config.frames,
            workers.on_gpu,
        ),
        compute=ActorPoolStrategy(size=gaze, max_tasks_in_flight_per_actor=2),
        num_cpus=0 if workers.on_gpu else _GAZE_CPUS,
        num_gpus=1 if workers.on_gpu else 0,
    )
    for row in pipeline_errors(rows.iter_rows()):
        totals.add(row)
        on_shard(totals)
        if sum(totals.failed.values()) > limit:
            raise PipelineError(
                f"stopped: {sum(totals.failed.values())} of {len(job.plan)} clips failed "
                f"({_reasons(totals.failed)}), more than max_failed_fraction={config.max_failed_fraction}; "
                "what is committed stays"
            )
    return totals


def _reasons(failed: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items()))


def run_record(
    totals: Totals, workers: Workers, cluster: dict[str, int], began: float, seconds: float, status: str
) -> dict[str, Any]:
    """What a run did, for the report: kept beside the dataset, in <output>.runs/, since no two runs' times agree.

    Args:
        cluster: nodes, cpus, gpus.
        began: seconds since the epoch.
        seconds: how long it took, without starting Ray.
        status: done, or interrupted.
    """
    counts = {"decode": workers.decode, "gaze": workers.gaze}
    slowest, light = totals.speed_of_light(counts) if totals.clips else ("", 0.0)
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "started": time.strftime(stamp, time.gmtime(began)),
        "finished": time.strftime(stamp, time.gmtime(began + seconds)),
        "status": status,
        **cluster,
        "workers": counts,
        "device": "cuda" if workers.on_gpu else "cpu",
        "clips": {"ok": totals.ok, "failed": sum(totals.failed.values())},
        "failed_by_reason": dict(sorted(totals.failed.items())),
        "decoder_restarts": totals.restarts,
        "frames": totals.frames,
        "tokens": totals.tokens,
        "seconds": round(seconds, 3),
        "frames_per_s": round(totals.frames / seconds, 2) if seconds else 0.0,
        "stages": {
            stage: {"seconds": round(spent, 3), "workers": counts["gaze" if stage in _IN_GAZE else "decode"]}
            for stage, spent in sorted(totals.seconds.items())
        },
        "slowest_stage": slowest,
        "speed_of_light": round(light, 4),
    }


_IN_GAZE = ("gaze", "search", "write")
