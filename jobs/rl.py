"""`autogaze rl data=DATASET run=DIR init=CHECKPOINT`: improve a policy by reinforcement learning, resumably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rich.console import Console

from cluster.local import RayConfig
from jobs.presets import SMALL_RL
from jobs.train import PRESET_HELP, require_data, run_training, without_ray
from pipelines.rl.config import RLConfig, check_rl_config
from pipelines.schema import section, setting


@dataclass
class RL(RLConfig):
    """Improve a policy by reinforcement learning."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL_RL}
    preset: Literal["", "small"] = setting("", PRESET_HELP, on_resume="any value")
    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: RL, console: Console) -> int:
    """Run the job; the exit status: 0 done, or stopped by a signal after a checkpoint."""
    check_rl_config(config)
    require_data(config)
    from pipelines.rl.task import RLTask  # after the checks, since it imports torch

    return run_training(without_ray(config, RLConfig), RLTask, config.ray, console)
