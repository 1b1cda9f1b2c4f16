"""The learned reconstructor as a part of the pipeline: settings (teachers, labels and targets too), and its loading.

torch is imported by load_reconstructor only, as with a policy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError
from pipelines.gazing.policy import DTYPES

if TYPE_CHECKING:
    from autogaze.reconstruction.videomae.reconstructor import VideoMAE

LENGTHS = ("threshold", "paper")


@dataclass
class ReconstructorConfig:
    """The learned reconstructor: what gaze=videomae searches with, and whose teachers targets are of."""

    checkpoint: str = field(default="", metadata={"help": "its folder, or .safetensors or .pt file"})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16"})


@dataclass
class TeachersConfig:
    """Where the models of a learned reconstructor's feature losses are; by the names that checkpoints have for them."""

    dinov2_reg: str = field(
        default="", metadata={"help": "DINOv2 with registers: folder or hub id ('' = the loss does without)"}
    )
    siglip2: str = field(default="", metadata={"help": "SigLIP 2: folder or hub id ('' = the loss does without)"})

    def given(self) -> dict[str, str]:
        """Those that are set."""
        return {name: place for name, place in asdict(self).items() if place}


@dataclass
class LabelsConfig:
    """How greedy search makes labels (gaze=canvas and gaze=videomae)."""

    lengths: str = field(
        default="threshold",
        metadata={"help": "threshold: threshold and max_ratio end a frame; paper: lengths are drawn for each clip"},
    )
    seed: int = field(default=0, metadata={"help": "of labels.lengths=paper"})
    candidates: int = field(
        default=0, metadata={"help": "videomae tries only the patches best on canvas, this many (0 = every patch)"}
    )
    step: int = field(default=1, metadata={"help": "videomae takes this many patches for each round of trying"})


@dataclass
class TargetsConfig:
    """Teacher features of original frames, stored for later jobs."""

    frames: int = field(default=0, metadata={"help": "frames of each clip to store teacher features of (0 = none)"})


def check_reconstructor_config(config: ReconstructorConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    if not config.checkpoint:
        raise PipelineError(
            "reconstructor.checkpoint= is missing: gaze=videomae and targets need a folder with config.json and "
            "model.safetensors, or videomae.pt"
        )
    if config.dtype not in DTYPES:
        raise PipelineError(f"reconstructor.dtype={config.dtype}: must be one of {', '.join(DTYPES)}")


def check_labels_config(config: LabelsConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    if config.lengths not in LENGTHS:
        raise PipelineError(f"labels.lengths={config.lengths}: must be one of {', '.join(LENGTHS)}")
    for name, least in (("seed", 0), ("candidates", 0), ("step", 1)):
        if getattr(config, name) < least:
            raise PipelineError(f"labels.{name}={getattr(config, name)}: must be at least {least}")
    if config.seed and config.lengths != "paper":
        raise PipelineError(f"labels.seed={config.seed}: is for labels.lengths=paper; nothing else is drawn at random")
    if 0 < config.candidates < config.step:
        raise PipelineError(f"labels.step={config.step}: takes more than the labels.candidates={config.candidates}")


def load_reconstructor(config: ReconstructorConfig, teachers: TeachersConfig, device: str) -> VideoMAE:
    """The learned reconstructor on a device ("cpu", "cuda", "mps"), its teachers with it.

    Raises PipelineError, in one line, when the checkpoint or a teacher does not load, is missing or is not one.
    """
    import torch

    from autogaze import reconstruction
    from autogaze.reconstruction.videomae.reconstructor import VideoMAE

    try:
        found = reconstruction.load(
            config.checkpoint, teachers=teachers.given(), device=device, dtype=getattr(torch, config.dtype)
        )
    except ValueError as error:
        raise PipelineError(f"reconstructor.checkpoint={config.checkpoint}: {error}") from error
    if not isinstance(found, VideoMAE):
        raise PipelineError(f"reconstructor.checkpoint={config.checkpoint}: is not learned; use gaze=canvas for canvas")
    return found
