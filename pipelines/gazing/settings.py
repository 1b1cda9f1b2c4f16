"""What a user sets about the gaze, and which settings go together. Nothing is loaded here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np

from pipelines.errors import PipelineError
from pipelines.gazing.policy import PolicyConfig, require_policy
from pipelines.gazing.reconstructor import (
    LabelsConfig,
    ReconstructorConfig,
    TeachersConfig,
    check_labels,
    require_reconstructor,
)
from pipelines.schema import section, setting

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(kw_only=True)
class GazeSettings:
    """What gazes, where, and when the gaze of a frame ends: the keys that preprocess and gaze share.

    A dataset records under "models" whatever of the networks changes its bytes, and a resumed job compares that. So the
    paths of checkpoints may change.
    """

    gaze: Literal["canvas", "policy", "videomae", "learned"] = setting(
        "canvas",
        "canvas (greedy, training-free), policy (the network), or learned (greedy, by reconstructor.checkpoint; "
        "videomae: the same, of a VideoMAE)",
    )
    policy: PolicyConfig = section(PolicyConfig, on_resume="same content")
    reconstructor: ReconstructorConfig = section(ReconstructorConfig, on_resume="same content")
    teachers: TeachersConfig = section(TeachersConfig, on_resume="same content")
    labels: LabelsConfig = section(LabelsConfig)
    verify: bool = setting(
        False,
        "measure a policy's gaze patch by patch, and let greedy search go on where it misses the threshold: by canvas, "
        "or by reconstructor.checkpoint",
    )
    threshold: float | None = setting(
        None,
        "stop a frame at this error (null = canvas, and verify=true by it: 0.02; policy: its checkpoint's; learned: "
        "never). Of a policy it is the error that it predicts, unless verify=true measures it",
        at_least=0,
    )
    max_ratio: float | None = setting(
        None,
        "at most this share of a frame's patches (null = canvas, and verify=true by it: 0.75; policy: its checkpoint's;"
        " learned: 1)",
        more_than=0,
        at_most=1,
    )
    calibration: str = setting(
        "",
        "stop a policy where autogaze calibrate found that the threshold is kept: auto (the calibration.json beside "
        "policy.checkpoint), or its folder or file ('' = where the policy predicts the threshold)",
        on_resume="same content",
        place="checkpoint",
    )
    device: Device = setting(
        "auto", "gaze on auto (cuda where there is a GPU, else cpu), cpu, cuda or mps", on_resume="any value"
    )

    @property
    def by_learned(self) -> bool:
        """Whether a learned reconstructor's greedy search gazes."""
        return self.gaze in ("videomae", "learned")

    @property
    def measured(self) -> bool:
        """Whether errors are measured by a reconstructor; else a policy predicts them."""
        return self.gaze != "policy" or self.verify

    @property
    def draws_lengths(self) -> bool:
        """Whether the lengths of frames are drawn beforehand, so that no limit decides them."""
        return self.labels.lengths == "paper"


def gaze_settings(config: GazeSettings) -> GazeSettings:
    """The gaze settings of a job's config, without the rest of it."""
    return GazeSettings(**{field.name: getattr(config, field.name) for field in fields(GazeSettings)})


def check_gaze(settings: GazeSettings, targets: int = 0) -> None:
    """Raise PipelineError, in one line, for settings that do not go together.

    Each is within its own limits (pipelines.schema.check). targets: frames of each clip whose targets are stored.
    """
    gaze, labels = settings.gaze, settings.labels
    if gaze == "policy":
        require_policy(settings.policy)
        allowed = LabelsConfig()
        if settings.verify and settings.reconstructor.checkpoint:
            allowed.candidates = labels.candidates
        _require_unset("labels", labels, allowed, "gaze=canvas and gaze=learned", gaze)
    else:
        if settings.verify:
            raise PipelineError(f"verify=true: is for gaze=policy, and gaze={gaze} measures already; leave it out")
        _require_unset("policy", settings.policy, PolicyConfig(), "gaze=policy", gaze)
        if settings.calibration:
            raise PipelineError(
                f"calibration={settings.calibration}: is for gaze=policy, and gaze={gaze}; add gaze=policy"
            )
    if settings.by_learned or targets:
        require_reconstructor(settings.reconstructor)
    elif not (settings.verify and settings.reconstructor.checkpoint):
        for_what = "gaze=learned and targets.frames"
        _require_unset("reconstructor", settings.reconstructor, ReconstructorConfig(), for_what, gaze)
        _require_unset("teachers", settings.teachers, TeachersConfig(), for_what, gaze)
    if gaze == "canvas":  # trying every patch costs nothing there
        lengths = LabelsConfig(lengths=labels.lengths, seed=labels.seed)
        _require_unset("labels", labels, lengths, "gaze=learned", gaze)
    check_labels(labels)
    by_canvas = gaze == "canvas" or (settings.verify and not settings.reconstructor.checkpoint)
    if settings.device == "mps" and (by_canvas or labels.candidates):
        raise PipelineError("device=mps: canvas computes in float64, which mps does not have; use device=cpu")
    _check_limits(settings, by_canvas)


def _require_unset(group: str, given: object, default: object, for_what: str, gaze: str) -> None:
    for name, value in vars(given).items():
        if value != getattr(default, name):
            raise PipelineError(
                f"{group}.{name}={value}: is for {for_what}, and gaze={gaze}; add {for_what.partition(' ')[0]}"
            )


def _check_limits(settings: GazeSettings, by_canvas: bool) -> None:
    limits = {"threshold": settings.threshold, "max_ratio": settings.max_ratio}
    if settings.draws_lengths:
        for name, value in limits.items():
            if value is not None:
                raise PipelineError(
                    f"{name}={value}: labels.lengths=paper decides how long frames are; leave {name}= out"
                )
    elif settings.by_learned and limits == {"threshold": None, "max_ratio": None}:
        raise PipelineError(
            f"gaze={settings.gaze} needs an end: give threshold= (in the units of its checkpoint), max_ratio= or "
            "labels.lengths=paper"
        )
    elif settings.verify and not by_canvas and settings.threshold is None and not settings.calibration:
        raise PipelineError(
            f"verify=true with reconstructor.checkpoint={settings.reconstructor.checkpoint}: needs threshold=, in the "
            "units of that reconstructor"
        )
    # The canvas' error lies in [0, 1]; other losses are at least 0, in units only their checkpoints know.
    most = 1.0 if by_canvas else np.finfo(np.float32).max
    if settings.threshold is not None and not 0.0 <= settings.threshold <= most:
        wanted = "between 0.0 and 1.0" if by_canvas else "a number that float32 holds"
        raise PipelineError(f"threshold={settings.threshold}: must be {wanted}")
