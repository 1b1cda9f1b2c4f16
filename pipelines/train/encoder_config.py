"""The settings of an encoder's distillation: from which network, on which gaze, towards which features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pipelines.errors import PipelineError
from pipelines.loading.config import LoaderConfig
from pipelines.networks.encoders import EncoderConfig, check_encoder
from pipelines.schema import section, setting
from pipelines.storage.location import Location
from pipelines.train.config import EXTEND, OptimizerConfig, TrainConfig, check_train_config

GazeKind = Literal["stored", "random", "stalest", "changed_most"]


@dataclass
class DistanceWeights:
    """What each distance from the full frames' features counts for; 0 = nothing."""

    own: float = setting(1.0, "of gazed patches", at_least=0)
    dense: float = setting(1.0, "of dense maps, which carry old features on", at_least=0)
    pooled: float = setting(0.5, "of each frame's pooled feature", at_least=0)


@dataclass
class EncoderTrainConfig(TrainConfig):
    """Distillation of an encoder: features of gazed patches towards those of full frames."""

    usage: ClassVar[str] = "autogaze train encoder data=/data/gaze encoder.checkpoint=/models/siglip2 run=/data/runs/1"

    init: str = setting(
        "",
        "encoder to begin from: a run or its folder ('' = encoder.checkpoint, the teacher itself)",
        on_resume="same content",
        place="encoder",
    )
    encoder: EncoderConfig = section(EncoderConfig)
    epochs: float = setting(10.0, "passes over the data", more_than=0, on_resume=EXTEND)
    global_batch: int = setting(64, "samples of one optimizer step, over all ranks", at_least=1)
    micro_batch: int = setting(
        4, "samples a rank holds at once; the rest accumulates", at_least=1, on_resume="any value"
    )
    optimizer: OptimizerConfig = section(
        lambda: OptimizerConfig(lr=3e-6, min_lr=3e-7, schedule="linear_w_warmup", clip_norm=1.0)
    )
    gaze: GazeKind = setting(
        "stored", "patches to learn on: stored (in their order), random (all scales), stalest or changed_most"
    )
    min_ratio: float = setting(
        0.02, "least patches of a frame, as a share of its finest ones; drawn for each clip", more_than=0, at_most=1
    )
    max_ratio: float = setting(0.5, "most of them", more_than=0, at_most=1)
    whole_first: bool = setting(True, "frame 0 has all its patches, whatever the ratio")
    targets: Literal["computed", "stored"] = setting(
        "computed", "features of full frames: computed by the teacher here, or stored by preprocess"
    )
    frames: int = setting(4, "frames of each clip that have targets, drawn anew each time (0 = all)", at_least=0)
    weights: DistanceWeights = section(DistanceWeights)
    embeddings: bool = setting(False, "learn embeddings of scale and time too, zero at first")
    learn: Literal["all", "first", "last", "embeddings"] = setting(
        "all", "all weights; those up to the first layers, or from the last layers on; or embeddings alone"
    )
    layers: int = setting(0, "of learn=first and learn=last: how many layers", at_least=0)

    @property
    def loader_config(self) -> LoaderConfig:
        return replace(super().loader_config, targets=self.targets == "stored")


def check_encoder_config(config: EncoderTrainConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check_train_config(config)
    check_encoder(config.encoder)
    if config.encoder.dtype != "float32":
        raise PipelineError(
            f"encoder.dtype={config.encoder.dtype}: weights that are trained stay float32; leave it out, "
            "and set scale.dtype=bfloat16 for the arithmetic"
        )
    if config.min_ratio > config.max_ratio:
        raise PipelineError(f"min_ratio={config.min_ratio}: must be at most max_ratio={config.max_ratio}")
    if not any(vars(config.weights).values()):
        raise PipelineError("weights.own=0.0: nothing counts, so there is nothing to learn; give one of weights.* more")
    if config.learn in ("first", "last") and not config.layers:
        raise PipelineError(f"learn={config.learn}: say of how many layers, as layers=4")
    if config.learn not in ("first", "last") and config.layers:
        raise PipelineError(f"layers={config.layers}: is for learn=first and learn=last; leave it out")
    if config.learn == "embeddings" and not config.embeddings and not config.init:
        raise PipelineError("learn=embeddings: there are none to learn; add embeddings=true")
    run = Location(config.run)
    for data in map(Location, config.datasets):
        if run == data or str(run).startswith(f"{str(data).rstrip('/')}/"):
            raise PipelineError(f"run={config.run}: lies in the dataset {data}; choose a folder outside of it")
