"""What an RL run can be told: how gazes are sampled and rewarded, what is learned from them, and who samples them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import TeachersConfig
from pipelines.train.config import ActorNeeds, EveryConfig, OptimizerConfig, PolicyTrainConfig, check_train_config

STRATEGIES = ("self", "threshold", "ratio")
ADVANTAGES = ("mean", "deviation")
RATIOS = ("on_policy", "behaviour")
LOG_PROBS = ("sampled", "reference")


@dataclass
class SampleConfig:
    """How the gazes of a group are sampled."""

    group: int = field(default=12, metadata={"help": "gazes of each clip (the paper's 12)"})
    temperature: float = field(default=1.0, metadata={"help": "at the first step (the paper's 1)"})
    min_temperature: float = field(default=0.01, metadata={"help": "at the last step (the paper's 0.01)"})
    top_k: int = field(default=50, metadata={"help": "best patches of each head to choose from (0 = all)"})
    strategy: str = field(
        default="self",
        metadata={"help": "lengths: self (of one sample that meets the threshold), threshold (each its own), ratio"},
    )
    min_threshold: float | None = field(
        default=None, metadata={"help": "least threshold of a group (null = threshold); drawn evenly for each"}
    )
    max_threshold: float | None = field(default=None, metadata={"help": "largest one (null = threshold)"})


@dataclass
class ObjectiveConfig:
    """What is learned from a group. The defaults are the reference's."""

    frames: int = field(default=2, metadata={"help": "frames of each clip that are rebuilt (the paper's 2 of 16)"})
    discount: float = field(default=0.995, metadata={"help": "of an advantage, for each patch before the frame's end"})
    advantage: str = field(
        default="mean", metadata={"help": "reward less the group's mean; or also over its deviation"}
    )
    ratio: str = field(default="on_policy", metadata={"help": "on_policy, or importance ratios against behaviour"})
    clip: float = field(
        default=0.0, metadata={"help": "with ratio=behaviour, clip ratios to 1 - clip .. 1 + clip (0 = not)"}
    )
    kl: float = field(default=0.0, metadata={"help": "weight of the divergence from the policy the run began with"})
    log_probs: str = field(
        default="sampled",
        metadata={"help": "of the distribution sampled from; or reference: at temperature 1, no masks"},
    )


@dataclass
class RolloutsConfig:
    """Who samples, and how far ahead."""

    actors: int = field(default=0, metadata={"help": "Ray actors of each learner rank (0 = the learner itself)"})
    lag: int = field(default=0, metadata={"help": "versions that a group's policy is behind the learner, exactly"})
    gpus: float = field(default=0.0, metadata={"help": "GPUs of each actor; 0.25 = four share one; 0 = they use CPUs"})
    timeout_s: float = field(default=600.0, metadata={"help": "an actor that takes longer over a group is replaced"})
    dump: str = field(default="", metadata={"help": "folder or s3:// prefix to record all trajectories in"})
    replay: str = field(default="", metadata={"help": "learn from recorded trajectories; nothing is sampled"})


@dataclass
class RLConfig(PolicyTrainConfig):
    """Reinforcement learning of the policy: less reconstruction error by the same gaze."""

    epochs: float = field(default=3.0, metadata={"help": "passes over the data (the paper's 3)"})
    micro_batch: int = field(default=1, metadata={"help": "groups a rank learns from at once; the rest accumulates"})
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(schedule="linear_w_warmup"))
    every: EveryConfig = field(default_factory=lambda: EveryConfig(checkpoint=50, validate=50))
    sample: SampleConfig = field(default_factory=SampleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)

    @property
    def needs_ray(self) -> bool:
        return super().needs_ray or self.rollouts.actors > 0

    @property
    def rank_actors(self) -> ActorNeeds:
        return ActorNeeds(self.rollouts.actors, self.rollouts.gpus)

    @property
    def longest_wait_s(self) -> float:
        return 3 * self.rollouts.timeout_s  # a learner that waits for its actors


