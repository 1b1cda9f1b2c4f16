"""The settings of a training job, one dataclass for each thing that can be trained; the defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pipelines.dataset.versions import parse_versions
from pipelines.errors import PipelineError
from pipelines.gazing.policy import Dtype
from pipelines.gazing.reconstructor import TeachersConfig
from pipelines.loading.config import LoaderConfig, ReadConfig
from pipelines.schema import OnResume, check, section, setting
from pipelines.storage.location import places_in

EXTEND: OnResume = "same value, or extend=true"


@dataclass
class OptimizerConfig:
    """Adam, and how its learning rate changes over a run."""

    lr: float = setting(5e-4, "learning rate (the paper's 5e-4)", more_than=0, on_resume=EXTEND)
    min_lr: float = setting(1e-5, "learning rate of the last step", at_least=0, on_resume=EXTEND)
    schedule: Literal["constant", "linear", "linear_w_warmup"] = setting(
        "linear", "constant, linear or linear_w_warmup (10% of the steps)", on_resume=EXTEND
    )
    clip_norm: float = setting(0.0, "clip gradients to this norm (0 = do not)", at_least=0, on_resume=EXTEND)
    weight_decay: float = setting(0.0, "decoupled weight decay (AdamW)", at_least=0)


@dataclass
class ScaleConfig:
    """Where it runs."""

    min_workers: int = setting(1, "fewest ranks to go on with", at_least=1)
    max_workers: int = setting(1, "ranks to have when there is room; 1 runs without Ray", at_least=1)
    device: Literal["cpu", "cuda"] = setting("cpu", "cpu or cuda; one device for each rank")
    dtype: Dtype = setting("float32", "float32, or bfloat16 (autocast; weights stay float32)", on_resume=EXTEND)
    tf32: bool = setting(
        False, "products of float32 on a GPU by TF32: faster, of 10 bits in place of 23", on_resume=EXTEND
    )
    threads: int = setting(1, "CPU threads of each rank", at_least=1)
    max_failures: int = setting(3, "ranks that may die before the job gives up", at_least=0)
    resize_s: float = setting(60.0, "with fewer ranks than max_workers, seconds between looks for room", more_than=0)


@dataclass
class EveryConfig:
    """How often, in optimizer steps; 0 = only at the end."""

    checkpoint: int = setting(200, "steps between checkpoints", at_least=0)
    validate: int = setting(200, "steps between validations", at_least=0)
    keep: int = setting(3, "checkpoints to keep", at_least=1)


@dataclass
class AverageConfig:
    """A moving average of the weights, kept beside them."""

    decay: float = setting(
        0.0,
        "of the average after each step: 0.999 remembers some 1,000 steps; it is validated too, and saved as "
        "policy-ema beside policy (0 = no average)",
        at_least=0,
        less_than=1,
    )


@dataclass
class AugmentConfig:
    """What clips look like anew in every epoch."""

    flip: bool = setting(
        False,
        "mirror half of the clips, with their gaze, other ones in each epoch; of a policy's labels the errors are "
        "measured again, so they must be the canvas'",
    )
    crop: float = setting(
        1.0,
        "show of half of the clips a square part, the same of all frames, whose side is at least this share of the "
        "frame's; a policy's labels are made anew, so they must be of gaze=canvas (1 = whole frames)",
        more_than=0,
        at_most=1,
    )
    starts: bool = setting(
        False,
        "decode each clip from another frame of its video on in each epoch; for frames=none, and a policy's labels as "
        "for crop",
    )
    max_stride: int = setting(
        0, "and take every n-th frame, n drawn from 1 to this (0 = the dataset's own)", at_least=0
    )

    @property
    def moves(self) -> bool:
        """Whether clips are of other frames than those that the dataset's gaze is of."""
        return self.starts or bool(self.max_stride)

    @property
    def relabels(self) -> bool:
        """Whether some clips lose the gaze that is stored with them."""
        return self.moves or self.crop < 1

    @property
    def changes(self) -> bool:
        """Whether any clip is another than the stored one."""
        return self.flip or self.relabels

    def named(self) -> str:
        """The first of the keys that change clips, with its value, for messages; those that need new labels first."""
        if self.starts:
            return "augment.starts=true"
        if self.max_stride:
            return f"augment.max_stride={self.max_stride}"
        return f"augment.crop={self.crop:g}" if self.crop < 1 else "augment.flip=true"


@dataclass(frozen=True)
class ActorNeeds:
    """`count` actors, each on a CPU of its own or on `gpus` of a GPU."""

    count: int = 0
    gpus: float = 0.0


