"""gaze=policy: the settings of the AutoGaze network as a part of the pipeline, and the network they name.

torch is imported by load_policy only: a command's start and its decode actors do without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

POSITIONS = ("", "reference", "consistent")
DTYPES = ("float32", "bfloat16")
CUDA_GRAPHS = {"auto": None, "on": True, "off": False}
UNITS = "reconstruction loss as the policy predicts it, in the units its checkpoint was trained on"


@dataclass
class PolicyConfig:
    """The network that gaze=policy gazes with, and how it is run."""

    checkpoint: str = field(default="", metadata={"help": "folder or hub id (org/name) in the reference's format"})
    positions: str = field(
        default="", metadata={"help": "reference or consistent decode positions (empty = what the checkpoint says)"}
    )
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16"})
    batch: int = field(default=32, metadata={"help": "clips gazed at once"})
    cuda_graphs: str = field(default="auto", metadata={"help": "auto (on with a GPU), on or off"})


def check_policy_config(config: PolicyConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    if not config.checkpoint:
        raise PipelineError(
            "policy.checkpoint= is missing: gaze=policy needs a folder with config.json and model.safetensors, "
            "or a hub id such as nvidia/AutoGaze"
        )
    for name, known in (("positions", POSITIONS), ("dtype", DTYPES), ("cuda_graphs", tuple(CUDA_GRAPHS))):
        if getattr(config, name) not in known:
            names = ", ".join(filter(None, known))
            raise PipelineError(f"policy.{name}={getattr(config, name)}: must be one of {names}")
    if config.batch < 1:
        raise PipelineError(f"policy.batch={config.batch}: must be at least 1")


def load_policy(config: PolicyConfig, device: str) -> AutoGaze:
    """The network on a device ("cpu", "cuda", "mps").

    Raises PipelineError when the checkpoint does not load, or the device is not there.
    """
    import torch

    from autogaze.model import AutoGaze, CheckpointError

    try:
        return AutoGaze.from_pretrained(
            config.checkpoint,
            positions=config.positions or None,
            device=device,
            dtype=getattr(torch, config.dtype),
            cuda_graphs=CUDA_GRAPHS[config.cuda_graphs],
        )
    except CheckpointError as error:
        raise PipelineError(f"policy.checkpoint={config.checkpoint}: {error}") from error
    except ValueError as error:
        raise PipelineError(f"gaze=policy: {error}") from error
