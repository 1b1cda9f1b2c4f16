"""gaze=policy: the settings of the AutoGaze network, and loading the network they name.

Only load_policy imports torch: a command starts without it, and so do decode actors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipelines.errors import PipelineError
from pipelines.networks.open import open_policy
from pipelines.schema import setting

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

Dtype: TypeAlias = Literal["float32", "bfloat16"]
CUDA_GRAPHS = {"auto": None, "on": True, "off": False}
UNITS = "reconstruction loss as the policy predicts it, in the units its checkpoint was trained on"


@dataclass
class PolicyConfig:
    """The network that gaze=policy gazes with, and how it is run."""

    checkpoint: str = setting(
        "", "a run that trains one, a folder in the reference's format, or a hub id (org/name)", place="policy"
    )
    positions: Literal["", "reference", "consistent"] = setting(
        "", "reference or consistent decode positions ('' = what the checkpoint says)"
    )
    dtype: Dtype = setting("float32", "float32 or bfloat16", on_resume="same value")
    batch: int = setting(32, "clips gazed at once", at_least=1, on_resume="same value")
    cuda_graphs: Literal["auto", "on", "off"] = setting(
        "auto", "auto (on with a GPU), on or off", on_resume="any value"
    )


def require_policy(config: PolicyConfig) -> None:
    """Raise PipelineError, in one line, if no checkpoint is named."""
    if not config.checkpoint:
        raise PipelineError(
            "policy.checkpoint= is missing: gaze=policy needs a folder with config.json and model.safetensors, "
            "or a hub id such as nvidia/AutoGaze"
        )


def load_policy(config: PolicyConfig, device: str) -> AutoGaze:
    """The network on a device ("cpu", "cuda", "mps").

    Raises PipelineError when the checkpoint does not load, or the device is not there.
    """
    import torch

    try:
        return open_policy(
            config.checkpoint,
            "policy.checkpoint",
            positions=config.positions or None,
            device=device,
            dtype=getattr(torch, config.dtype),
            cuda_graphs=CUDA_GRAPHS[config.cuda_graphs],
        )
    except ValueError as error:
        raise PipelineError(f"gaze=policy: {error}") from error