def check_rl_config(config: RLConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check_train_config(config)
    sample, objective, rollouts = config.sample, config.objective, config.rollouts
    for name, value, least in (
        ("sample.group", sample.group, 2),
        ("sample.top_k", sample.top_k, 0),
        ("objective.frames", objective.frames, 1),
        ("rollouts.actors", rollouts.actors, 0),
        ("rollouts.lag", rollouts.lag, 0),
    ):
        if value < least:
            raise PipelineError(f"{name}={value}: must be at least {least}")
    for name, number in (
        ("sample.temperature", sample.temperature),
        ("sample.min_temperature", sample.min_temperature),
        ("rollouts.timeout_s", rollouts.timeout_s),
    ):
        if not 0 < number < math.inf:
            raise PipelineError(f"{name}={number}: must be a positive number")
    if not 0 < objective.discount <= 1:
        raise PipelineError(f"objective.discount={objective.discount}: must be more than 0, and at most 1")
    for name, number in (("clip", objective.clip), ("kl", objective.kl), ("gpus", rollouts.gpus)):
        if not 0 <= number < math.inf:
            where = "rollouts" if name == "gpus" else "objective"
            raise PipelineError(f"{where}.{name}={number}: must be 0 or more")
    if rollouts.gpus > 1 and rollouts.gpus % 1:
        raise PipelineError(f"rollouts.gpus={rollouts.gpus}: above 1 only whole numbers; Ray shares out no other parts")
    for name, text, known in (
        ("sample.strategy", sample.strategy, STRATEGIES),
        ("objective.advantage", objective.advantage, ADVANTAGES),
        ("objective.ratio", objective.ratio, RATIOS),
        ("objective.log_probs", objective.log_probs, LOG_PROBS),
    ):
        if text not in known:
            raise PipelineError(f"{name}={text}: must be one of {', '.join(known)}")
    if objective.clip and objective.ratio != "behaviour":
        raise PipelineError(
            f"objective.clip={objective.clip}: only ratios against behaviour move; set objective.ratio=behaviour"
        )
    if objective.log_probs == "reference" and objective.ratio == "behaviour":
        raise PipelineError(
            "objective.log_probs=reference: behaviour was recorded in the distribution sampled from; "
            "with objective.ratio=behaviour use objective.log_probs=sampled"
        )
    if objective.kl and sample.top_k:
        raise PipelineError(
            f"objective.kl={objective.kl}: the divergence between policies that leave out different patches is "
            "infinite; set sample.top_k=0"
        )
    low, high = sample.min_threshold, sample.max_threshold
    if sample.strategy == "ratio" and (low is not None or high is not None):
        raise PipelineError(
            "sample.strategy=ratio: has no threshold; leave sample.min_threshold and max_threshold open"
        )
    if (low is None) != (high is None):
        raise PipelineError("sample.min_threshold and sample.max_threshold are given together, or neither")
    if low is not None and high is not None and not 0 < low <= high < math.inf:
        raise PipelineError(f"sample.min_threshold={low}: must be more than 0, and at most sample.max_threshold={high}")
    if config.loader.bad_samples != "fail":
        raise PipelineError(
            f"loader.bad_samples={config.loader.bad_samples}: an RL run consumes whole groups in a fixed order; "
            "only fail works here"
        )
    if rollouts.dump and rollouts.replay:
        raise PipelineError("rollouts.dump and rollouts.replay: what is replayed was recorded; leave one of them empty")
    if rollouts.replay and rollouts.actors:
        raise PipelineError(f"rollouts.actors={rollouts.actors}: with rollouts.replay nothing is sampled; set it to 0")


def temperature(config: SampleConfig, step: int, steps: int) -> float:
    """Of the groups that a step (from 0) of so many consumes: from the first to the last, evenly in its logarithm."""
    return config.temperature * (config.min_temperature / config.temperature) ** (step / steps)


def version_of(step: int, lag: int) -> int:
    """The version of the policy that samples the groups of a step: exactly so many steps old, or the first."""
    return max(0, step - lag)
