"""`autogaze rl data=DATASET run=DIR init=CHECKPOINT`: improve a policy by reinforcement learning, resumably."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from cluster.local import RayConfig
from jobs.train import run_training, without_ray
from pipelines.rl.config import RLConfig, check_rl_config


@dataclass
class RL(RLConfig):
    """Improve a policy by reinforcement learning. `data` and `run` must be given, `init` should."""

    ray: RayConfig = field(default_factory=RayConfig)


def run(config: RL, console: Console) -> int:
    """Run the job; the exit status: 0 done, or stopped by a signal after a checkpoint."""
    check_rl_config(config)
    from pipelines.rl.task import RLTask  # after the checks, since it imports torch

    return run_training(without_ray(config, RLConfig), RLTask, config.ray, console)
