"""What a training job is told: one dataclass for each thing that can be trained, typed, with the paper's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import TeachersConfig

SCHEDULES = ("constant", "linear", "linear_w_warmup")
DTYPES = ("float32", "bfloat16")


@dataclass
class OptimizerConfig:
    """Adam, and how its rate goes down."""

    lr: float = field(default=5e-4, metadata={"help": "learning rate (the paper's 5e-4)"})
    min_lr: float = field(default=1e-5, metadata={"help": "where the schedule ends"})
    schedule: str = field(default="linear", metadata={"help": "constant, linear or linear_w_warmup (10% of the steps)"})
    clip_norm: float = field(default=0.0, metadata={"help": "clip gradients to this norm (0 = do not)"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay (AdamW)"})


@dataclass
class DataConfig:
    """What is read, and in which order."""

    seed: int = field(default=0, metadata={"help": "fixes the order of samples and all that is drawn at random"})
    window: int = field(default=16, metadata={"help": "shards whose samples are shuffled together"})
    val_fraction: float = field(default=0.05, metadata={"help": "share of the videos held out for validation"})
    workers: int = field(default=2, metadata={"help": "reading threads of each rank (0 = none)"})
    cache_mb: int = field(default=0, metadata={"help": "keep whole shards on local disk, this much (0 = read ranges)"})
    bad_samples: str = field(default="fail", metadata={"help": "fail, or skip and count, what cannot be read"})


@dataclass
class ScaleConfig:
    """Where it runs."""

    min_workers: int = field(default=1, metadata={"help": "fewest ranks to go on with"})
    max_workers: int = field(default=1, metadata={"help": "ranks to have when there is room; 1 runs without Ray"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda; one device for each rank"})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 (autocast; weights stay float32)"})
    threads: int = field(default=1, metadata={"help": "CPU threads of each rank"})
    max_failures: int = field(default=3, metadata={"help": "ranks that may die before the job gives up"})
    resize_s: float = field(
        default=60.0, metadata={"help": "with fewer ranks than max_workers, seconds between looks for room"}
    )


@dataclass
class EveryConfig:
    """How often, in optimizer steps; 0 = only at the end."""

    checkpoint: int = field(default=200, metadata={"help": "steps between checkpoints"})
    validate: int = field(default=200, metadata={"help": "steps between validations"})
    keep: int = field(default=3, metadata={"help": "checkpoints to keep"})


@dataclass(frozen=True)
class ActorNeeds:
    """`count` actors, each on a CPU of its own or on `gpus` of a GPU."""

    count: int = 0
    gpus: float = 0.0


@dataclass
class PolicySizeConfig:
    """Sizes of a policy that is trained from random weights; as released."""

    hidden_size: int = field(default=192, metadata={"help": "width"})
    num_layers: int = field(default=4, metadata={"help": "decoder layers"})
    num_heads: int = field(default=6, metadata={"help": "attention heads"})
    intermediate_size: int = field(default=384, metadata={"help": "width of the feed-forward part"})
    block_size: int = field(default=10, metadata={"help": "tokens predicted at once"})


@dataclass
class TrainConfig:
    """What every training job has. `data` and `run` must be given."""

    data: str = field(default="", metadata={"help": "dataset made by preprocess; several separated by commas"})
    run: str = field(default="", metadata={"help": "folder or s3:// prefix of the run; the same again resumes it"})
    init: str = field(default="", metadata={"help": "checkpoint to begin from ('' = random weights)"})
    epochs: float = field(default=150.0, metadata={"help": "passes over the data (the paper's 150)"})
    global_batch: int = field(default=256, metadata={"help": "samples of one optimizer step, over all ranks"})
    micro_batch: int = field(default=8, metadata={"help": "samples a rank holds at once; the rest accumulates"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loader: DataConfig = field(default_factory=DataConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    val_clips: int = field(default=64, metadata={"help": "held-out clips of one validation"})

    @property
    def datasets(self) -> list[str]:
        """The URLs that `data` names."""
        return [url for url in self.data.split(",") if url]

    @property
    def needs_ray(self) -> bool:
        """Whether the job starts processes beside its own."""
        return self.scale.max_workers > 1

    @property
    def rank_actors(self) -> ActorNeeds:
        """The actors that each rank starts beside itself."""
        return ActorNeeds()

    @property
    def longest_wait_s(self) -> float:
        """Seconds that a healthy rank may keep the others waiting inside a step."""
        return 0.0


@dataclass
class PolicyTrainConfig(TrainConfig):
    """Next-token prediction of the policy on labelled clips."""

    policy: PolicySizeConfig = field(default_factory=PolicySizeConfig)
    loss_prediction: float = field(default=1.0, metadata={"help": "weight of the loss-prediction loss"})
    reconstructor: str = field(
        default="canvas", metadata={"help": "measures the error of validation gaze: canvas or a checkpoint"}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "predicted loss at which validation gaze stops (null = the dataset's)"}
    )
    max_ratio: float = field(default=0.75, metadata={"help": "most patches of a frame in validation gaze"})


@dataclass
class ReconstructorSizeConfig:
    """Sizes of a reconstructor that is trained from random weights; as released (ViT-MAE-large)."""

    hidden_size: int = field(default=1024, metadata={"help": "width of the encoder"})
    num_layers: int = field(default=24, metadata={"help": "encoder layers"})
    num_heads: int = field(default=16, metadata={"help": "encoder heads"})
    decoder_hidden_size: int = field(default=512, metadata={"help": "width of the decoder"})
    decoder_num_layers: int = field(default=8, metadata={"help": "decoder layers"})
    decoder_num_heads: int = field(default=16, metadata={"help": "decoder heads"})


@dataclass
class ReconstructorTrainConfig(TrainConfig):
    """Pre-training of the reconstructor on random gaze, and on the datasets' own."""

    model: ReconstructorSizeConfig = field(default_factory=ReconstructorSizeConfig)
    frames: int = field(default=2, metadata={"help": "frames of each clip that are rebuilt (the paper's 2 of 16)"})
    min_ratio: float = field(default=0.01, metadata={"help": "least share of patches in random gaze"})
    max_ratio: float = field(default=0.5, metadata={"help": "largest share of patches in random gaze"})
    stored_gaze: float = field(default=0.25, metadata={"help": "share of clips that show their stored gaze instead"})
    teachers: TeachersConfig = field(default_factory=TeachersConfig)


