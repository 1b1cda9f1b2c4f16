"""The report of a dataset of features: what is stored, how many tokens that is, what failed, and how fast it went."""

from __future__ import annotations

import time
from pathlib import Path

import jinja2

from jobs import wording
from jobs.pictures import charts, lettering
from pipelines.dataset.features import FeatureDataset
from pipelines.dataset.run_records import read_runs
from pipelines.dataset.versions import versions_of
from pipelines.inspection.feature_survey import FeatureSurvey, survey_features
from pipelines.storage.credentials import redact


def build_features_page(dataset: FeatureDataset) -> str:
    """The report as HTML text: one file, without scripts. Raises PipelineError for what is damaged."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = redact
    survey, vocabulary = survey_features(dataset), dataset.vocabulary
    full = wording.vit_tokens(vocabulary)
    return environment.get_template("feature_report.html").render(
        name=dataset.url.name,
        url=dataset.url,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        encoder=dataset.about["encoder"],
        scales=f"{'+'.join(map(str, vocabulary.scales))}/{vocabulary.patch_size}",
        stored=_stored(dataset),
        survey=survey,
        planned_shards=dataset.shards,
        planned_clips=dataset.plan.clips,
        versions=wording.versions(versions_of(dataset.about, dataset.url)),
        size=wording.byte_size(survey.bytes),
        vit_tokens=full,
        fewer=wording.times(full / survey.per_frame) if survey.per_frame else "",
        tokens_chart=charts.histogram(survey.tokens / survey.frames.clip(min=1), "tokens per frame of a clip", "clips"),
        frames_chart=charts.stacked_columns(
            survey.sample.counts,
            [_colour(level) for level in range(len(vocabulary.scales))],
            [f"scale {scale}" for scale in vocabulary.scales],
            "frame of the clip",
            "tokens per frame, mean",
        ),
        scales_chart=_scales_chart(dataset, survey),
        runs=read_runs(dataset.url),
    )


def _stored(dataset: FeatureDataset) -> list[str]:
    """What is stored of a token and of a clip, in words."""
    width = dataset.width
    words = [f"{name}: {width} numbers a token" for name in dataset.layers]
    words += [f"pooled: {width} numbers a {name}" for name in dataset.pooled]
    return [*words, f"all in {dataset.dtype}"]


def _scales_chart(dataset: FeatureDataset, survey: FeatureSurvey) -> str:
    counts = survey.sample.counts.sum(axis=0)
    total = float(counts.sum()) or 1.0
    bars = [
        (f"scale {scale}", float(count), f"{count / total:.1%} · {count:.1f} a clip", _colour(level))
        for level, (scale, count) in enumerate(zip(dataset.vocabulary.scales, counts, strict=True))
    ]
    return charts.rows(bars, "tokens by scale")


def _colour(level: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*lettering.scale_colour(level))
