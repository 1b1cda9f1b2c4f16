"""`autogaze rl data=DATASET run=DIR init=CHECKPOINT`: improve a policy by reinforcement learning, resumably."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from cluster.local import RayConfig, running
from jobs.train import runs_here, say
from pipelines.rl_config import RLConfig, check_rl_config


@dataclass
class RL(RLConfig):
    """Improve a policy by reinforcement learning. `data` and `run` must be given, `init` should."""

    ray: RayConfig = field(default_factory=RayConfig)


def run(config: RL, console: Console) -> int:
    """Run the job; the exit status: 0 done, or stopped by a signal after a checkpoint."""
    check_rl_config(config)
    settings = RLConfig(**{name: value for name, value in vars(config).items() if name != "ray"})
    from pipelines.train import stop_on_sigterm, train  # after the checks, since it imports torch
    from pipelines.train_workers import require_room, train_on_ray

    with stop_on_sigterm() as stopping:
        if config.scale.max_workers > 1:
            with running(config.ray) as size:
                require_room(config, size.cpus, size.gpus)
                status = train_on_ray(settings, stopping)
        elif config.rollouts.actors:
            with running(config.ray) as size:
                require_room(config, size.cpus, size.gpus)
                status = train(settings, console=console, stopping=stopping)
        else:
            runs_here(config.ray)
            status = train(settings, console=console, stopping=stopping)
    say(status, config.run, console)
    return 0
