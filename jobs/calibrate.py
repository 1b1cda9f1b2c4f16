"""`autogaze calibrate policy.checkpoint=POLICY data=HELD_OUT target=0.95`: where a policy must stop.

A policy ends a frame by the error it predicts, which is too low as a rule. This measures, on videos it was not trained
on, at which predictions to stop so that the measured error keeps the threshold in the promised share of frames, and
writes calibration.json beside the policy, for gaze=policy with calibration=auto. Torch is imported when the settings
are known to be right.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autogaze.calibration import fewest_videos
from jobs.threads import one_torch_thread
from jobs.wording import plural
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.dataset.units import units_fit
from pipelines.errors import PipelineError
from pipelines.gazing.calibration import CALIBRATION_FILE, Calibration, Promise, to_json
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.reconstructor import ReconstructorConfig, TeachersConfig
from pipelines.gazing.settings import Device
from pipelines.networks.find import find_network, require_network
from pipelines.networks.open import open_reconstructor
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.credentials import redact
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.model import AutoGaze
    from autogaze.reconstruction.base import Reconstructor
    from pipelines.inspection.calibrate import CalibrationVideo, Measured, Meter, Tried
    from pipelines.inspection.trained_on import TrainingVideos


@dataclass
class CalibrateConfig:
    """Measure where a policy must stop, so that frames of new videos keep a threshold."""

    usage: ClassVar[str] = "autogaze calibrate policy.checkpoint=/data/runs/1 data=/data/held-out target=0.95"

    data: str = setting(
        "",
        "gaze dataset with stored frames, of videos that the policy was not trained on",
        required=True,
        place="location",
    )
    target: float = setting(
        0.95, "share of a new video's frames that are to keep the threshold", more_than=0, less_than=1
    )
    threshold: float | None = setting(
        None,
        "measured error to keep, in the reconstructor's units (null = the policy's, where it is in these)",
        more_than=0,
    )
    risk: Literal["share", "excess"] = setting(
        "share",
        "share: 1 - target of a video's frames may be over the threshold; excess: on average they are 1 - target "
        "thresholds over it, a frame at most one",
    )
    method: Literal["crc", "ltt"] = setting(
        "crc",
        "crc: holds for a new video on average (conformal risk control); ltt: for new videos with the given confidence "
        "(learn then test), which takes more videos and patches",
    )
    confidence: float = setting(0.9, "of method=ltt", more_than=0, less_than=1)
    output: str = setting("", f"folder of {CALIBRATION_FILE} ('' = beside the policy)", place="location")
    max_ratio: float | None = setting(
        None, "at most this share of a frame's patches (null = the policy's)", more_than=0, at_most=1
    )
    policy: PolicyConfig = section(PolicyConfig)
    reconstructor: ReconstructorConfig = section(ReconstructorConfig)
    teachers: TeachersConfig = section(TeachersConfig)
    val_fraction: float = setting(
        0.0,
        "only those videos of data that training with this loader.val_fraction held out (0 = all of them)",
        at_least=0,
        less_than=1,
    )
    clips: int = setting(0, "clips of each video at most, drawn at random (0 = all)", at_least=0)
    fit: float = setting(
        0.5, "share of the videos that the curve is fitted on; the others carry the promise", more_than=0, less_than=1
    )
    stops: int = setting(12, "stops that are tried, from strict to loose", at_least=2)
    seed: int = setting(0, "of which videos do what, and of the choice of clips", at_least=0)
    device: Device = setting("auto", "auto (cuda where there is one), cpu, cuda or mps")


def check_calibrate(config: CalibrateConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    if not config.policy.checkpoint:
        raise PipelineError(f"policy.checkpoint= is missing: {config.usage}")
    if not config.reconstructor.checkpoint and config.teachers.given():
        raise PipelineError("teachers.* is set, but canvas has none; give reconstructor.checkpoint=, or leave it out")
    if config.device == "mps" and not config.reconstructor.checkpoint:
        raise PipelineError("device=mps: canvas computes in float64, which mps does not have; use device=cpu")


def _require_folder(policy: str) -> None:
    if not store.exists(Location(policy) / "config.json"):
        raise PipelineError(
            f"policy.checkpoint={policy}: is no folder here that the calibration could be written to; give output="
        )


def run(config: CalibrateConfig, console: Console) -> int:
    """Measure, write the calibration, say what it promises; the exit status.

    Raises PipelineError, in one line: a value that cannot work, videos that trained the policy, too few of them, or
    that no stop keeps the promise.
    """
    check_calibrate(config)
    require_network(config.policy.checkpoint, "policy", "policy.checkpoint")
    if not config.output:
        _require_folder(find_network(config.policy.checkpoint, "policy", "policy.checkpoint"))
    dataset = shards.open_dataset(config.data)
    if not dataset.frames_stored:
        raise PipelineError(f"{dataset.url}: stores no frames to measure an error on; preprocess with frames=raw")
    with one_torch_thread():
        _calibrate(config, dataset, console)
    return 0


def _calibrate(config: CalibrateConfig, dataset: Dataset, console: Console) -> None:
    # Here, not above: torch takes seconds to load, and a wrong setting is refused at once.
    from pipelines.gazing.gazers import device_of
    from pipelines.gazing.policy import load_policy
    from pipelines.inspection.calibrate import Meter, aims, fit_curves, try_stops
    from pipelines.inspection.trained_on import videos_of_policy

    device, risk = device_of(config.device), round(1 - config.target, 9)
    folder = find_network(config.policy.checkpoint, "policy", "policy.checkpoint")
    trained = videos_of_policy(folder)
    videos = _videos(config, dataset, trained)
    half = max(1, round(config.fit * len(videos)))
    fitted, held = videos[:half], videos[half:]
    delta = round(1 - config.confidence, 9)
    _require_enough(config, len(videos), len(held), risk, delta)
    policy = load_policy(config.policy, device)
    reconstructor = _reconstructor(config, dataset, device)
    _require_vocabulary(config, policy, dataset)
    threshold = _threshold(config, policy, reconstructor, trained)
    place = Location(config.output or folder)
    store.require_writable(place)
    frames = int(fitted[0].clips[0]["frames"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("clips gazed at, at most", total=_work(fitted, held, config.stops))
        meter = Meter(
            dataset,
            policy,
            reconstructor,
            threshold,
            config.risk,
            policy.config.max_ratio if config.max_ratio is None else config.max_ratio,
            config.policy.batch,
            device,
            lambda count: progress.advance(task, count),
        )
        curves = fit_curves(meter, fitted, frames, risk)
        tried = try_stops(
            meter, held, curves, frames, aims(curves, frames, risk, config.stops), risk, config.method, delta
        )
        kept = [one for one in tried if one.keeps]
        if not kept:
            raise PipelineError(_hopeless(config, tried[0], threshold, reconstructor))
        plain = meter.measure(held, [threshold] * frames)
    calibration = _calibration(config, dataset, meter, kept[-1], frames, fitted, held)
    more = {
        "aim": kept[-1].aim,
        "tried": [dataclasses.asdict(one) for one in tried],
        "uncalibrated": {"risk": float(plain.losses.mean()), "missed": plain.missed, "patches": plain.patches},
        "data": {"dataset": redact(dataset.url), "plan": dataset.about.get("plan"), "seed": config.seed},
        "trained_on": {"datasets": [redact(url) for url in trained.datasets], "known": trained.known},
    }
    store.publish(to_json(calibration, more), place / CALIBRATION_FILE)
    _say(config, calibration, kept[-1], plain, trained, place, console)


def _videos(config: CalibrateConfig, dataset: Dataset, trained: TrainingVideos) -> list[CalibrationVideo]:
    """The videos to calibrate on. Raises PipelineError: one of them trained the policy, or clips differ in length."""
    from pipelines.inspection.calibrate import videos_of
    from pipelines.loading.samples import open_samples

    rows = dataset.index()
    rows = rows[rows["outcome"] == "ok"].reset_index(drop=True)
    if config.val_fraction:
        samples = open_samples(config.data)
        rows = rows[rows["shard"] < samples.shards].iloc[samples.split("val", config.val_fraction)]
    videos = videos_of(dataset, rows, config.clips, config.seed)
    seen = [video for video in videos if video.fingerprint in trained.fingerprints]
    if seen:
        raise PipelineError(
            f"data={config.data}: {len(seen)} of its {plural(len(videos), 'video')} trained the policy, such as "
            f"{seen[0].name}, and promise nothing; give others, or those that training held out: "
            "val_fraction= as its loader.val_fraction"
        )
    return videos


def _require_enough(config: CalibrateConfig, all_videos: int, held: int, risk: float, delta: float) -> None:
    fewest = fewest_videos(risk, config.method, delta)
    if held < fewest:
        with_confidence = f" with confidence {config.confidence:g}" if config.method == "ltt" else ""
        need = -(-fewest * 1000 // round((1 - config.fit) * 1000))
        raise PipelineError(
            f"data={config.data}: {plural(all_videos, 'video')}, of which {held} carry the promise, are too few for "
            f"target={config.target:g}{with_confidence}: it takes {fewest} even if no frame misses, {need} with "
            f"fit={config.fit:g}; give more videos or a lower target="
        )


def _reconstructor(config: CalibrateConfig, dataset: Dataset, device: str) -> Reconstructor:
    import torch

    return open_reconstructor(
        config.reconstructor.checkpoint or "canvas",
        "reconstructor.checkpoint",
        vocabulary=dataset.vocabulary,
        teachers=config.teachers.given() or None,
        device=device,
        dtype=getattr(torch, config.reconstructor.dtype),
    )


def _require_vocabulary(config: CalibrateConfig, policy: AutoGaze, dataset: Dataset) -> None:
    if policy.vocabulary != dataset.vocabulary:
        raise PipelineError(
            f"policy.checkpoint={config.policy.checkpoint}: gazes at {policy.vocabulary}, the dataset has "
            f"{dataset.vocabulary}"
        )


def _threshold(
    config: CalibrateConfig, policy: AutoGaze, reconstructor: Reconstructor, trained: TrainingVideos
) -> float:
    """The measured error to keep. Raises PipelineError where the policy's own is not known to be one."""
    if config.threshold is not None:
        return config.threshold
    own = policy.config.loss_threshold
    if own is None or own <= 0:
        raise PipelineError(f"threshold= is missing: the policy names none; give it as {reconstructor.units}")
    if not trained.units or not all(units_fit(units, reconstructor.units) for units in trained.units):
        its = "; ".join(sorted(trained.units)) or "units that it does not name"
        raise PipelineError(
            f"threshold= is missing: the policy's {own:g} is in {its}, measured is the {reconstructor.units}; give it "
            "in these"
        )
    return own