@dataclass
class PolicySizeConfig:
    """Sizes of a policy that is trained from random weights; the defaults are the released policy's."""

    hidden_size: int = setting(192, "width", at_least=1)
    num_layers: int = setting(4, "decoder layers", at_least=1)
    num_heads: int = setting(6, "attention heads", at_least=1)
    intermediate_size: int = setting(384, "width of the feed-forward part", at_least=1)
    block_size: int = setting(10, "tokens predicted at once", at_least=1)


@dataclass
class TrainConfig:
    """What every training job has.

    A run may go on elsewhere, and with its data at another path: fingerprints are compared.
    """

    usage: ClassVar[str] = "autogaze train policy data=/data/gaze run=/data/runs/1"
    before: ClassVar[dict[str, Any]] = {}
    """What runs did that were begun before a setting existed, where that is not its default."""

    data: str = setting(
        "",
        "dataset made by preprocess; several separated by commas",
        required=True,
        on_resume="same content",
        place="locations",
    )
    run: str = setting(
        "",
        "folder or s3:// prefix of the run; the same again resumes it",
        required=True,
        on_resume="any value",
        place="location",
    )
    init: str = setting("", "policy to begin from: a run, its folder or a hub id ('' = random weights)", place="policy")
    epochs: float = setting(150.0, "passes over the data (the paper's 150)", more_than=0, on_resume=EXTEND)
    steps: int = setting(0, "optimizer steps of the run (0 = as many as epochs are)", at_least=0, on_resume=EXTEND)
    extend: bool = setting(
        False, "go on with a run, with other epochs, steps or rates from its last checkpoint on", on_resume="any value"
    )
    data_weights: str = setting(
        "",
        "uses of each dataset's samples in an epoch, with commas, in the order of data: 2,0.5 takes all of the first "
        "twice and half of the second, the other half in the next epoch ('' = each once)",
    )
    data_versions: str = setting(
        "",
        "version of each dataset, with commas, in the order of data, of those that have grown ('' = the newest whole "
        "one when the run begins; a run keeps to its own)",
    )
    global_batch: int = setting(256, "samples of one optimizer step, over all ranks", at_least=1)
    micro_batch: int = setting(
        8, "samples a rank holds at once; the rest accumulates", at_least=1, on_resume="any value"
    )
    optimizer: OptimizerConfig = section(OptimizerConfig)
    loader: ReadConfig = section(lambda: ReadConfig(val_fraction=0.05))
    scale: ScaleConfig = section(ScaleConfig, on_resume="any value")
    every: EveryConfig = section(EveryConfig, on_resume="any value")
    val_clips: int = setting(64, "held-out clips of one validation", at_least=0, on_resume="any value")
    ema: AverageConfig = section(AverageConfig)
    best: str = setting(
        "",
        "keep the checkpoint whose validation has the lowest of this number, such as val_loss, error or ema_error, "
        "named by checkpoints/best ('' = keep the newest only)",
        on_resume="any value",
    )

    @property
    def datasets(self) -> list[str]:
        """The URLs that `data` names."""
        return [str(place) for place in places_in(self.data)]

    @property
    def loader_config(self) -> LoaderConfig:
        """What the loader of a rank is given. Without `data_versions` it is the first version of each dataset."""
        weights = parse_weights(self.data_weights)
        return LoaderConfig(
            data=self.datasets,
            weights=weights,
            versions=parse_versions(self.data_versions) or [1] * len(self.datasets),
            global_batch=self.global_batch,
            pinned=self.scale.device == "cuda",
            starts=self.augmentation.starts,
            max_stride=self.augmentation.max_stride,
            **vars(self.loader),
        )

    @property
    def augmentation(self) -> AugmentConfig:
        """How clips change from epoch to epoch; by default not at all."""
        return AugmentConfig()

    @property
    def needs_ray(self) -> bool:
        """Whether the job starts processes beside its own."""
        return self.scale.max_workers > 1

    @property
    def rank_actors(self) -> ActorNeeds:
        """The actors that each rank starts."""
        return ActorNeeds()

    @property
    def longest_wait_s(self) -> float:
        """Seconds that a healthy rank may keep the others waiting inside a step."""
        return 0.0


def _compile() -> bool:
    """The setting of policy and reconstructor alike."""
    return setting(
        False,
        "compile what is between attentions by torch.compile: fewer kernels a step, minutes at the start; needs a C++ "
        "compiler",
        on_resume="any value",
    )


