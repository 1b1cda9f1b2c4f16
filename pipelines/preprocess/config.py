"""What a preprocess job can be told, and what of it cannot work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.corpus.plan import ROW_LIMIT, ClipConfig, check_clip_config, clip_bytes
from pipelines.dataset import frames
from pipelines.dataset.shards import ShardConfig
from pipelines.errors import PipelineError
from pipelines.gazing import settings
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig, TargetsConfig, TeachersConfig
from pipelines.gazing.settings import DEVICES, GazeSettings
from pipelines.storage import urls
from pipelines.video.base import DECODERS
from pipelines.video.decode import check_timeout


@dataclass
class WorkersConfig:
    """How many actors each stage has; 0 shares the cluster's CPUs (and GPUs, for gaze) out."""

    decode: int = field(
        default=0, metadata={"help": "decoding actors (0 = one per CPU; per eight when a network gazes on CPUs)"}
    )
    gaze: int = field(
        default=0, metadata={"help": "gaze actors (0 = one per GPU, or per four CPUs; a network: per CPU)"}
    )


@dataclass
class PreprocessConfig:
    """A preprocess job. `input` and `output` must be given."""

    input: str = field(
        default="", metadata={"help": "folder, file, s3:// prefix, tar of videos, or a manifest.parquet"}
    )
    output: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset"})
    gaze: str = field(
        default="canvas",
        metadata={"help": "canvas (greedy, training-free), policy (the network) or videomae (greedy, learned)"},
    )
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reconstructor: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "stop a frame at this error (null = canvas: 0.05; policy: its checkpoint's; videomae: never)"
        },
    )
    max_ratio: float | None = field(
        default=None,
        metadata={
            "help": "at most this share of its 265 patches (null = canvas: 0.75; policy: its checkpoint's; videomae: 1)"
        },
    )
    clip: ClipConfig = field(default_factory=ClipConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    frames: str = field(default="jpeg", metadata={"help": "store frames as jpeg, raw (npy) or none"})
    jpeg_quality: int = field(default=90, metadata={"help": "1-95, for frames=jpeg"})
    decoder: str = field(default="pyav", metadata={"help": "pyav, decord or torchcodec"})
    decoder_timeout_s: float = field(
        default=60.0, metadata={"help": "a video that takes longer to open, or over a clip, fails as decoder_timeout"}
    )
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    device: str = field(
        default="auto", metadata={"help": "gaze on auto (cuda when the cluster has GPUs, else cpu), cpu, cuda or mps"}
    )
    cache_mb: int = field(
        default=4096,
        metadata={
            "help": "disk of a node for remote videos that several of its shards need (0 = fetched for each shard)"
        },
    )
    max_failed_fraction: float = field(
        default=1.0, metadata={"help": "stop when more than this share of all clips failed"}
    )
    retry: str = field(default="", metadata={"help": "'failed' makes again the shards that hold failed clips"})
    part: str = field(
        default="",
        metadata={"help": "K/N makes the K-th of N equal runs of shards (K from 0), plan only plans ('' = everything)"},
    )


# Fields that change no byte of the dataset, and so may differ from one run to the next. What of the networks changes
# bytes is recorded under "models", from the networks themselves (pipelines/gazing/gazers.py).
_NETWORKS = ("policy", "reconstructor", "teachers")
_FREE = (
    *("output", "workers", "device", "cache_mb", "max_failed_fraction", "retry", "part", "decoder_timeout_s"),
    *_NETWORKS,
)


def gaze_settings(config: PreprocessConfig) -> GazeSettings:
    """The part of the config that says what gazes, and for which targets."""
    return GazeSettings(
        config.gaze,
        config.policy,
        config.reconstructor,
        config.teachers,
        config.labels,
        config.threshold,
        config.max_ratio,
        config.targets.frames,
    )


def dataset_config(config: PreprocessConfig) -> dict[str, Any]:
    """The part of the config that the dataset's bytes are a function of."""
    values = asdict(config)
    kept = {name.name: values[name.name] for name in fields(PreprocessConfig) if name.name not in _FREE}
    # Left out where they say nothing, so that datasets from before there were any are still what they were.
    if config.gaze != "videomae" and config.labels == LabelsConfig():
        del kept["labels"]
    if not config.targets.frames:
        del kept["targets"]
    return kept | {"input": urls.normalise(config.input)}


def shards_of_part(part: str, shards: int) -> range:
    """The shards, of so many, that part=K/N makes: the K-th of N runs as equal as can be; all of them for '' and plan.

    Neighbours, since a long video lies in neighbouring shards, and whoever makes them fetches it once.
    """
    number, parts = parse_part(part)
    return range(shards * number // parts, shards * (number + 1) // parts)


def parse_part(part: str) -> tuple[int, int]:
    """(K, N) of part=K/N; of '' and plan, which are no share of the work, (0, 1). Raises PipelineError."""
    if part in ("", "plan"):
        return 0, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    if not found or int(found[1]) >= int(found[2]):
        raise PipelineError(f"part={part}: must be plan, or K/N with K from 0 to N-1, such as 0/8")
    return int(found[1]), int(found[2])


def check_config(config: PreprocessConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    for name in ("input", "output"):
        if not getattr(config, name):
            raise PipelineError(f"{name}= is missing: autogaze preprocess input=/data/videos output=/data/gaze")
    for name, known in (
        ("frames", frames.STORAGE),
        ("decoder", DECODERS),
        ("device", DEVICES),
        ("retry", ("", "failed")),
    ):
        if getattr(config, name) not in known:
            raise PipelineError(f"{name}={getattr(config, name)}: must be one of {', '.join(filter(None, known))}")
    for name, least, most in (("max_failed_fraction", 0.0, 1.0), ("jpeg_quality", 1, 95)):
        if not least <= getattr(config, name) <= most:
            raise PipelineError(f"{name}={getattr(config, name)}: must be between {least} and {most}")
    parse_part(config.part)
    if not 0 <= config.targets.frames <= config.clip.frames:
        raise PipelineError(
            f"targets.frames={config.targets.frames}: must be between 0 and the {config.clip.frames} of clip.frames"
        )
    settings.check(gaze_settings(config), config.device)
    check_timeout(config.decoder_timeout_s)
    for name, value, zero in (
        ("workers.decode", config.workers.decode, "automatic"),
        ("workers.gaze", config.workers.gaze, "automatic"),
        ("cache_mb", config.cache_mb, "none"),
    ):
        if value < 0:
            raise PipelineError(f"{name}={value}: must be 0 ({zero}) or more")
    check_clip_config(config.clip, config.shard.clips)
    if config.shard.clips * clip_bytes(config.clip.frames) >= ROW_LIMIT:
        most = (ROW_LIMIT - 1) // clip_bytes(config.clip.frames)
        raise PipelineError(
            f"shard.clips={config.shard.clips} with clip.frames={config.clip.frames}: a shard's frames pass through "
            f"memory as one block of at most 2 GiB; use shard.clips={most} or fewer"
        )
    source, output = urls.normalise(config.input) + "/", urls.normalise(config.output) + "/"
    if output.startswith(source):
        raise PipelineError(
            f"output={config.output}: lies inside the input, where the next scan would take its tars for videos; "
            "put it beside the input"
        )
