"""`autogaze evaluate DATASET`: how much each way of gazing loses at each gazing ratio.

By reconstruction error (the layouts of the paper's figure 10 and table 3), and with encoder.checkpoint= by what a
vision transformer's features of gazed patches lose: tables, and files in a folder. Torch is imported when the settings
are known to be right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.dataset.units import units_fit, units_of
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import TeachersConfig
from pipelines.gazing.settings import Device
from pipelines.inspection.methods import METHODS, OF_FEATURES, POLICY
from pipelines.inspection.sampling import sample_clips
from pipelines.inspection.scales import CONVERT_HELP, Convert, check_seeing, require_patches
from pipelines.networks.encoders import EncoderConfig, open_encoder
from pipelines.networks.find import require_network
from pipelines.networks.open import open_policy, open_reconstructor
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.credentials import redact
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.model import AutoGaze
    from autogaze.reconstruction.base import Reconstructor
    from autogaze.vision import GazedEncoder


@dataclass
class EvaluateConfig:
    """Reconstruction error, and agreement of features, against gazing ratio on a dataset."""

    usage: ClassVar[str] = "autogaze evaluate /data/gaze"

    data: str = setting("", "folder or s3:// prefix of a dataset with stored frames", required=True, place="location")
    output: str = setting("", "folder for the results ('' = <dataset name>-evaluate here)", place="location")
    reconstructor: str = setting(
        "canvas", "what measures the error: canvas, a run that trains one, or its folder", place="reconstructor"
    )
    policy: str = setting(
        "", "a policy to measure beside them: a run that trains one, its folder, or a hub id", place="policy"
    )
    encoder: EncoderConfig = section(EncoderConfig)
    teacher: str = setting(
        "",
        "whose features of full frames are compared with: what encoder was trained from ('' = encoder)",
        place="encoder",
    )
    convert: Convert = setting("", CONVERT_HELP)
    teachers: TeachersConfig = section(TeachersConfig)
    ratios: str = setting("0.01,0.02,0.05,0.1,0.2", "gazing ratios, with commas")
    methods: str = setting(
        "", f"what is compared, with commas ('' = {','.join(METHODS)}; with an encoder also {','.join(OF_FEATURES)})"
    )
    threshold: float | None = setting(
        None, "error to find the ratio for (null = the dataset's, if in the same units)", at_least=0
    )
    clips: int = setting(64, "clips looked at, spread over the shards", at_least=1)
    seed: int = setting(0, "of the choice of clips and of the random patches", at_least=0)
    batch: int = setting(8, "clips handled at once", at_least=1)
    device: Device = setting("auto", "auto (cuda where there is one), cpu, cuda or mps")


def check_evaluate(config: EvaluateConfig) -> tuple[list[float], list[str]]:
    """The ratios and methods asked for. Raises PipelineError for the first value that cannot work."""
    check(config)
    try:
        ratios = sorted({float(text) for text in config.ratios.split(",")})
    except ValueError as error:
        raise PipelineError(f"ratios={config.ratios}: numbers with commas expected, such as 0.01,0.05") from error
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise PipelineError(f"ratios={config.ratios}: each must be more than 0 and at most 1")
    sees = bool(config.encoder.checkpoint)
    if config.device == "mps" and (sees or config.reconstructor == "canvas"):
        raise PipelineError("device=mps: canvas computes in float64, which mps does not have; use device=cpu")
    if config.reconstructor == "canvas" and config.teachers.given():
        raise PipelineError("teachers.* is set, but canvas has none; leave it out")
    check_seeing(config.encoder, config.convert)
    if config.teacher and not sees:
        raise PipelineError(f"teacher={config.teacher}: is compared with an encoder; give encoder.checkpoint=")
    return ratios, _methods(config, sees)


def _methods(config: EvaluateConfig, sees: bool) -> list[str]:
    known = (*METHODS, *(OF_FEATURES if sees else ()))
    methods = list(dict.fromkeys(text.strip() for text in config.methods.split(","))) if config.methods else [*known]
    if config.policy and POLICY not in methods:
        methods.insert(1, POLICY)
    for method in methods:
        if method == POLICY and not config.policy:
            raise PipelineError(f"methods={config.methods}: policy needs one; give policy=RUN, its folder or a hub id")
        if method in OF_FEATURES and not sees:
            raise PipelineError(f"methods={config.methods}: {method} is measured by features; give encoder.checkpoint=")
        if method not in (*known, POLICY):
            raise PipelineError(f"methods={config.methods}: {method or 'nothing'} is not one of {', '.join(known)}")
    return methods


def run(config: EvaluateConfig, console: Console) -> int:
    """Measure, print the tables and write the files; the exit status.

    Raises PipelineError, in one line: a value that cannot work, no dataset, no frames in it, nothing ok in it.
    """
    ratios, methods = check_evaluate(config)
    dataset = shards.open_dataset(config.data)
    if not dataset.frames_stored:
        raise PipelineError(f"{dataset.url}: stores no frames to measure an error on; preprocess with frames=jpeg")
    if config.reconstructor != "canvas":
        require_network(config.reconstructor, "reconstructor", "reconstructor")
    if config.policy:
        require_network(config.policy, "policy", "policy")
    if config.encoder.checkpoint:
        require_network(config.encoder.checkpoint, "encoder", "encoder.checkpoint")
    if config.teacher:
        require_network(config.teacher, "encoder", "teacher")
    rows = sample_clips(dataset, config.clips, config.seed)
    patches = rows[0]["frames"] * dataset.vocabulary.size
    if not round(ratios[0] * patches):
        raise PipelineError(
            f"ratios={config.ratios}: {ratios[0]:g} of a clip's {patches} patches is none; "
            f"give {1 / patches:.2g} or more"
        )
    output = Location(config.output or dataset.url.name + "-evaluate")
    with one_torch_thread():
        _evaluate(config, dataset, rows, ratios, methods, output, console)
    console.print(f"results: {output}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _evaluate(
    config: EvaluateConfig,
    dataset: Dataset,
    rows: list[dict[str, Any]],
    ratios: list[float],
    methods: list[str],
    output: Location,
    console: Console,
) -> None:
    # Here, not above: torch takes seconds to load, and a wrong setting is refused at once.
    from autogaze import reconstruction
    from jobs.error_results import ErrorResults, rebuilt
    from jobs.feature_results import FeatureResults
    from pipelines.gazing.gazers import device_of
    from pipelines.inspection.evaluate import ErrorMeasure
    from pipelines.inspection.features import FeatureMeasure
    from pipelines.inspection.gazes import Chooser
    from pipelines.inspection.policy_gaze import measure_own_limits
    from pipelines.inspection.reading import read_batches

    device = device_of(config.device)
    reconstructor = _reconstructor(config, dataset, device)
    policy = _policy(config, dataset, device)
    chooser = Chooser(reconstructor, device, seed=config.seed, policy=policy)
    errors = ErrorMeasure(chooser, ratios, [method for method in methods if method not in OF_FEATURES])
    encoder = teacher = features = None
    if config.encoder.checkpoint:
        encoder = open_encoder(config.encoder, device)
        require_patches(config.encoder, encoder.vocabulary, dataset, config.convert)
        if encoder.vocabulary != dataset.vocabulary:
            canvas = reconstruction.load("canvas", encoder.vocabulary)
            chooser = Chooser(canvas, device, seed=config.seed, policy=policy)
        checkpoint = f"encoder.checkpoint={config.encoder.checkpoint}"
        teacher = _teacher(config, encoder, device)
        features = FeatureMeasure(chooser, encoder, teacher, ratios, methods, checkpoint)
    store.require_writable(output)
    threshold = _threshold(config, dataset, reconstructor)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("clips", total=len(rows) * (1 if policy is None else 2))
        for batch in read_batches(dataset, rows, config.batch):
            errors.add(batch)
            if features is not None:
                features.add(batch)
            progress.advance(task, len(batch.keys))
        own = None
        if policy is not None:
            ends = threshold if config.threshold is not None else policy.config.loss_threshold
            own = measure_own_limits(
                dataset,
                rows,
                policy,
                reconstructor,
                ends,
                comparable=ends == threshold,  # a checkpoint's own is in units that it does not name
                batch=config.batch,
                device=device,
                on_clips=lambda count: progress.advance(task, count),
            )
    names = {method: _name(method, dataset) for method in methods}
    about = {
        "dataset": redact(dataset.url),
        "plan": dataset.about.get("plan"),
        "gaze": dataset.config.get("gaze"),
        "models": dataset.about.get("models"),
        "reconstructor": {
            "name": reconstructor.name,
            "fingerprint": reconstructor.fingerprint,
            "units": reconstructor.units,
            "rebuilt": rebuilt(reconstructor),
        },
        "threshold": threshold,
        "seed": config.seed,
        "clips": [row["clip"] for row in rows],
        "frames": rows[0]["frames"],
    }
    shown = ErrorResults(dataset, reconstructor, len(rows), errors.curves(), ratios, threshold, names, own)
    shown.show(console)
    about |= shown.record()
    files = shown.files()
    if features is not None and encoder is not None and teacher is not None:
        seen = FeatureResults(
            dataset,
            config.encoder,
            encoder,
            teacher,
            chooser.reconstructor.name,
            reconstructor.name,
            len(rows),
            features.curves(),
            features.full_frames,
            ratios,
            names,
        )
        seen.show(console)
        about |= seen.record()
        files |= seen.files()
    files = {"evaluate.json": json.dumps(about, indent=1).encode() + b"\n"} | files
    for name, data in files.items():
        store.publish(data, output / name)


def _reconstructor(config: EvaluateConfig, dataset: Dataset, device: str) -> Reconstructor:
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


def _teacher(config: EvaluateConfig, encoder: GazedEncoder, device: str) -> GazedEncoder:
    """The encoder itself, or the one that teacher= names. Raises PipelineError for one of other features."""
    if not config.teacher:
        return encoder
    try:
        teacher = open_encoder(replace(config.encoder, checkpoint=config.teacher), device, "teacher")
    except PipelineError as error:  # of a section that is one key here
        text = (
            str(error)
            .replace("teacher.checkpoint=", "teacher=")
            .replace("teacher.scales=", "teacher and encoder.scales=")
        )
        raise PipelineError(text) from error
    features = [(each.vocabulary.grids[-1], each.width) for each in (teacher, encoder)]
    if features[0] != features[1]:
        (side, width), (own_side, own_width) = features
        raise PipelineError(
            f"teacher={config.teacher}: has {side} x {side} features of {width} numbers, encoder.checkpoint= has "
            f"{own_side} x {own_side} of {own_width}; give the network that it was trained from"
        )
    return teacher


def _threshold(config: EvaluateConfig, dataset: Dataset, reconstructor: Reconstructor) -> float | None:
    """The error to find the ratio for; None where the dataset's threshold measures something else."""
    if config.threshold is not None:
        return config.threshold
    stated = dataset.config.get("threshold")
    fits = units_fit(units_of(dataset.about), reconstructor.units)
    return float(stated) if stated is not None and fits else None


def _name(method: str, dataset: Dataset) -> str:
    return f"stored ({dataset.config.get('gaze', 'gaze')})" if method == "stored" else method.replace("_", " ")
