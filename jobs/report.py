"""autogaze report DATASET: one HTML file that shows what a dataset is, how well it was gazed and what failed.

The file holds everything it shows: no network, no script. Numbers of clips come from the indexes, read shard by shard;
only the clips of the gallery and a bounded sample for the token charts are opened.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from rich.console import Console

from autogaze import reconstruction
from autogaze.patches import PatchVocabulary
from jobs.pictures import charts, render
from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.run_records import read_runs
from pipelines.dataset.shards import Dataset, read_members, threshold_of, vocabulary_of
from pipelines.errors import PipelineError
from pipelines.inspection.survey import (
    Survey,
    TokenCounts,
    index_row,
    read_gaze,
    representative,
    sample_gazes,
    take_survey,
)
from pipelines.storage import store, urls
from pipelines.storage.credentials import redact

GALLERY_FRAMES = 8  # shown of each clip


@dataclass
class ReportConfig:
    """Show a dataset as one HTML file."""

    dataset: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset"})
    output: str = field(default="", metadata={"help": "the HTML file (default: <dataset name>-report.html here)"})
    clips: int = field(default=12, metadata={"help": "clips in the gallery, spread from the cheapest to the dearest"})


def run(config: ReportConfig, console: Console) -> str:
    """Write the report; where it is. Raises PipelineError: no dataset, damaged dataset, output not writable."""
    if not config.dataset:
        raise PipelineError("which dataset? autogaze report /data/gaze")
    if config.clips < 0:
        raise PipelineError(f"clips={config.clips}: must be at least 0")
    with console.status("reading the dataset"), one_torch_thread():
        dataset = shards.open_dataset(config.dataset)
        page = build(dataset, config.clips)
    name = dataset.url.rsplit("/", 1)[-1]
    output = urls.normalise(config.output or f"{name}-report.html")
    if urls.is_local(output) and Path(output).is_dir():
        output = urls.join(output, f"{name}-report.html")
    store.publish(page.encode("utf-8", "backslashreplace"), output)
    console.print(f"report: {output}", highlight=False, markup=False, soft_wrap=True)
    return output


def build(dataset: Dataset, clips: int = 12) -> str:
    """The report of a dataset as HTML text."""
    settings = dict(dataset.about.get("config") or {})
    threshold = threshold_of(settings)
    vocabulary = vocabulary_of(dataset.about)
    measure = "predicted loss" if settings.get("gaze") == "policy" else "reconstruction error"
    survey = take_survey(dataset)
    sample = sample_gazes(dataset, survey, vocabulary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = redact
    return environment.get_template("report.html").render(
        name=dataset.url.rsplit("/", 1)[-1],
        url=dataset.url,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        settings=dict(flatten(settings)),
        about=dict(flatten({key: value for key, value in dataset.about.items() if key != "config"})),
        threshold=threshold,
        measure=measure,
        vocabulary=vocabulary,
        palette=[hex_colour(level) for level in range(len(vocabulary.scales))],
        survey=survey,
        planned_shards=dataset.shards,
        planned_clips=len(dataset.plan),
        planned_videos=int(dataset.plan["video"].nunique()),
        ratio_chart=charts.histogram(survey.ratio, "gaze ratio of a clip (% of its patches)", "clips", scale=100),
        error_chart=charts.histogram(
            survey.error,
            f"{measure} of a clip (mean over its frames)",
            "clips",
            mark=None if threshold is None else (threshold, f"threshold {threshold:g}"),
        ),
        sample=sample,
        position_chart=position_chart(sample, vocabulary),
        scale_chart=scale_chart(sample, vocabulary),
        cards=[card(dataset, survey, pick, settings, vocabulary) for pick in representative(survey.ratio, clips)],
        frames_stored=settings.get("frames", "jpeg") != "none",
        runs=read_runs(dataset.url),
    )


def position_chart(sample: TokenCounts, vocabulary: PatchVocabulary) -> str:
    colours = [hex_colour(level) for level in range(len(vocabulary.scales))]
    names = [f"scale {scale}" for scale in vocabulary.scales]
    return charts.stacked_columns(
        sample.counts, colours, names, "frame of the clip", f"patches per frame (of {vocabulary.size}), mean"
    )


def scale_chart(sample: TokenCounts, vocabulary: PatchVocabulary) -> str:
    per_scale = sample.counts.sum(axis=0)
    total = float(per_scale.sum()) or 1.0
    return charts.rows(
        [
            (f"scale {scale}", float(count), f"{count / total:.1%} · {count:.1f} a clip", hex_colour(level))
            for level, (scale, count) in enumerate(zip(vocabulary.scales, per_scale, strict=True))
        ],
        "Patches by scale",
    )


def hex_colour(level: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*render.scale_colour(level))


@dataclass
class Frame:
    """One column of a card; images are data: URLs, or None when frames were not stored."""

    number: int  # in the clip, from 0
    tokens: int
    error: float
    met: bool
    original: str | None
    gazed: str
    rebuilt: str | None


@dataclass
class Card:
    """One clip of the gallery."""

    quantile: float
    row: dict[str, Any]
    frames: list[Frame]

    @property
    def place(self) -> str:
        """Where the clip stands among all, in words."""
        if self.quantile == 0:
            return "cheapest"
        return "dearest" if self.quantile == 1 else f"percentile {self.quantile * 100:.0f}"


def card(
    dataset: Dataset, survey: Survey, pick: tuple[int, float], settings: dict[str, Any], vocabulary: PatchVocabulary
) -> Card:
    """Some frames of one clip beside their gazed patches and what these rebuild."""
    row = index_row(dataset, survey, pick[0])
    members = read_members(dataset, row)
    gaze = read_gaze(members, vocabulary)
    frames = decode_frames(members)
    rebuilt = None
    if frames is not None:  # also of a policy's gaze: what can be seen of the video in the patches it chose
        rebuilt = reconstruction.load("canvas", vocabulary).reconstruct(frames[None], gaze).pixels[0].numpy()
    threshold = threshold_of(settings)
    final, met = gaze.final()[0].tolist(), gaze.met(math.inf if threshold is None else threshold)[0].tolist()
    blank = np.full((vocabulary.frame_size, vocabulary.frame_size, 3), 96, np.uint8)
    shown = np.unique(np.linspace(0, gaze.num_frames - 1, min(GALLERY_FRAMES, gaze.num_frames)).round().astype(int))
    tokens = gaze.frames(0)
    columns = []
    for t in shown.tolist():
        picture = render.gazed_patches(blank if frames is None else frames[t], tokens[t], vocabulary=vocabulary)
        columns.append(
            Frame(
                number=t,
                tokens=len(tokens[t]),
                error=final[t],
                met=met[t],
                original=None if frames is None else data_url(frames[t]),
                gazed=data_url(picture),
                rebuilt=None if rebuilt is None else data_url(rebuilt[t]),
            )
        )
    return Card(pick[1], row, columns)


def data_url(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data: URL."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