@dataclass
class PolicyTrainConfig(TrainConfig):
    """Next-token prediction of the policy on labelled clips."""

    micro_tokens: int = setting(
        0,
        "tokens a rank holds at once, padding included, in samples of like lengths, instead of micro_batch (0 = "
        "micro_batch)",
        at_least=0,
        on_resume="any value",
    )
    compile: bool = _compile()
    policy: PolicySizeConfig = section(PolicySizeConfig)
    augment: AugmentConfig = section(AugmentConfig)
    loss_prediction: float = setting(1.0, "weight of the loss-prediction loss", at_least=0)
    reconstructor: str = setting(
        "canvas",
        "measures the error of validation gaze: canvas, a run that trains one, or its folder",
        place="reconstructor",
    )
    teachers: TeachersConfig = section(TeachersConfig, on_resume="same content")
    reconstructor_dtype: Dtype = setting(
        "float32", "of the reconstructor and its teachers, in validation and RL's rewards: float32 or bfloat16"
    )
    threshold: float | None = setting(
        None, "predicted loss at which validation gaze stops (null = the dataset's)", at_least=0
    )
    max_ratio: float = setting(0.75, "most patches of a frame in validation gaze", more_than=0, at_most=1)
    verify: bool = setting(
        False,
        "validation gazes verified by the reconstructor too: verified_ratio is what it takes to keep the threshold",
        on_resume="any value",
    )

    @property
    def augmentation(self) -> AugmentConfig:
        return self.augment


@dataclass
class ReconstructorSizeConfig:
    """Sizes of a reconstructor trained from random weights; the defaults are the released one's (ViT-MAE-large)."""

    hidden_size: int = setting(1024, "width of the encoder", at_least=1)
    num_layers: int = setting(24, "encoder layers", at_least=1)
    num_heads: int = setting(16, "encoder heads", at_least=1)
    decoder_hidden_size: int = setting(512, "width of the decoder", at_least=1)
    decoder_num_layers: int = setting(8, "decoder layers", at_least=1)
    decoder_num_heads: int = setting(16, "decoder heads", at_least=1)


@dataclass
class RefinerSizeConfig:
    """Sizes of a refiner trained from random weights."""

    width: int = setting(96, "width at the grid of blocks (8 pixels each)", at_least=1)
    blocks: int = setting(2, "layers there, before the deep ones and again after them", at_least=1)
    deep_width: int = setting(192, "width at half that grid", at_least=1)
    deep_blocks: int = setting(4, "layers there", at_least=1)


@dataclass
class LossWeightsConfig:
    """Weights of the parts of a reconstructor's loss (null = the checkpoint's, else 1 for l1 and 0.3 for a teacher)."""

    l1: float | None = setting(None, "of the mean absolute difference", at_least=0)
    dinov2: float | None = setting(None, "of the features of teachers.dinov2", at_least=0)
    dinov2_reg: float | None = setting(None, "of the features of teachers.dinov2_reg", at_least=0)
    siglip2: float | None = setting(None, "of the features of teachers.siglip2", at_least=0)

    def given(self) -> dict[str, float]:
        """Those that are set."""
        return {name: weight for name, weight in asdict(self).items() if weight is not None}


@dataclass
class ReconstructorTrainConfig(TrainConfig):
    """Training of a reconstructor on random gaze, and on the datasets' own."""

    usage: ClassVar[str] = "autogaze train reconstructor data=/data/gaze run=/data/runs/1"

    kind: Literal["videomae", "refiner"] = setting(
        "videomae", "videomae (the paper's) or refiner (small, corrects the canvas)"
    )
    init: str = setting(
        "", "reconstructor to begin from: a run or its folder ('' = random weights)", place="reconstructor"
    )
    micro_tokens: int = setting(
        0,
        "tokens a rank holds at once, padding included, in samples of like lengths, instead of micro_batch (0 = "
        "micro_batch)",
        at_least=0,
        on_resume="any value",
    )
    recompute: bool = setting(
        False,
        "keep only what goes into each layer of a VideoMAE and compute the rest again for gradients: a third more "
        "work, far less memory",
        on_resume="any value",
    )
    compile: bool = _compile()
    model: ReconstructorSizeConfig = section(ReconstructorSizeConfig)
    refiner: RefinerSizeConfig = section(RefinerSizeConfig)
    augment: AugmentConfig = section(AugmentConfig)
    frames: int = setting(2, "frames of each clip that are rebuilt (the paper's 2 of 16)", at_least=1)
    min_ratio: float = setting(0.01, "least share of patches in random gaze", more_than=0, at_most=1)
    max_ratio: float = setting(0.5, "largest share of patches in random gaze", more_than=0, at_most=1)
    stored_gaze: float = setting(0.25, "share of clips that show their stored gaze instead", at_least=0, at_most=1)
    teachers: TeachersConfig = section(TeachersConfig, on_resume="same content")
    teachers_dtype: Dtype = setting("float32", "of the teachers: float32 or bfloat16, which is for GPUs")
    weights: LossWeightsConfig = section(LossWeightsConfig)

    @property
    def augmentation(self) -> AugmentConfig:
        return self.augment


