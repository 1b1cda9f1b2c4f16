"""`autogaze report DATASET`: one HTML file that shows what a dataset is, how well it was gazed and what failed.

The file holds everything it shows: no network, no script. Its numbers come from the indexes, read shard by shard; only
the clips of the gallery, and a sample of bounded size for the token charts, are opened. With encoder.checkpoint= some
clips of the gallery also show what a vision transformer sees of full frames and of gazed patches.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import numpy as np
from PIL import Image
from rich.console import Console

from autogaze.patches import PatchVocabulary
from jobs import feature_report, wording
from jobs.pictures import charts, lettering, render
from jobs.threads import one_torch_thread
from pipelines.dataset.features import FeatureDataset, open_any
from pipelines.dataset.run_records import STAGE_OF_PART, read_runs
from pipelines.dataset.shards import Dataset
from pipelines.dataset.versions import versions_of
from pipelines.errors import PipelineError
from pipelines.gazing.settings import Device
from pipelines.inspection.scales import CONVERT_HELP, Convert, check_seeing, require_patches
from pipelines.inspection.survey import (
    Survey,
    TokenCounts,
    index_row,
    representative,
    sample_gazes,
    take_survey,
)
from pipelines.networks.encoders import EncoderConfig, open_encoder
from pipelines.networks.find import require_network
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.credentials import redact
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.gaze import Gaze
    from autogaze.vision import GazedEncoder
    from jobs.feature_maps import FeatureMaps

GALLERY_FRAMES = 8  # shown of each clip


@dataclass
class ReportConfig:
    """Show a dataset as one HTML file."""

    usage: ClassVar[str] = "autogaze report /data/gaze"

    dataset: str = setting("", "folder or s3:// prefix of the dataset", required=True, place="location")
    output: str = setting("", "the HTML file ('' = <dataset name>-report.html here)", place="location")
    clips: int = setting(12, "clips in the gallery, spread from the cheapest to the dearest", at_least=0)
    encoder: EncoderConfig = section(EncoderConfig)
    convert: Convert = setting("", CONVERT_HELP)
    seen: int = setting(3, "clips of the gallery that show features, if there is an encoder", at_least=1)
    device: Device = setting("auto", "encode on auto (cuda where there is one), cpu, cuda or mps")


def run(config: ReportConfig, console: Console) -> str:
    """Write the report; its URL. Raises PipelineError: no dataset, damaged dataset, output not writable."""
    check(config)
    check_seeing(config.encoder, config.convert)
    dataset = open_any(config.dataset)
    with console.status("reading the dataset"), one_torch_thread():
        if isinstance(dataset, FeatureDataset):
            if config.encoder.checkpoint:
                raise PipelineError(
                    f"encoder.checkpoint={config.encoder.checkpoint}: is for the report of a gaze dataset; "
                    f"{dataset.url} holds features that are encoded already"
                )
            page = feature_report.build_features_page(dataset)
        else:
            page = build(dataset, config.clips, _sight(config, dataset))
    name = dataset.url.name
    output = Location(config.output or f"{name}-report.html")
    if output.is_local and Path(output).is_dir():
        output = output / f"{name}-report.html"
    store.publish(page.encode("utf-8", "backslashreplace"), output)
    console.print(f"report: {output}", highlight=False, markup=False, soft_wrap=True)
    return output


@dataclass(frozen=True)
class Sight:
    """An encoder to show features of, how many clips, and what converts gaze of other patches ('' = nothing)."""

    encoder: GazedEncoder
    name: str
    clips: int
    convert: Convert


def _sight(config: ReportConfig, dataset: Dataset) -> Sight | None:
    if not config.encoder.checkpoint:
        return None
    if not dataset.frames_stored:
        raise PipelineError(
            f"{dataset.url}: stores no frames that encoder.checkpoint= could see; preprocess with frames=jpeg"
        )
    require_network(config.encoder.checkpoint, "encoder", "encoder.checkpoint")
    from pipelines.gazing.gazers import device_of  # with torch, which is not needed before

    encoder = open_encoder(config.encoder, device_of(config.device))
    require_patches(config.encoder, encoder.vocabulary, dataset, config.convert)
    return Sight(encoder, redact(config.encoder.checkpoint), config.seen, config.convert)


def build(dataset: Dataset, clips: int = 12, sight: Sight | None = None) -> str:
    """The report of a dataset as HTML text. Raises PipelineError for features that are no numbers."""
    settings, threshold, vocabulary = dataset.config, dataset.threshold, dataset.vocabulary
    measure = "reconstruction error" if dataset.measured else "predicted loss"
    survey = take_survey(dataset)
    sample = sample_gazes(dataset, survey)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = redact
    environment.filters["duration"] = duration
    environment.filters["size"] = wording.byte_size
    environment.filters["times"] = wording.times
    picks = representative(survey.ratio, clips)
    seen = (
        {place for place, _ in representative(survey.ratio[[place for place, _ in picks]], sight.clips)}
        if sight
        else ()
    )
    cards = [card(dataset, survey, *pick, sight if n in seen else None) for n, pick in enumerate(picks)]
    return environment.get_template("report.html").render(
        name=dataset.url.name,
        url=dataset.url,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        settings=dict(flatten(settings)),
        about=dict(flatten({key: value for key, value in dataset.about.items() if key not in ("config", "versions")})),
        threshold=threshold,
        measure=measure,
        vocabulary=vocabulary,
        vit_tokens=wording.vit_tokens(vocabulary),
        palette=[hex_colour(level) for level in range(len(vocabulary.scales))],
        survey=survey,
        planned_shards=dataset.shards,
        planned_clips=dataset.plan.clips,
        planned_videos=dataset.plan.videos,
        versions=wording.versions(versions_of(dataset.about, dataset.url)),
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
        cards=cards,
        sight=sight,
        seen=sum(card.agreement is not None for card in cards),
        frames_stored=dataset.frames_stored,
        runs=read_runs(dataset.url),
        stage_of_part=STAGE_OF_PART,
    )


def duration(seconds: float) -> str:
    """A time in words: 3 h 05 min, 4 min 10 s, 5.2 s."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole:02d} s" if minutes else f"{seconds:.1f} s"


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
    return "#{:02x}{:02x}{:02x}".format(*lettering.scale_colour(level))


