"""dataset.json: what the bytes of a dataset depend on, and whether a job would make the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from autogaze.patches import VOCABULARY
from pipelines.dataset import frames
from pipelines.dataset.shards import DATASET_FORMAT, ShardConfig, kind_of
from pipelines.errors import PipelineError
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.preprocess.config import CorpusConfig, PreprocessConfig, dataset_config
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decoder_fingerprint

ConfigT = TypeVar("ConfigT", bound=CorpusConfig)


def describe(config: PreprocessConfig, gazer: ResolvedGaze) -> dict[str, Any]:
    """dataset.json of a job, without what only its plan knows: everything that the dataset's bytes depend on."""
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


def with_own_defaults(config: ConfigT, written: dict[str, Any]) -> ConfigT:
    """The config with the threshold and shard.clips that a dataset was begun with, where none are given: defaults may
    have changed.

    written: its dataset.json. A dataset of another gaze keeps its threshold to itself; `require_same` refuses it.
    """
    own = written.get("config", {})
    if not config.shard.clips and (clips := own.get("shard", {}).get("clips")):
        config = replace(config, shard=ShardConfig(int(clips)))
    if config.threshold is not None or config.gaze != "canvas" or own.get("gaze") != "canvas" or config.draws_lengths:
        return config
    return replace(config, threshold=own.get("threshold"))


def require_same(written: dict[str, Any], described: dict[str, Any], output: str) -> None:
    """Raise PipelineError, naming each field that differs, unless a dataset.json says what `describe` says of a job."""
    if kind_of(written) != kind_of(described):
        raise PipelineError(
            f"output={output}: is a dataset of {kind_of(written)}, not of {kind_of(described)}; choose another output"
        )
    if written.get("format") != described["format"]:
        raise PipelineError(
            f"output={output}: holds format {written.get('format')}, this version writes {described['format']}; finish "
            "it with the version that began it, or choose another output and train on both (data=OLD,NEW)"
        )
    old, new = dict(_flat({name: written.get(name, {}) for name in described})), dict(_flat(described))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differing:
        shown = "; ".join(
            f"{name.removeprefix('config.')} is {old.get(name)!r} there, {new.get(name)!r} here" for name in differing
        )
        raise PipelineError(f"output={output}: made with another config: {shown}. Use the same, or another output")


def decode_config(config: CorpusConfig) -> DecodeConfig:
    """The part of the config that decoding depends on."""
    return DecodeConfig(
        decoder=config.decoder,
        size=VOCABULARY.frame_size,
        timeout_s=config.decoder_timeout_s,
        keep_open=config.clip.tiles == "native",  # whose calls take the frames of a clip or two
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted name, value)."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