def check_train_config(config: TrainConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    for name in ("data", "run"):
        if not getattr(config, name):
            raise PipelineError(f"{name}= is missing: autogaze train policy data=/data/gaze run=/data/runs/1")
    if not config.data.strip(","):
        raise PipelineError(f"data={config.data}: names no dataset")
    optimizer, loader, scale, every = config.optimizer, config.loader, config.scale, config.every
    for name, value, least in (
        ("global_batch", config.global_batch, 1),
        ("micro_batch", config.micro_batch, 1),
        ("val_clips", config.val_clips, 0),
        ("loader.window", loader.window, 1),
        ("loader.workers", loader.workers, 0),
        ("loader.cache_mb", loader.cache_mb, 0),
        ("loader.seed", loader.seed, 0),
        ("scale.min_workers", scale.min_workers, 1),
        ("scale.max_workers", scale.max_workers, scale.min_workers),
        ("scale.threads", scale.threads, 1),
        ("scale.max_failures", scale.max_failures, 0),
        ("every.checkpoint", every.checkpoint, 0),
        ("every.validate", every.validate, 0),
        ("every.keep", every.keep, 1),
    ):
        if value < least:
            raise PipelineError(f"{name}={value}: must be at least {least}")
    for name, number in (
        ("epochs", config.epochs),
        ("optimizer.lr", optimizer.lr),
        ("scale.resize_s", scale.resize_s),
    ):
        if not 0 < number < math.inf:
            raise PipelineError(f"{name}={number}: must be a positive number")
    for name, number in (
        ("optimizer.min_lr", optimizer.min_lr),
        ("optimizer.clip_norm", optimizer.clip_norm),
        ("optimizer.weight_decay", optimizer.weight_decay),
    ):
        if not 0 <= number < math.inf:
            raise PipelineError(f"{name}={number}: must be 0 or more")
    for name, text, known in (
        ("optimizer.schedule", optimizer.schedule, SCHEDULES),
        ("loader.bad_samples", loader.bad_samples, ("fail", "skip")),
        ("scale.device", scale.device, ("cpu", "cuda")),
        ("scale.dtype", scale.dtype, DTYPES),
    ):
        if text not in known:
            raise PipelineError(f"{name}={text}: must be one of {', '.join(known)}")
    if not 0 <= loader.val_fraction < 1:
        raise PipelineError(f"loader.val_fraction={loader.val_fraction}: must be 0 or more, and less than 1")
    uneven = [w for w in range(scale.min_workers, scale.max_workers + 1) if config.global_batch % w]
    if uneven:
        raise PipelineError(
            f"global_batch={config.global_batch}: {uneven[0]} ranks cannot share it evenly; give a multiple of every "
            f"number of ranks from scale.min_workers={scale.min_workers} to scale.max_workers={scale.max_workers}"
        )
    if isinstance(config, PolicyTrainConfig):
        _check_policy(config)
    if isinstance(config, ReconstructorTrainConfig):
        _check_reconstructor(config)


def _check_policy(config: PolicyTrainConfig) -> None:
    _check_sizes("policy", config.policy)
    sizes = config.policy
    if sizes.hidden_size % (2 * sizes.num_heads) and not config.init:
        raise PipelineError(
            f"policy.hidden_size={sizes.hidden_size}: is no even multiple of policy.num_heads={sizes.num_heads}"
        )
    if not 0 < config.max_ratio <= 1:
        raise PipelineError(f"max_ratio={config.max_ratio}: must be more than 0, and at most 1")
    for name, number in (("threshold", config.threshold), ("loss_prediction", config.loss_prediction)):
        if number is not None and not 0 <= number < math.inf:
            raise PipelineError(f"{name}={number}: must be 0 or more")


def _check_reconstructor(config: ReconstructorTrainConfig) -> None:
    _check_sizes("model", config.model)
    sizes = config.model
    for name, hidden, heads in (
        ("", sizes.hidden_size, sizes.num_heads),
        ("decoder_", sizes.decoder_hidden_size, sizes.decoder_num_heads),
    ):
        if hidden % math.lcm(4, heads) and not config.init:
            raise PipelineError(
                f"model.{name}hidden_size={hidden}: is no multiple of 4 and of model.{name}num_heads={heads}"
            )
    if config.frames < 1:
        raise PipelineError(f"frames={config.frames}: must be at least 1")
    if not 0 < config.min_ratio <= config.max_ratio <= 1:
        raise PipelineError(f"min_ratio={config.min_ratio}, max_ratio={config.max_ratio}: wanted 0 < min <= max <= 1")
    if not 0 <= config.stored_gaze <= 1:
        raise PipelineError(f"stored_gaze={config.stored_gaze}: must be 0 or more, and at most 1")


def _check_sizes(prefix: str, sizes: PolicySizeConfig | ReconstructorSizeConfig) -> None:
    for name, value in vars(sizes).items():
        if value < 1:
            raise PipelineError(f"{prefix}.{name}={value}: must be at least 1")


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of a step (from 0) of so many: a pure function, so that resuming has nothing to restore."""
    if config.schedule == "constant":
        return config.lr
    warmup = max(1, round(0.1 * steps)) if config.schedule == "linear_w_warmup" else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    return config.lr + (config.min_lr - config.lr) * min(done, 1.0)