def check_train_config(config: TrainConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    if not config.datasets:
        raise PipelineError(f"data={config.data}: names no dataset")
    fewest, most = config.scale.min_workers, config.scale.max_workers
    if most < fewest:
        raise PipelineError(f"scale.max_workers={most}: must be at least {fewest}, which is scale.min_workers")
    uneven = [world for world in range(fewest, most + 1) if config.global_batch % world]
    if uneven:
        raise PipelineError(
            f"global_batch={config.global_batch}: {uneven[0]} ranks cannot share it evenly; give a multiple of every "
            f"number of ranks from scale.min_workers={fewest} to scale.max_workers={most}"
        )
    weights = parse_weights(config.data_weights)
    if weights and len(weights) != len(config.datasets):
        raise PipelineError(
            f"data_weights={config.data_weights}: {len(weights)} for {len(config.datasets)} datasets; give one for each"
        )
    versions = parse_versions(config.data_versions)
    if versions and len(versions) != len(config.datasets):
        raise PipelineError(
            f"data_versions={config.data_versions}: {len(versions)} for {len(config.datasets)} datasets; give one for "
            "each"
        )
    if config.best and not (config.val_clips and config.loader.val_fraction):
        raise PipelineError(
            f"best={config.best}: nothing is validated; set val_clips= and loader.val_fraction= to more than 0"
        )
    if isinstance(config, PolicyTrainConfig):
        _check_policy(config)
    if isinstance(config, ReconstructorTrainConfig):
        _check_reconstructor(config)


def parse_weights(text: str) -> list[float]:
    """The numbers of data_weights. Raises PipelineError for what is no number above 0."""
    try:
        weights = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        weights = [0.0]
    if not all(0 < weight < math.inf for weight in weights):
        raise PipelineError(f"data_weights={text}: numbers above 0 with commas expected, such as 2,0.5")
    return weights


def _check_policy(config: PolicyTrainConfig) -> None:
    sizes = config.policy
    if config.reconstructor == "canvas" and config.teachers.given():
        raise PipelineError("teachers.* is set, but reconstructor=canvas has none; leave it out")
    if config.reconstructor == "canvas" and config.reconstructor_dtype != "float32":
        raise PipelineError(
            f"reconstructor_dtype={config.reconstructor_dtype}: reconstructor=canvas computes in whole numbers; leave "
            "it out"
        )
    if sizes.hidden_size % (2 * sizes.num_heads) and not config.init:  # a checkpoint has sizes of its own
        raise PipelineError(
            f"policy.hidden_size={sizes.hidden_size}: is no even multiple of policy.num_heads={sizes.num_heads}"
        )


def _check_reconstructor(config: ReconstructorTrainConfig) -> None:
    other, kind = ("model", "videomae") if config.kind == "refiner" else ("refiner", "refiner")
    section_of_other = getattr(config, other)
    if section_of_other != type(section_of_other)():
        raise PipelineError(f"{other}.*: has sizes of kind={kind}, and kind={config.kind}; leave them out")
    for name in ("micro_tokens", "recompute", "compile"):
        if config.kind == "refiner" and getattr(config, name):
            given = str(getattr(config, name)).lower()
            raise PipelineError(f"{name}={given}: is for kind=videomae, and kind=refiner; leave it out")
    for name in config.weights.given():
        if name != "l1" and config.weights.given()[name] and name not in config.teachers.given():
            raise PipelineError(f"weights.{name}: weights a teacher that is not given; give teachers.{name}= too")
    sizes = config.model
    for name, hidden, heads in (
        ("", sizes.hidden_size, sizes.num_heads),
        ("decoder_", sizes.decoder_hidden_size, sizes.decoder_num_heads),
    ):
        if hidden % math.lcm(4, heads) and not config.init:
            raise PipelineError(
                f"model.{name}hidden_size={hidden}: is no multiple of 4 and of model.{name}num_heads={heads}"
            )
    if config.min_ratio > config.max_ratio:
        raise PipelineError(f"min_ratio={config.min_ratio}: must be at most max_ratio={config.max_ratio}")


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of `steps`: a pure function, so that resuming has nothing to restore."""
    if config.schedule == "constant":
        return config.lr
    warmup = max(1, round(0.1 * steps)) if config.schedule == "linear_w_warmup" else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    return config.lr + (config.min_lr - config.lr) * min(done, 1.0)
