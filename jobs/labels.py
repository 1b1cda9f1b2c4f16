"""`autogaze export-labels DATASET output=labels.json` and `autogaze import-labels FILES data=DATASET output=NEW`.

Gaze in the reference's label format: out of a dataset, for code that trains on such files; and out of such files into a
new dataset that has the frames of an old one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.threads import one_torch_thread
from jobs.wording import plural
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.dataset.units import units_fit, units_of
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import TeachersConfig
from pipelines.labels import export as label_export
from pipelines.labels import files, into_dataset, keys
from pipelines.networks.open import open_reconstructor
from pipelines.schema import check, section, setting
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.reconstruction.base import Reconstructor


@dataclass
class ExportConfig:
    """Write a dataset's gaze as one label file."""

    usage: ClassVar[str] = "autogaze export-labels /data/gaze output=labels.json"

    data: str = setting("", "folder or s3:// prefix of the dataset", required=True, place="location")
    output: str = setting("labels.json", "the label file, local or s3://", place="location")
    keys: Literal["short", "full"] = setting(
        "short", "short: videos by the last three parts of their paths, as the reference; full: by all of it"
    )


@dataclass
class ImportConfig:
    """Make a dataset with the frames of another and the gaze of label files."""

    usage: ClassVar[str] = "autogaze import-labels labels.json data=/data/gaze output=/data/labelled"

    labels: str = setting("", "label files, with commas; each may be a glob", required=True, place="locations")
    data: str = setting(
        "", "folder or s3:// prefix of the dataset whose clips are labelled", required=True, place="location"
    )
    output: str = setting("", "folder or s3:// prefix of the new dataset", required=True, place="location")
    threshold: float | None = setting(
        None, "error that frames are held against, in the labels' units (null = data's)", at_least=0
    )
    measure: str = setting(
        "",
        "measure the error after each patch by this, in place of the labels' losses: canvas, a run or its folder",
        place="reconstructor",
    )
    teachers: TeachersConfig = section(TeachersConfig)
    threads: int = setting(4, "shards made at once", at_least=1)


def export(config: ExportConfig, console: Console) -> int:
    """Write the file and say what is in it; the exit status. Raises PipelineError, in one line."""
    check(config)
    dataset = shards.open_dataset(config.data)
    output = Location(config.output)
    if output.is_local and os.path.isdir(output):
        raise PipelineError(f"output={config.output}: is a folder; give output={config.output.rstrip('/')}/labels.json")
    with _progress(console) as progress, one_torch_thread():
        task = progress.add_task("shards")
        done = label_export.export_labels(
            dataset,
            output,
            config.keys == "full",
            lambda count, total: progress.update(task, completed=count, total=total),
        )
    _say(console, f"{plural(done.clips, 'label')}: {output}")
    for reason, count in sorted(done.left_out.items()):
        what = plural(count, "clip carries", "clips carry") + " no losses, which a label needs"
        if reason != "without losses":
            what = f"{plural(count, 'clip is', 'clips are')} {reason}"
        _say(console, f"left out: {what}", "yellow")
    if len(dataset.committed()) < dataset.shards:
        missing = plural(dataset.shards - len(dataset.committed()), "shard is", "shards are")
        _say(console, f"left out: {missing} not made yet", "yellow")
    return 0


def import_(config: ImportConfig, console: Console) -> int:
    """Make the dataset, or its missing shards; the exit status. Raises PipelineError, in one line."""
    check(config)
    dataset, output = shards.open_dataset(config.data), Location(config.output)
    if dataset.about.get("format") not in shards.READABLE_FORMATS:
        raise PipelineError(
            f"{dataset.url}: holds format {dataset.about.get('format')}, this version reads "
            + " and ".join(map(str, shards.READABLE_FORMATS))
            + "; preprocess again"
        )
    if output == dataset.url:
        raise PipelineError("output and data are one place: the labels make a new dataset")
    with console.status("reading the labels"):
        measurer = _measurer(config, dataset)
        names = files.label_files(config.labels)
        found = files.read_labels(names, dataset.plan, dataset.vocabulary, with_losses=measurer is None)
    with found as labels:
        return _import(config, dataset, output, labels, measurer, console)


def _import(
    config: ImportConfig,
    dataset: Dataset,
    output: Location,
    labels: files.Labels,
    measurer: Reconstructor | None,
    console: Console,
) -> int:
    """Make the dataset of labels that have been read; the exit status. Raises PipelineError, in one line."""
    if not labels.used:
        raise PipelineError(
            f"labels={config.labels}: none is of a clip of {dataset.url}; there a key is {_some_key(dataset)}, "
            f"in the labels {labels.example or 'none'}"
        )
    units = labels.units if measurer is None else measurer.units
    threshold = _threshold(config, dataset, units, console)
    missing = into_dataset.begin(dataset, output, into_dataset.describe_import(dataset, labels, threshold, measurer))
    with _progress(console) as progress, one_torch_thread():
        task = progress.add_task("shards", total=len(missing))
        outcomes = into_dataset.make(
            dataset,
            output,
            missing,
            labels,
            threshold,
            config.threads,
            lambda: progress.advance(task),
            measurer,
        )
    if missing:
        _say(console, ", ".join(f"{plural(outcomes[name], 'clip')} {name}" for name in shards.OUTCOMES))
    else:
        _say(console, "nothing to do: all shards are committed")
    if labels.unused:
        _say(console, f"not used: {plural(labels.unused, 'label')} of clips that {dataset.url} does not plan", "yellow")
    _say(console, f"dataset: {output}")
    return 0


def _some_key(dataset: Dataset) -> str:
    """The key of a clip of a dataset, as an example."""
    if not dataset.shards:
        return "none"
    row = dataset.plan.clips_of(0).iloc[0]
    return keys.clip_key(row["video"], int(row["start"]), row["tile"])


def _measurer(config: ImportConfig, dataset: Dataset) -> Reconstructor | None:
    """What measures the labels' errors; None where they bring losses along."""
    if not config.measure:
        return None
    if not dataset.frames_stored:
        raise PipelineError(f"measure={config.measure}: {dataset.url} stores no frames to measure an error on")
    return open_reconstructor(
        config.measure, "measure", vocabulary=dataset.vocabulary, teachers=config.teachers.given() or None
    )


def _threshold(config: ImportConfig, dataset: Dataset, own: str | None, console: Console) -> float:
    """The error that frames are held against. own: the units of the labels' losses; None: they do not say."""
    if config.threshold is not None:
        return config.threshold
    threshold, units = dataset.config.get("threshold"), units_of(dataset.about)
    if threshold is None or (own is not None and not units_fit(own, units)):
        raise PipelineError(
            f"threshold= is missing: {dataset.url} has {threshold} in other units ({units}) than the labels' losses "
            f"({own or 'not said'}); give it in theirs"
        )
    if own is None:
        note = f"the labels do not say their units: frames are held against {threshold:g}, the threshold of data"
        _say(console, f"{note}; give threshold= for another", "yellow")
    return float(threshold)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
