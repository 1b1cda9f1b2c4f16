"""`autogaze train policy|reconstructor|encoder data=DATASET run=DIR`: train, or go on, on one device or many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Console

from cluster.local import RayConfig, running
from jobs.config import with_absolute_places
from jobs.presets import SMALL_ENCODER, SMALL_POLICY, SMALL_RECONSTRUCTOR, SMALL_REFINER
from pipelines.dataset.shards import open_dataset
from pipelines.errors import PipelineError
from pipelines.networks.find import Kind, find_network
from pipelines.runs.best import AVERAGED, BEST, read_best
from pipelines.schema import section, setting
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.train.config import PolicyTrainConfig, ReconstructorTrainConfig, TrainConfig, check_train_config
from pipelines.train.encoder_config import EncoderTrainConfig, check_encoder_config

if TYPE_CHECKING:
    from pipelines.train.task import MakeTask

_ANSWER = "stopping after the samples at hand, with a checkpoint of the last whole step; a second signal ends at once"


PRESET_HELP = "small: sizes, rates and steps for a laptop's CPU, where no other are given ('' = the paper's)"


@dataclass
class TrainPolicy(PolicyTrainConfig):
    """Train the policy by next-token prediction."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL_POLICY}
    preset: Literal["", "small"] = setting("", PRESET_HELP, on_resume="any value")
    ray: RayConfig = section(RayConfig, on_resume="any value")


@dataclass
class TrainReconstructor(ReconstructorTrainConfig):
    """Train a reconstructor: the paper's VideoMAE, or a refiner of the canvas."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL_RECONSTRUCTOR, "small refiner": SMALL_REFINER}
    preset: Literal["", "small"] = setting("", PRESET_HELP, on_resume="any value")
    ray: RayConfig = section(RayConfig, on_resume="any value")


@dataclass
class TrainEncoder(EncoderTrainConfig):
    """Distil an encoder: features of few patches towards those of full frames."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL_ENCODER}
    preset: Literal["", "small"] = setting("", PRESET_HELP, on_resume="any value")
    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: TrainPolicy | TrainReconstructor, console: Console) -> int:
    """Run the job; the exit status: 0 done, or stopped by a signal after a checkpoint."""
    check_train_config(config)
    require_data(config)
    settings: TrainConfig
    make_task: MakeTask
    if isinstance(config, TrainPolicy):
        from pipelines.train.policy import PolicyTask as make_task  # after the checks, since it imports torch

        settings = without_ray(config, PolicyTrainConfig)
    elif config.kind == "refiner":
        from pipelines.train.refiner import RefinerTask as make_task

        settings = without_ray(config, ReconstructorTrainConfig)
    else:
        from pipelines.train.reconstructor import ReconstructorTask as make_task

        settings = without_ray(config, ReconstructorTrainConfig)
    return run_training(settings, make_task, config.ray, console)


def run_encoder(config: TrainEncoder, console: Console) -> int:
    """As `run`, for an encoder."""
    check_encoder_config(config)
    require_data(config)
    from pipelines.train.encoder import EncoderTask

    return run_training(without_ray(config, EncoderTrainConfig), EncoderTask, config.ray, console)


def require_data(config: TrainConfig) -> None:
    """Raise PipelineError for data that is no dataset: at once, before torch is imported for the work."""
    for place in config.datasets:
        open_dataset(place)


def run_training(config: TrainConfig, make_task: MakeTask, ray: RayConfig, console: Console) -> int:
    """Train where the config asks for it: in this process, with actors beside it, or on ranks that Ray places."""
    config = with_absolute_places(config)
    made: dict[type[TrainConfig], Kind] = {ReconstructorTrainConfig: "reconstructor", EncoderTrainConfig: "encoder"}
    kind = made.get(type(config), "policy")
    from jobs.signals import stop_on_sigterm
    from pipelines.train.data_versions import with_data_versions
    from pipelines.train.loop import is_finished, train
    from pipelines.train.on_ray import require_room, train_on_ray

    config, notes = with_data_versions(config)
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    with stop_on_sigterm(_ANSWER) as stopping:
        if not config.needs_ray:
            _require_no_address(ray)
            status = train(config, make_task, console=console, stopping=stopping)
        elif is_finished(config, make_task):
            status = "finished"
        else:
            with running(ray) as size:
                require_room(config, size.cpus, size.gpus)
                if config.scale.max_workers > 1:
                    status = train_on_ray(config, make_task, stopping, console)
                else:
                    status = train(config, make_task, console=console, stopping=stopping)
    _say(status, config.run, kind, console)
    return 0


def without_ray(config: TrainConfig, kind: type[TrainConfig]) -> TrainConfig:
    """The part of a job's config that the run depends on, which run directories record."""
    return kind(**{name: value for name, value in vars(config).items() if name not in ("ray", "preset")})


def _require_no_address(ray: RayConfig) -> None:
    """Raise PipelineError when a job that needs no Ray is told to join one: it would run here all the same."""
    if ray.address:
        raise PipelineError(
            f"ray.address={ray.address}: one rank runs in this process, without Ray; "
            "leave ray.address out, or set scale.max_workers to 2 or more"
        )


def _more_made(run: str, kind: Kind, made: str) -> str:
    """Lines that name the averaged network and the best checkpoint, where there are any."""
    lines = ""
    if store.exists(Location(averaged := f"{made}{AVERAGED}") / "config.json"):
        lines += f"\nits average: {averaged}"
    if (best := read_best(run)) is not None:
        place = find_network(str(Location(run) / "checkpoints" / BEST), kind, "run")
        lines += f"\nthe best by {best.measure} ({best.value:.4g}): {place}"
    return lines


def _say(status: str, run: str, kind: Kind, console: Console) -> None:
    """What came of a run."""
    made = find_network(run, kind, "run")
    if status == "stopped":
        text = f"stopped after a checkpoint, {Location(made).parent.name}; the same command again goes on"
    elif status == "finished":
        text = f"nothing to do: {run} is finished; extend=true goes on with it, with more epochs= or steps="
    else:
        text = f"done: {run}\nthe {kind}: {made}{_more_made(run, kind, made)}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