def _work(fitted: list[CalibrationVideo], held: list[CalibrationVideo], stops: int) -> int:
    count = [sum(len(video.clips) for video in videos) for videos in (fitted, held)]
    return 2 * count[0] + (stops + 1) * count[1]


def _hopeless(config: CalibrateConfig, strictest: Tried, threshold: float, reconstructor: Reconstructor) -> str:
    kept = f"{1 - strictest.risk:.1%}" if config.risk == "share" else f"{1 - strictest.risk:.3f}"
    return (
        f"target={config.target:g}: no stop keeps it at threshold={threshold:g} ({reconstructor.units}): the strictest "
        f"one keeps {kept} on {config.data}, with {strictest.patches:.0f} patches a frame; give a lower target=, a "
        "higher threshold= or max_ratio=, or more videos"
    )


def _calibration(
    config: CalibrateConfig,
    dataset: Dataset,
    meter: Meter,
    chosen: Tried,
    frames: int,
    fitted: list[CalibrationVideo],
    held: list[CalibrationVideo],
) -> Calibration:
    crc = config.method == "crc"
    clip: dict[str, Any] = dict(dataset.config.get("clip") or {})
    return Calibration(
        stops=(chosen.stops[0], *([chosen.stops[1]] * (frames - 1))),
        threshold=meter.threshold,
        units=meter.reconstructor.units,
        max_ratio=meter.max_ratio,
        promise=Promise(
            risk=config.risk,
            target=config.target,
            method=config.method,
            confidence=None if crc else config.confidence,
            bound=chosen.bound if crc else None,
            p=None if crc else chosen.p,
            videos=len(held),
            clips=sum(len(video.clips) for video in held),
            fitted=len(fitted),
        ),
        policy={"fingerprint": meter.policy.fingerprint, "dtype": config.policy.dtype},
        reconstructor={"name": meter.reconstructor.name, "fingerprint": meter.reconstructor.fingerprint},
        clip=clip,
    )


