"""`autogaze evaluate DATASET reconstructor=NAME`: how much error each way of gazing leaves at each gazing ratio.

For the gaze the dataset stores, a policy, greedy, frame difference, coarse to fine and random patches: a table (the
layouts of the paper's figure 10 and table 3), and evaluate.json, .csv, .svg and .png in a folder.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autogaze import reconstruction
from autogaze.model import AutoGaze
from autogaze.reconstruction.base import Reconstructor
from jobs.pictures.curves import PlottedSeries, draw_curves
from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.gazing.gazers import device_of
from pipelines.gazing.reconstructor import TeachersConfig
from pipelines.gazing.settings import Device
from pipelines.inspection.evaluate import METHODS, POLICY, Curve, Point, measure_curves, sample_clips
from pipelines.inspection.policy_gaze import OwnLimits, measure_own_limits
from pipelines.networks.open import open_policy, open_reconstructor
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.credentials import redact
from pipelines.storage.location import Location


@dataclass
class EvaluateConfig:
    """Error against gazing ratio on a dataset."""

    usage: ClassVar[str] = "autogaze evaluate /data/gaze"

    data: str = setting("", "folder or s3:// prefix of a dataset with stored frames", required=True, place="location")
    output: str = setting("", "folder for the results ('' = <dataset name>-evaluate here)", place="location")
    reconstructor: str = setting(
        "canvas", "what measures the error: canvas, a run that trains one, or its folder", place="reconstructor"
    )
    policy: str = setting(
        "", "a policy to measure beside them: a run that trains one, its folder, or a hub id", place="policy"
    )
    teachers: TeachersConfig = section(TeachersConfig)
    ratios: str = setting("0.01,0.02,0.05,0.1,0.2", "gazing ratios, with commas")
    methods: str = setting(",".join(METHODS), "what is compared, with commas; policy= is always added")
    threshold: float | None = setting(
        None, "error to find the ratio for (null = the dataset's, if in the same units)", at_least=0
    )
    clips: int = setting(64, "clips looked at, spread over the shards", at_least=1)
    seed: int = setting(0, "of the choice of clips and of the random patches", at_least=0)
    batch: int = setting(8, "clips handled at once", at_least=1)
    device: Device = setting("auto", "auto (cuda where there is one), cpu, cuda or mps")


def run(config: EvaluateConfig, console: Console) -> int:
    """Measure, print the table and write the files; the exit status.

    Raises PipelineError, in one line: a value that cannot work, no dataset, no frames in it, nothing ok in it.
    """
    ratios, methods = _check(config)
    dataset = shards.open_dataset(config.data)
    if not dataset.frames_stored:
        raise PipelineError(f"{dataset.url}: stores no frames to measure an error on; preprocess with frames=jpeg")
    device = device_of(config.device)
    reconstructor = _load(config, dataset, device)
    policy = _policy(config, dataset, device)
    output = Location(config.output or dataset.url.name + "-evaluate")
    rows = sample_clips(dataset, config.clips, config.seed)
    patches = rows[0]["frames"] * reconstructor.vocabulary.size
    if not round(ratios[0] * patches):
        raise PipelineError(
            f"ratios={config.ratios}: {ratios[0]:g} of a clip's {patches} patches is none; "
            f"give {1 / patches:.2g} or more"
        )
    store.require_writable(output)
    threshold = _threshold(config, dataset, reconstructor)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        one_torch_thread(),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("clips", total=len(rows) * (1 if policy is None else 2))
        curves = measure_curves(
            dataset,
            rows,
            reconstructor,
            ratios,
            methods,
            seed=config.seed,
            batch=config.batch,
            device=device,
            policy=policy,
            on_clips=lambda count: progress.advance(task, count),
        )
        own = None
        if policy is not None:
            own = measure_own_limits(
                dataset,
                rows,
                policy,
                reconstructor,
                threshold if config.threshold is not None else policy.config.loss_threshold,
                batch=config.batch,
                device=device,
                on_clips=lambda count: progress.advance(task, count),
            )
    names = {method: _name(method, dataset) for method in methods}
    for name, data in _files(config, dataset, reconstructor, rows, curves, threshold, names, own).items():
        store.publish(data, output / name)
    _show(console, dataset, reconstructor, len(rows), curves, ratios, threshold, names)
    if own is not None:
        _say(console, _own_limits(own, own.threshold == threshold))
    _say(console, f"results: {output}")
    return 0


def _check(config: EvaluateConfig) -> tuple[list[float], list[str]]:
    """The ratios and methods asked for. Raises PipelineError for the first value that cannot work."""
    check(config)
    try:
        ratios = sorted({float(text) for text in config.ratios.split(",")})
    except ValueError as error:
        raise PipelineError(f"ratios={config.ratios}: numbers with commas expected, such as 0.01,0.05") from error
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise PipelineError(f"ratios={config.ratios}: each must be more than 0 and at most 1")
    methods = list(dict.fromkeys(text.strip() for text in config.methods.split(",")))
    if config.policy and POLICY not in methods:
        methods.insert(1, POLICY)
    for method in methods:
        if method == POLICY and not config.policy:
            raise PipelineError(f"methods={config.methods}: policy needs one; give policy=RUN, its folder or a hub id")
        if method not in (*METHODS, POLICY):
            raise PipelineError(f"methods={config.methods}: {method or 'nothing'} is not one of {', '.join(METHODS)}")
    if config.device == "mps" and config.reconstructor == "canvas":
        raise PipelineError("device=mps: canvas computes in float64, which mps does not have; use device=cpu")
    if config.reconstructor == "canvas" and config.teachers.given():
        raise PipelineError("teachers.* is set, but canvas has none; leave it out")
    return ratios, methods


def _load(config: EvaluateConfig, dataset: Dataset, device: str) -> Reconstructor:
    return open_reconstructor(
        config.reconstructor,
        "reconstructor",
        vocabulary=dataset.vocabulary,
        teachers=config.teachers.given() or None,
        device=device,
    )


def _policy(config: EvaluateConfig, dataset: Dataset, device: str) -> AutoGaze | None:
    if not config.policy:
        return None
    policy = open_policy(config.policy, "policy", device=device)
    if policy.vocabulary != dataset.vocabulary:
        raise PipelineError(
            f"policy={config.policy}: gazes at {policy.vocabulary}, the dataset has {dataset.vocabulary}"
        )
    return policy


def _own_limits(own: OwnLimits, same_units: bool) -> str:
    """One line: what the policy does where it ends frames itself. same_units: its threshold is of measured errors."""
    text = f"the policy by itself: {_percent(own.ratio)} of the patches, error {own.error:.4f}"
    if own.threshold is None:
        return text + " (its checkpoint names no threshold)"
    text += f"; it ends a frame where it predicts {own.threshold:g}, and predicts {own.predicted:.4f} on average"
    return text + (f"; {own.met:.0%} of frames are measured at or under that" if same_units else "")


def _threshold(config: EvaluateConfig, dataset: Dataset, reconstructor: Reconstructor) -> float | None:
    """The error to find the ratio for; None where the dataset's threshold measures something else."""
    if config.threshold is not None:
        return config.threshold
    stated = dataset.config.get("threshold")
    # Datasets of format 1 name no units; all of them are of the canvas.
    units = dataset.about.get("units", reconstruction.load("canvas").units)
    return float(stated) if stated is not None and units == reconstructor.units else None


