"""The settings of an RL run: how gazes are sampled and rewarded, what is learned from them, and who samples them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipelines.errors import PipelineError
from pipelines.schema import section, setting
from pipelines.train.config import (
    EXTEND,
    ActorNeeds,
    EveryConfig,
    OptimizerConfig,
    PolicyTrainConfig,
    check_train_config,
)


@dataclass
class SampleConfig:
    """How the gazes of a group are sampled."""

    group: int = setting(12, "gazes of each clip (the paper's 12)", at_least=2)
    temperature: float = setting(1.0, "at the first step (the paper's 1)", more_than=0)
    min_temperature: float = setting(0.01, "at the last step (the paper's 0.01)", more_than=0)
    top_k: int = setting(50, "best patches of each head to choose from (0 = all)", at_least=0)
    strategy: Literal["self", "threshold", "ratio"] = setting(
        "self",
        "lengths: self (of one sample that meets the threshold), threshold (each its own, which rewards longer gaze: "
        "more patches, less error), ratio",
    )
    zero_variance: Literal["warmer", "keep"] = setting(
        "warmer",
        "a group whose gazes all have the same errors teaches nothing: warmer (sample it again at twice the "
        "temperature, up to the highest) or keep it",
    )
    min_threshold: float | None = setting(
        None, "least threshold of a group (null = threshold); drawn evenly for each", more_than=0
    )
    max_threshold: float | None = setting(None, "largest one (null = threshold)", more_than=0)


@dataclass
class ObjectiveConfig:
    """What is learned from a group. docs/rl.md says where the defaults are not the reference's."""

    frames: int = setting(2, "frames of each clip that are rebuilt (the paper's 2 of 16)", at_least=1)
    discount: float = setting(0.995, "of an advantage, for each patch before the frame's end", more_than=0, at_most=1)
    advantage: Literal["mean", "deviation"] = setting(
        "mean", "mean: reward less the group's mean; deviation: also over its deviation"
    )
    ratio: Literal["on_policy", "behaviour"] = setting("on_policy", "on_policy, or importance ratios against behaviour")
    clip: float = setting(0.0, "with ratio=behaviour, clip ratios to 1 - clip .. 1 + clip (0 = not)", at_least=0)
    truncate: float = setting(
        0.0, "with ratio=behaviour, ratios are at most this (0 = any), whatever the advantage", at_least=0
    )
    label_prediction: float | None = setting(
        None,
        "weight of the loss-prediction loss on the dataset's labels too (null = 1 where their errors are in the "
        "reconstructor's units, else 0)",
        at_least=0,
    )
    kl: float = setting(0.0, "weight of the divergence from the policy the run began with", at_least=0)
    log_probs: Literal["sampled", "reference"] = setting(
        "sampled", "of the distribution sampled from; or reference: at temperature 1, no masks"
    )


@dataclass
class RolloutsConfig:
    """Who samples, and how far ahead."""

    actors: int = setting(
        0, "Ray actors of each learner rank (0 = the learner itself)", at_least=0, on_resume="any value"
    )
    lag: int = setting(0, "versions that a group's policy is behind the learner, exactly", at_least=0)
    gpus: float = setting(
        0.0, "GPUs of each actor; 0.25 = four share one; 0 = they use CPUs", at_least=0, on_resume="any value"
    )
    groups: int = setting(
        1,
        "groups of a request, which are sampled and rewarded as one batch: 1 for CPUs, 8 and more to fill a GPU",
        at_least=1,
        on_resume="any value",
    )
    timeout_s: float = setting(
        600.0, "an actor that takes longer over a request is replaced", more_than=0, on_resume="any value"
    )
    dump: str = setting(
        "", "folder or s3:// prefix to record all trajectories in", on_resume="any value", place="location"
    )
    replay: str = setting("", "learn from recorded trajectories; nothing is sampled", place="location")


@dataclass
class RLConfig(PolicyTrainConfig):
    """Reinforcement learning of the policy: less reconstruction error by the same gaze."""

    usage: ClassVar[str] = "autogaze rl data=/data/gaze run=/data/runs/rl init=/data/runs/ntp"
    before: ClassVar[dict[str, Any]] = {"sample.zero_variance": "keep", "objective.label_prediction": 0.0}

    epochs: float = setting(3.0, "passes over the data (the paper's 3)", more_than=0, on_resume=EXTEND)
    micro_batch: int = setting(
        1, "groups a rank learns from at once; the rest accumulates", at_least=1, on_resume="any value"
    )
    micro_tokens: int = setting(
        0,
        "tokens a rank learns from at once, in groups of like lengths, instead of micro_batch (0 = micro_batch)",
        at_least=0,
        on_resume="any value",
    )
    optimizer: OptimizerConfig = section(lambda: OptimizerConfig(schedule="linear_w_warmup"))
    every: EveryConfig = section(lambda: EveryConfig(checkpoint=50, validate=50), on_resume="any value")
    sample: SampleConfig = section(SampleConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    rollouts: RolloutsConfig = section(RolloutsConfig)

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
    if config.augment.changes:
        raise PipelineError(f"{config.augment.named()}: actors sample gazes of clips as they are; leave it out of RL")
    if rollouts.gpus > 1 and rollouts.gpus % 1:
        raise PipelineError(f"rollouts.gpus={rollouts.gpus}: above 1 only whole numbers; Ray shares out no other parts")
    if objective.clip and objective.ratio != "behaviour":
        raise PipelineError(
            f"objective.clip={objective.clip}: only ratios against behaviour move; set objective.ratio=behaviour"
        )
    if objective.truncate and (objective.ratio != "behaviour" or objective.truncate < 1):
        raise PipelineError(
            f"objective.truncate={objective.truncate}: 1 or more, and only ratios against behaviour move; "
            "set objective.ratio=behaviour"
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
    if low is not None and high is not None and low > high:
        raise PipelineError(f"sample.min_threshold={low}: must be at most sample.max_threshold={high}")
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
    """The temperature of a step (from 0) of `steps`: from the first to the last, evenly in its logarithm."""
    cooled: float = config.temperature * (config.min_temperature / config.temperature) ** (step / steps)
    return cooled


def temperatures(config: SampleConfig, step: int, steps: int) -> list[float]:
    """The temperatures at which a group of a step is tried, in order, until its gazes have different errors.

    The step's own, and with zero_variance=warmer twice as much each time, up to the highest of the run.
    """
    tried, highest = [temperature(config, step, steps)], max(config.temperature, config.min_temperature)
    while config.zero_variance == "warmer" and tried[-1] < highest:
        tried.append(min(2 * tried[-1], highest))
    return tried


def version_of(step: int, lag: int) -> int:
    """The version of the policy that samples the groups of a step: exactly `lag` steps old, or the first."""
    return max(0, step - lag)
