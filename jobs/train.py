"""`autogaze train policy|reconstructor data=DATASET run=DIR`: train, or go on with a run, on one device or many."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from cluster.local import RayConfig, running
from pipelines.errors import PipelineError
from pipelines.train_config import PolicyTrainConfig, ReconstructorTrainConfig, TrainConfig, check_train_config


@dataclass
class TrainPolicy(PolicyTrainConfig):
    """Train the policy by next-token prediction. `data` and `run` must be given."""

    ray: RayConfig = field(default_factory=RayConfig)


@dataclass
class TrainReconstructor(ReconstructorTrainConfig):
    """Pre-train the reconstructor. `data` and `run` must be given."""

    ray: RayConfig = field(default_factory=RayConfig)


def run(config: TrainPolicy | TrainReconstructor, console: Console) -> int:
    """Run the job; the exit status: 0 done, or stopped by a signal after a checkpoint."""
    check_train_config(config)
    from pipelines.train import stop_on_sigterm, train  # after the checks, since it imports torch

    with stop_on_sigterm() as stopping:
        if config.scale.max_workers == 1:
            runs_here(config.ray)
            status = train(_without_ray(config), console=console, stopping=stopping)
        else:
            from pipelines.train_workers import require_room, train_on_ray

            with running(config.ray) as size:
                require_room(config, size.cpus, size.gpus)
                status = train_on_ray(_without_ray(config), stopping)
    say(status, config.run, console)
    return 0


def runs_here(ray: RayConfig) -> None:
    """Raise PipelineError when a job that needs no Ray is told to join one: it would run here all the same."""
    if ray.address:
        raise PipelineError(
            f"ray.address={ray.address}: one rank runs in this process, without Ray; "
            "leave ray.address out, or set scale.max_workers to 2 or more"
        )


def say(status: str, run: str, console: Console) -> None:
    """What came of a run."""
    if status == "stopped":
        console.print("stopped after a checkpoint; the same command again goes on", highlight=False)
    elif status == "finished":
        console.print(f"nothing to do: {run} is finished", highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(f"done: {run}", highlight=False, markup=False, soft_wrap=True)


def _without_ray(config: TrainPolicy | TrainReconstructor) -> TrainConfig:
    """The part that the run depends on."""
    kind = PolicyTrainConfig if isinstance(config, PolicyTrainConfig) else ReconstructorTrainConfig
    return kind(**{name: value for name, value in vars(config).items() if name != "ray"})
