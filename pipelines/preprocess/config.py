"""The settings of jobs over a corpus, of preprocess above all, and which of them cannot work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from pipelines.corpus.inputs import covers, normal_input
from pipelines.corpus.plan import ClipConfig, check_clip_config
from pipelines.dataset.frames import FrameStorage
from pipelines.dataset.shards import ShardConfig
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import LabelsConfig, TargetsConfig
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.schema import check, section, setting
from pipelines.storage.location import Location
from pipelines.video.base import DecoderName
from pipelines.video.decode import LONGEST_TIMEOUT_S


@dataclass
class WorkersConfig:
    """How many workers each stage has, in all; 0 shares the cluster's CPUs (and GPUs, for gaze) out."""

    decode: int = setting(0, "decoders (0 = one per CPU; per eight when a network gazes on CPUs)", at_least=0)
    gaze: int = setting(0, "gazers (0 = one per GPU, or per two CPUs; a network: per CPU)", at_least=0)


@dataclass
class CorpusConfig(GazeSettings):
    """What jobs share that make a dataset of a corpus, shard by shard."""

    input: str = setting(
        "",
        "folder, file, s3:// prefix, tar, pattern (videos/**/*.mp4), list of videos (.txt, .csv, .parquet with a "
        "column url), several of these with commas, or a manifest of autogaze scan",
        required=True,
        place="input",
    )
    output: str = setting(
        "", "folder or s3:// prefix of the dataset", required=True, on_resume="any value", place="location"
    )
    clip: ClipConfig = section(ClipConfig)
    shard: ShardConfig = section(ShardConfig)
    decoder: DecoderName = setting("pyav", "pyav, decord, torchcodec or torchcodec-cuda")
    decoder_timeout_s: float = setting(
        60.0,
        "a video that takes longer to open, or over a clip, fails as decoder_timeout",
        more_than=0,
        at_most=LONGEST_TIMEOUT_S,
        on_resume="any value",
    )
    cache_mb: int = setting(
        4096,
        "disk of a node for remote videos that several of its shards need (0 = fetched for each shard)",
        at_least=0,
        on_resume="any value",
    )
    max_failed_fraction: float = setting(
        1.0, "stop when more than this share of all clips failed", at_least=0, at_most=1, on_resume="any value"
    )
    retry: Literal["", "failed"] = setting(
        "", "'failed' makes again the shards that hold failed clips", on_resume="any value"
    )
    part: str = setting(
        "",
        "K/N makes the K-th of N equal runs of shards (K from 0); plan only plans ('' = all)",
        on_resume="any value",
    )
    grow: bool = setting(
        False,
        "first take in what the input has now and had not when the dataset was planned, as new shards after the others",
        on_resume="any value",
    )

    @property
    def shard_clips(self) -> int:
        """Clips of a shard, at most."""
        return self.shard.settled(self.clip.frames, "jpeg")


@dataclass
class PreprocessConfig(CorpusConfig):
    """A preprocess job. Settings that must have the same value on resume are a part of dataset.json."""

    usage: ClassVar[str] = "autogaze preprocess input=/data/videos output=/data/gaze"

    targets: TargetsConfig = section(TargetsConfig)
    frames: FrameStorage = setting("jpeg", "store frames as jpeg, raw (npy) or none")
    jpeg_quality: int = setting(90, "1-95, for frames=jpeg", at_least=1, at_most=95)
    workers: WorkersConfig = section(WorkersConfig, on_resume="any value")

    @property
    def shard_clips(self) -> int:
        return self.shard.settled(self.clip.frames, self.frames)


def dataset_config(config: PreprocessConfig) -> dict[str, Any]:
    """The part of the config that the dataset's bytes are a function of."""
    kept = compared_settings(config) | {"input": normal_input(config.input)}
    # Left out where they change nothing, so that datasets that were made before these keys existed still match.
    if not config.by_learned and config.labels == LabelsConfig():
        del kept["labels"]
    if not config.targets.frames:
        del kept["targets"]
    return kept


def compared_settings(config: CorpusConfig) -> dict[str, Any]:
    """The settings that must have the same value when a job goes on, by the names of their fields."""
    values = asdict(config) | {"shard": {"clips": config.shard_clips}}
    if not config.verify:  # left out where it changes nothing: datasets were made before this key existed
        del values["verify"]
    return {
        field.name: values[field.name]
        for field in fields(config)
        if field.metadata["on_resume"] in (None, "same value") and field.name in values
    }


def shards_of_part(part: str, shards: int) -> range:
    """Which of `shards` shards part=K/N makes: the K-th of N runs as equal as can be; all of them for '' and plan.

    Neighbours, since a long video lies in neighbouring shards, and whoever makes them fetches it once.
    """
    number, parts = parse_part(part)
    return range(shards * number // parts, shards * (number + 1) // parts)


def parse_part(part: str) -> tuple[int, int]:
    """(K, N) of part=K/N; (0, 1) of '' and plan. Raises PipelineError for anything else."""
    if part in ("", "plan"):
        return 0, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    if not match or int(match[1]) >= int(match[2]):
        raise PipelineError(f"part={part}: must be plan, or K/N with K from 0 to N-1, such as 0/8")
    return int(match[1]), int(match[2])


def check_preprocess_config(config: PreprocessConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    parse_part(config.part)
    if config.targets.frames > config.clip.frames:
        raise PipelineError(
            f"targets.frames={config.targets.frames}: must be between 0 and the {config.clip.frames} of clip.frames"
        )
    check_gaze(config, config.targets.frames)
    check_corpus(config)


def check_corpus(config: CorpusConfig) -> None:
    """Raise PipelineError, in one line, for clips or an output that cannot work for the input."""
    check_clip_config(config.clip)
    output = Location(config.output)
    if covers(config.input, output / "shards/000000.tar"):
        raise PipelineError(
            f"output={config.output}: lies inside the input, where the next scan would take its tars for videos; "
            "put it beside the input"
        )
