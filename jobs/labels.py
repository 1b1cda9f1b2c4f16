"""`autogaze export-labels DATASET output=labels.json` and `autogaze import-labels FILES data=DATASET output=NEW`.

Gaze in the reference's label format: out of a dataset, for whatever trains on such files; and into a new dataset with
the frames of an old one, from wherever such files come.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.dataset.shards import DATASET_FORMAT, Dataset, vocabulary_of
from pipelines.errors import PipelineError
from pipelines.labels import export as label_export
from pipelines.labels import files, into_dataset, keys
from pipelines.storage import urls


@dataclass
class ExportConfig:
    """Write a dataset's gaze as one label file. `data` must be given."""

    data: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset"})
    output: str = field(default="labels.json", metadata={"help": "the label file, local or s3://"})


@dataclass
class ImportConfig:
    """Make a dataset with the frames of another and the gaze of label files. `labels`, `data`, `output` are needed."""

    labels: str = field(default="", metadata={"help": "label files, with commas; each may be a glob"})
    data: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset whose clips are labelled"})
    output: str = field(default="", metadata={"help": "folder or s3:// prefix of the new dataset"})
    threshold: float | None = field(
        default=None, metadata={"help": "error that frames are held against, in the labels' units (null = data's)"}
    )
    threads: int = field(default=4, metadata={"help": "shards made at once"})


def export(config: ExportConfig, console: Console) -> int:
    """Write the file and say what is in it; the exit status. Raises PipelineError, in one line."""
    if not config.data:
        raise PipelineError("which dataset? autogaze export-labels /data/gaze output=labels.json")
    dataset = shards.open_dataset(config.data)
    output = urls.normalise(config.output)
    if urls.is_local(output) and os.path.isdir(output):
        raise PipelineError(f"output={config.output}: is a folder; give output={config.output.rstrip('/')}/labels.json")
    with _progress(console) as progress, one_torch_thread():
        task = progress.add_task("shards")
        done = label_export.export_labels(
            dataset,
            output,
            vocabulary_of(dataset.about),
            lambda count, total: progress.update(task, completed=count, total=total),
        )
    _say(console, f"{done.clips:,} labels: {output}")
    for reason, count in sorted(done.left_out.items()):
        what = "clips carry no losses, which a label needs" if reason == "without losses" else f"clips are {reason}"
        _say(console, f"left out: {count:,} {what}", "yellow")
    if len(dataset.committed()) < dataset.shards:
        _say(console, f"left out: {dataset.shards - len(dataset.committed()):,} shards are not made yet", "yellow")
    return 0


def import_(config: ImportConfig, console: Console) -> int:
    """Make the dataset, or what of it is missing; the exit status. Raises PipelineError, in one line."""
    for name in ("labels", "data", "output"):
        if not getattr(config, name):
            raise PipelineError(
                f"{name}= is missing: autogaze import-labels labels.json data=/data/gaze output=/data/labelled"
            )
    if config.threads < 1:
        raise PipelineError(f"threads={config.threads}: must be at least 1")
    dataset, output = shards.open_dataset(config.data), urls.normalise(config.output)
    if dataset.about.get("format") != DATASET_FORMAT:
        raise PipelineError(
            f"{dataset.url}: holds format {dataset.about.get('format')}, this version reads {DATASET_FORMAT}; "
            "preprocess again"
        )
    if output == dataset.url:
        raise PipelineError("output and data are one place: the labels make a new dataset")
    vocabulary = vocabulary_of(dataset.about)
    with console.status("reading the labels"):
        found = files.read_labels(files.label_files(config.labels), dataset.plan, vocabulary)
    if not found.gazes:
        key = next(iter(keys.clip_keys(dataset.plan)), "none")
        raise PipelineError(
            f"labels={config.labels}: none is of a clip of {dataset.url}; there a key is {key}, "
            f"in the labels {found.example or 'none'}"
        )
    threshold = _threshold(config, dataset, found, console)
    missing = into_dataset.begin(dataset, output, into_dataset.describe_import(dataset, found, threshold))
    with _progress(console) as progress, one_torch_thread():
        task = progress.add_task("shards", total=len(missing))
        outcomes = into_dataset.make(
            dataset,
            output,
            missing,
            found,
            vocabulary,
            threshold,
            config.threads,
            lambda: progress.advance(task),
        )
    if missing:
        _say(console, ", ".join(f"{outcomes[name]:,} clips {name}" for name in shards.OUTCOMES))
    else:
        _say(console, "nothing to do: all shards are committed")
    if found.unused:
        _say(console, f"not used: {found.unused:,} labels of clips that {dataset.url} does not plan", "yellow")
    _say(console, f"dataset: {output}")
    return 0


def _threshold(config: ImportConfig, dataset: Dataset, found: files.Labels, console: Console) -> float:
    """What `met` is measured against, in the units of the labels' losses."""
    if config.threshold is not None:
        if not (config.threshold >= 0 and math.isfinite(config.threshold)):
            raise PipelineError(f"threshold={config.threshold}: must be a number of at least 0")
        return config.threshold
    threshold, units = (dataset.about.get("config") or {}).get("threshold"), dataset.about.get("units")
    if threshold is None or (found.units is not None and found.units != units):
        raise PipelineError(
            f"threshold= is missing: {dataset.url} has {threshold} in other units ({units}) than the labels' losses "
            f"({found.units or 'not said'}); give it in theirs"
        )
    if found.units is None:
        note = f"the labels do not say their units: frames are held against {threshold:g}, the threshold of data"
        _say(console, f"{note}; give threshold= for another", "yellow")
    return float(threshold)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