def _say(
    config: CalibrateConfig,
    calibration: Calibration,
    chosen: Tried,
    plain: Measured,
    trained: TrainingVideos,
    place: Location,
    console: Console,
) -> None:
    promise = calibration.promise
    what = "of a new video's frames" if promise.risk == "share" else "excess over the threshold, on a new video,"
    how = (
        f"on average over videos like these (crc, bound {promise.bound:.3f})"
        if promise.bound is not None
        else f"with confidence {config.confidence:g} over videos like these (ltt, p {promise.p:.2g})"
    )
    first, later = chosen.stops
    after = f", later at {later:.4g}" if len(calibration.stops) > 1 else ""
    lines = [
        f"policy    {config.policy.checkpoint} ({calibration.policy['fingerprint'][:12]})",
        f"measured  by {calibration.reconstructor['name']}: {calibration.units}",
        f"videos    {promise.fitted} to fit the curve, {promise.videos} to keep the promise "
        f"({plural(promise.clips, 'clip')} of {plural(len(calibration.stops), 'frame')})",
        f"promise   at most {1 - promise.target:.3g} {what} over {calibration.threshold:g}, {how}",
        f"stop      frame 0 at a predicted {first:.4g}{after}",
        f"gaze      {chosen.patches:.2f} patches a frame, {chosen.missed:.1%} of frames over the threshold here",
        f"without   {plain.patches:.2f} patches a frame, {plain.missed:.1%} of frames over the threshold here",
    ]
    if not trained.known:
        lines.append("note      what trained the policy is not all known here: make sure that these videos did not")
    lines.append(f"written   {place / CALIBRATION_FILE}")
    use = "auto" if not config.output else str(place)
    lines.append(f"use it    autogaze preprocess gaze=policy policy.checkpoint=... calibration={use}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
