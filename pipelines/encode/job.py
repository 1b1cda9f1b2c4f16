"""A job of encode: from a gaze dataset, whose plan it takes, or from videos, which it plans as preprocess does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.corpus.passed import PassedOver
from pipelines.corpus.plan_reader import DatasetPlan, VideoPlan
from pipelines.dataset import shards
from pipelines.dataset.features import FEATURE_INDEX_SCHEMA, FeatureDataset
from pipelines.dataset.shards import Dataset, read_about
from pipelines.encode.config import EncodeConfig, check_encode_config
from pipelines.encode.description import describe_features, require_same_features
from pipelines.encode.encoders import ResolvedEncoder, resolve_encoder
from pipelines.encode.source import open_source
from pipelines.errors import PipelineError
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.preprocess.description import with_own_defaults
from pipelines.preprocess.inputs import Progress, has_new_input, how_to_grow, planned_input, require_input
from pipelines.preprocess.job import resolve_corpus_gaze
from pipelines.preprocess.plan_corpus import plan_corpus, plan_growth
from pipelines.preprocess.shard_job import (
    ShardJob,
    missing_shards,
    parts_to_make,
    publish_about,
    require_new,
)
from pipelines.storage import store
from pipelines.storage.location import Location


@dataclass(frozen=True)
class EncodeJob(ShardJob):
    """A planned job of encode.

    Attributes:
        encoder: what encodes.
        gazer: what gazes at the videos; None where `source`, a gaze dataset, is encoded.
    """

    schema: ClassVar[pa.Schema] = FEATURE_INDEX_SCHEMA
    config: EncodeConfig
    encoder: ResolvedEncoder
    gazer: ResolvedGaze | None
    source: Dataset | None

    @property
    def keeps_videos(self) -> bool:
        """Whether nodes keep copies of remote videos: where these are decoded."""
        return (self.source is None or not self.source.frames_stored) and super().keeps_videos


@dataclass(frozen=True)
class _Parts:
    """What a config names, opened."""

    config: EncodeConfig
    encoder: ResolvedEncoder
    gazer: ResolvedGaze | None
    source: Dataset | None
    newer: Dataset | None = None
    """The gaze dataset at its newest whole version, where `source` is one before."""

    @property
    def about(self) -> dict[str, Any]:
        return describe_features(self.config, self.encoder, self.gazer, self.source)

    def job(self, plan: DatasetPlan, passed: PassedOver | None = None, notice: str = "") -> EncodeJob:
        config, output = self.config, Location(self.config.output)
        missing = missing_shards(output, plan, config.part)
        parts = (self.encoder, self.gazer, self.source)
        return EncodeJob(config, output, plan, missing, *parts, passed=passed or PassedOver(), notice=notice)


def resume_encode(config: EncodeConfig) -> EncodeJob | None:
    """The job whose plan `output` holds; None when there is no plan yet, or it is to grow first.

    Needs no Ray and writes nothing.

    Raises PipelineError: input or gaze dataset missing, unfinished, or of scales that the encoder does not have; an
    output made with another config, encoder, gaze or software; a checkpoint that does not load.
    """
    check_encode_config(config)
    output = Location(config.output)
    written = read_about(output) if store.exists(output / "dataset.json") else None
    if written is not None and config.input:
        config = with_own_defaults(config, written)
    parts = _open(config, written)
    if written is None:
        require_new(output)
        if config.input:
            require_input(config)
        return None
    require_same_features(written, parts.about, config)
    dataset = FeatureDataset(output, written)
    grows = config.grow and config.part in ("", "plan")
    if config.input:
        if grows and has_new_input(config, dataset):
            return None
        return parts.job(dataset.plan, *planned_input(config, dataset))
    if parts.newer is None:
        return parts.job(dataset.plan)
    if grows:
        return None
    more = parts.newer.shards - dataset.shards
    return parts.job(dataset.plan, notice=f"{parts.newer.url}: has grown by {more:,} shards; {how_to_grow(config)}")


def plan_encode(
    config: EncodeConfig, write: bool = True, on_progress: Progress = lambda done, total: None
) -> EncodeJob:
    """Plan a new dataset, or with `grow` what is new for the one that is there; write the plan into `output` unless
    `write` is False. Videos need a running Ray.

    A gaze dataset's plan is taken as it is, so shard k is made of its shard k. Raises PipelineError.
    """
    output = Location(config.output)
    written = read_about(output) if config.grow and store.exists(output / "dataset.json") else None
    if written is not None and config.input:
        config = with_own_defaults(config, written)
    parts = _open(config, written)
    if parts.source is not None:
        return _plan_of_gaze(replace(parts, source=parts.newer or parts.source, newer=None), written, write)
    if written is not None:
        planned = plan_growth(config, FeatureDataset(output, written), write, on_progress)
    else:
        planned = plan_corpus(config, parts.about if write else None, on_progress)
    return parts.job(planned.plan, planned.passed, planned.notice)


def _plan_of_gaze(parts: _Parts, written: dict[str, Any] | None, write: bool) -> EncodeJob:
    """Take the plan of the gaze dataset; of features that are there already, what is new in it.

    written: their dataset.json.
    """
    output, source = Location(parts.config.output), parts.source
    assert source is not None
    before = None if written is None else FeatureDataset(output, written).plan
    if write:
        old = len(before.parts) if isinstance(before, VideoPlan) else 0
        shards.copy_planned(source.url, output, ["plan.parquet"], old)
        about = parts.about | {name: source.about.get(name) for name in ("videos", "plan")}
        about |= {name: value for name, value in source.about.items() if name == "versions"}
        publish_about(output, about, source.plan)
    if before is None:
        return parts.job(source.plan)
    more = f"{source.plan.clips - before.clips:,} clips in {source.shards - before.shards:,} new shards"
    version = len(source.about["versions"])
    return parts.job(source.plan, notice=f"the features grow by {more}: version {version}")


def missing_encode_parts(config: EncodeConfig, parts: int) -> list[int]:
    """The K of part=K/`parts` that have shards to make: see `parts_to_make`. Raises as `resume_encode` does."""
    return parts_to_make(config, parts, resume_encode)


def _open(config: EncodeConfig, written: Mapping[str, Any] | None) -> _Parts:
    """written: dataset.json of the features; None where there are none yet."""
    encoder = resolve_encoder(config)
    if config.input:
        gazer = resolve_corpus_gaze(config)
        parts, gazed, key = _Parts(config, encoder, gazer, None), gazer.vocabulary, f"gaze={config.gaze}"
    else:
        source, newer = open_source(config, written)
        parts, gazed, key = _Parts(config, encoder, None, source, newer), source.vocabulary, f"data={config.data}"
    if gazed != encoder.vocabulary and config.convert != "coverage":
        scales, patch = ("+".join(map(str, gazed.scales)), gazed.patch_size)
        raise PipelineError(
            f"{key}: the gaze is of scales {scales}/{patch}, the encoder reads {config.encoder.scales}/"
            f"{encoder.vocabulary.patch_size}; give encoder.scales that agree, or convert=coverage"
        )
    return parts