def _name(method: str, dataset: Dataset) -> str:
    return f"stored ({dataset.config.get('gaze', 'gaze')})" if method == "stored" else method.replace("_", " ")


def _needed(curve: Curve, threshold: float) -> str:
    """'3.1 %', '≤ 1 %' or '> 20 %'."""
    ratio = curve.needed(threshold)
    if ratio is None:
        return f"> {_percent(curve.points[-1].ratio)}"
    return ("≤ " if curve.points[0].error <= threshold else "") + _percent(ratio)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _place(point: Point) -> tuple[float, float, float | None]:
    return point.ratio, point.error, point.standard_error


def _cell(point: Point) -> str:
    """'0.0512 ±0.0021', and the ratio where it differs from the column's."""
    text = f"{point.error:.4f}" + ("" if point.standard_error is None else f" ±{point.standard_error:.4f}")
    same = point.asked is None or abs(point.ratio / point.asked - 1) < 0.05
    return text if same else f"{text} at {_percent(point.ratio)}"


def _show(
    console: Console,
    dataset: Dataset,
    reconstructor: Reconstructor,
    clips: int,
    curves: list[Curve],
    ratios: list[float],
    threshold: float | None,
    names: dict[str, str],
) -> None:
    table = Table(
        title=f"{reconstructor.name} error at each gazing ratio, mean of {clips} clips ± its standard error",
        title_justify="left",
    )
    table.add_column("ratio")
    for curve in curves:
        table.add_column(names[curve.method], justify="right")
    for ratio in ratios:  # a row each: there are always as few columns as methods, which fit a narrow terminal
        cells = [[_cell(point) for point in curve.points if point.asked == ratio] for curve in curves]
        table.add_row(_percent(ratio), *(cell[0] if cell else "" for cell in cells))
    table.add_row(f"as stored ({_percent(curves[0].as_stored.ratio)})", *(_cell(curve.as_stored) for curve in curves))
    if threshold is not None:
        table.add_row(f"ratio for {threshold:g}", *(_needed(curve, threshold) for curve in curves))
    console.print(table)
    _say(console, f"error: {reconstructor.units}")
    if threshold is None:
        _say(
            console,
            f"the dataset's threshold measures something else ({dataset.about.get('units')}); "
            "give threshold= to see the ratio needed for an error",
            "yellow",
        )


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _files(
    config: EvaluateConfig,
    dataset: Dataset,
    reconstructor: Reconstructor,
    rows: list[dict[str, Any]],
    curves: list[Curve],
    threshold: float | None,
    names: dict[str, str],
    own: OwnLimits | None,
) -> dict[str, bytes]:
    """evaluate.json, .csv, .svg and .png."""
    results = {
        "dataset": redact(dataset.url),
        "plan": dataset.about.get("plan"),
        "gaze": dataset.config.get("gaze"),
        "models": dataset.about.get("models"),
        "reconstructor": {
            "name": reconstructor.name,
            "fingerprint": reconstructor.fingerprint,
            "units": reconstructor.units,
        },
        "threshold": threshold,
        "seed": config.seed,
        "clips": [row["clip"] for row in rows],
        "frames": rows[0]["frames"],
        "methods": {
            curve.method: {
                "points": [asdict(point) for point in curve.points],
                "with_stored_lengths": asdict(curve.as_stored),
                "ratio_for_threshold": None if threshold is None else curve.needed(threshold),
            }
            for curve in curves
        },
    }
    if own is not None:
        results["policy"] = asdict(own)
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["method", "asked", "ratio", "error", "standard_error", "clips"])
    for curve in curves:
        for point in [*(point for point in curve.points if point.asked is not None), curve.as_stored]:
            writer.writerow([curve.method, point.asked, point.ratio, point.error, point.standard_error, len(rows)])
    plot = draw_curves(
        [PlottedSeries(names[c.method], list(map(_place, c.points)), _place(c.as_stored)) for c in curves],
        sorted({point.asked for curve in curves for point in curve.points if point.asked is not None}),
        f"{dataset.url.rsplit('/', 1)[-1]}: error at each gazing ratio, mean of {len(rows)} clips",
        "share of all patches that is gazed at (logarithmic)\n"
        "marks beside the lines: every frame has as many patches as in the stored gaze",
        f"{reconstructor.name} error ({reconstructor.units})",
        None if threshold is None else (threshold, "threshold"),
        (curves[0].as_stored.ratio, "stored"),
    )
    return {
        "evaluate.json": json.dumps(results, indent=1).encode() + b"\n",
        "evaluate.csv": sheet.getvalue().encode(),
        "evaluate.svg": plot.svg,
        "evaluate.png": plot.png,
    }
