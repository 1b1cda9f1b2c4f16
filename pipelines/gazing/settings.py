"""What a user says of the gaze, and the check of it, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.errors import PipelineError
from pipelines.gazing.policy import PolicyConfig, check_policy_config
from pipelines.gazing.reconstructor import (
    LabelsConfig,
    ReconstructorConfig,
    TeachersConfig,
    check_labels_config,
    check_reconstructor_config,
)

GAZES = ("canvas", "policy", "videomae")


DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class GazeSettings:
    """What the user says of the gaze, in preprocess and gaze alike.

    teachers: of `reconstructor`; targets: how many frames of each clip they are wanted for.
    """

    gaze: str
    policy: PolicyConfig
    reconstructor: ReconstructorConfig
    teachers: TeachersConfig
    labels: LabelsConfig
    threshold: float | None
    max_ratio: float | None
    targets: int = 0

    @property
    def learned(self) -> bool:
        """Whether it needs the learned reconstructor."""
        return self.gaze == "videomae" or self.targets > 0

    @property
    def drawn(self) -> bool:
        """Whether the lengths of frames are drawn beforehand, so that no limit decides them."""
        return self.labels.lengths == "paper"


def check(settings: GazeSettings, device: str) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work. Loads nothing."""
    gaze, labels = settings.gaze, settings.labels
    if gaze not in GAZES:
        raise PipelineError(f"gaze={gaze}: must be one of {', '.join(GAZES)}")
    if gaze == "policy":
        check_policy_config(settings.policy)
        _require_unset("labels", labels, LabelsConfig(), "gaze=canvas and gaze=videomae", gaze)
    else:
        _require_unset("policy", settings.policy, PolicyConfig(), "gaze=policy", gaze)
    if settings.learned:
        check_reconstructor_config(settings.reconstructor)
    else:
        wanted = "gaze=videomae and targets.frames"
        _require_unset("reconstructor", settings.reconstructor, ReconstructorConfig(), wanted, gaze)
        _require_unset("teachers", settings.teachers, TeachersConfig(), wanted, gaze)
    if gaze == "canvas":  # where to try every patch costs nothing
        lengths = LabelsConfig(lengths=labels.lengths, seed=labels.seed)
        _require_unset("labels", labels, lengths, "gaze=videomae", gaze)
    check_labels_config(labels)
    if device == "mps" and (gaze == "canvas" or labels.candidates):
        raise PipelineError("device=mps: canvas counts in float64, which mps has not; use device=cpu")
    _check_limits(settings)


def _require_unset(group: str, asked: object, default: object, wanted: str, gaze: str) -> None:
    for name, value in vars(asked).items():
        if value != getattr(default, name):
            raise PipelineError(
                f"{group}.{name}={value}: is for {wanted}, and gaze={gaze}; add {wanted.partition(' ')[0]}"
            )


def _check_limits(settings: GazeSettings) -> None:
    limits = {"threshold": settings.threshold, "max_ratio": settings.max_ratio}
    if settings.drawn:
        for name, value in limits.items():
            if value is not None:
                raise PipelineError(
                    f"{name}={value}: labels.lengths=paper settles how long frames are; leave {name}= out"
                )
    elif settings.gaze == "videomae" and limits == {"threshold": None, "max_ratio": None}:
        raise PipelineError(
            "gaze=videomae needs an end: give threshold= (in the units of its checkpoint), max_ratio= or "
            "labels.lengths=paper"
        )
    # The canvas' error lies in [0, 1]; other losses are at least 0, in units only their checkpoints know.
    most = 1.0 if settings.gaze == "canvas" else np.finfo(np.float32).max
    if settings.threshold is not None and not 0.0 <= settings.threshold <= most:
        told = "between 0.0 and 1.0" if settings.gaze == "canvas" else "a number of at least 0"
        raise PipelineError(f"threshold={settings.threshold}: must be {told}")
    if settings.max_ratio is not None and not 0.0 < settings.max_ratio <= 1.0:
        raise PipelineError(f"max_ratio={settings.max_ratio}: must be more than 0 and at most 1")
