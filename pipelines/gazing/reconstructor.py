"""The learned reconstructor: its settings, those of teachers, labels and targets, and loading it.

Only load_reconstructor imports torch: a command starts without it, and so do decode actors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.errors import PipelineError
from pipelines.gazing.policy import Dtype
from pipelines.networks.open import open_reconstructor
from pipelines.schema import setting

if TYPE_CHECKING:
    from autogaze.reconstruction.learned import Learned


@dataclass
class ReconstructorConfig:
    """The learned reconstructor: what gaze=learned searches with, and whose teachers targets are of."""

    checkpoint: str = setting(
        "", "a run that trains one, its folder, or .safetensors or .pt file", place="reconstructor"
    )
    dtype: Dtype = setting("float32", "float32 or bfloat16", on_resume="same value")


@dataclass
class TeachersConfig:
    """Where the teachers of a learned reconstructor's feature losses are, by the names that checkpoints give them."""

    dinov2_reg: str = setting(
        "", "DINOv2 with registers: folder or hub id ('' = the loss does without)", place="checkpoint"
    )
    dinov2: str = setting(
        "", "DINOv2 without registers: folder or hub id ('' = the loss does without)", place="checkpoint"
    )
    siglip2: str = setting("", "SigLIP 2: folder or hub id ('' = the loss does without)", place="checkpoint")

    def given(self) -> dict[str, str]:
        """Those that are set."""
        return {name: place for name, place in asdict(self).items() if place}


@dataclass
class LabelsConfig:
    """How greedy search makes labels (gaze=canvas and gaze=learned)."""

    lengths: Literal["threshold", "paper"] = setting(
        "threshold", "threshold: threshold and max_ratio end a frame; paper: lengths are drawn for each clip"
    )
    seed: int = setting(0, "of labels.lengths=paper", at_least=0)
    candidates: int = setting(
        0, "learned tries only this many patches, the best on canvas (0 = every patch)", at_least=0
    )
    step: int = setting(1, "patches that learned takes in each round of trying", at_least=1)


@dataclass
class TargetsConfig:
    """Teacher features of original frames, stored for later jobs."""

    frames: int = setting(0, "frames of each clip to store teacher features of (0 = none)", at_least=0)


def require_reconstructor(config: ReconstructorConfig) -> None:
    """Raise PipelineError, in one line, if no checkpoint is named."""
    if not config.checkpoint:
        raise PipelineError(
            "reconstructor.checkpoint= is missing: gaze=learned and targets need a folder with config.json and "
            "model.safetensors, a run that trains one, or videomae.pt"
        )


def check_labels(config: LabelsConfig) -> None:
    """Raise PipelineError, in one line, for values that do not go together."""
    if config.seed and config.lengths != "paper":
        raise PipelineError(f"labels.seed={config.seed}: is for labels.lengths=paper; nothing else is drawn at random")
    if 0 < config.candidates < config.step:
        raise PipelineError(f"labels.step={config.step}: takes more than the labels.candidates={config.candidates}")


def load_reconstructor(config: ReconstructorConfig, teachers: TeachersConfig, device: str) -> Learned:
    """The learned reconstructor on a device ("cpu", "cuda", "mps"), with its teachers.

    Raises PipelineError, in one line, when the checkpoint or a teacher is missing or does not load.
    """
    import torch

    from autogaze.reconstruction.learned import Learned

    reconstructor = open_reconstructor(
        config.checkpoint,
        "reconstructor.checkpoint",
        teachers=teachers.given(),
        device=device,
        dtype=getattr(torch, config.dtype),
    )
    if not isinstance(reconstructor, Learned):
        raise PipelineError(f"reconstructor.checkpoint={config.checkpoint}: is not learned; use gaze=canvas for canvas")
    return reconstructor