@dataclass
class Frame:
    """One column of a card. Images are data: URLs; None when frames are not stored."""

    number: int  # in the clip, from 0
    tokens: int
    error: float
    met: bool
    original: str | None
    gazed: str
    rebuilt: str | None
    full_features: str | None = None
    gazed_features: str | None = None
    agreement: float | None = None  # cosine of the two


@dataclass
class Card:
    """One clip of the gallery."""

    quantile: float
    row: dict[str, Any]
    frames: list[Frame]
    agreement: float | None = None  # cosine of the features' maps, mean over all frames; None: none are shown
    encoded: int = 0  # patches that the encoder saw
    origins: list[int] | None = None  # patches of a verified gaze by prefix, continuation and greedy search

    @property
    def place(self) -> str:
        """Where the clip stands among all, in words."""
        if self.quantile == 0:
            return "cheapest"
        return "dearest" if self.quantile == 1 else f"percentile {self.quantile * 100:.0f}"


def card(dataset: Dataset, survey: Survey, place: int, quantile: float, sight: Sight | None = None) -> Card:
    """Some frames of one clip, beside their gazed patches, what the canvas rebuilds from these, and what sight shows.

    place: of the clip in the survey. quantile: where it stands among all, 0 to 1.
    """
    from autogaze import reconstruction  # here, not above: a place that is no dataset is refused without torch

    vocabulary, row = dataset.vocabulary, index_row(dataset, survey, place)
    members = dataset.read_clip(row)
    frames, gaze = dataset.frames_of(row, members), dataset.gaze_of(row, members)
    rebuilt = None
    if frames is not None:  # the canvas rebuilds a policy's gaze too: it shows what of the video its patches hold
        rebuilt = reconstruction.load("canvas", vocabulary).reconstruct(frames[None], gaze).pixels[0].numpy()
    maps = None
    if sight is not None and frames is not None:
        maps = _maps(sight, frames, gaze, str(row["clip"]))
    final, met = gaze.final()[0].tolist(), gaze.met(dataset.stops)[0].tolist()
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
                full_features=None if maps is None else data_url(maps.full[t], lossless=True),
                gazed_features=None if maps is None else data_url(maps.gazed[t], lossless=True),
                agreement=None if maps is None else maps.cosine[t],
            )
        )
    origins = None if gaze.origins is None else gaze.origins[0].sum(dim=0).tolist()
    made = Card(quantile, row, columns, origins=origins)
    return made if maps is None else replace(made, agreement=maps.mean, encoded=maps.tokens)


def _maps(sight: Sight, frames: np.ndarray, gaze: Gaze, clip: str) -> FeatureMaps:
    from jobs.feature_maps import feature_maps

    try:
        return feature_maps(sight.encoder, frames, gaze, sight.convert)
    except ValueError as error:
        raise PipelineError(f"encoder.checkpoint={sight.name}: {clip}: {error}") from error


def data_url(image: np.ndarray, lossless: bool = False) -> str:
    """uint8 [H, W, 3] as a data: URL."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "WEBP", quality=80, method=4, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{prefix}{name}", f"{len(value):,}, which dataset.json lists"
        else:
            yield f"{prefix}{name}", value
