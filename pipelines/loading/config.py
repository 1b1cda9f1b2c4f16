"""The settings of a loader: those a user sets for a training job, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipelines.schema import setting


@dataclass(kw_only=True)
class ReadConfig:
    """How samples are ordered and read: the `loader.*` keys of a training job."""

    seed: int = setting(0, "fixes the order of samples and all that is drawn at random", at_least=0)
    window: int = setting(16, "shards whose samples are shuffled together", at_least=1)
    val_fraction: float = setting(0.0, "share of the videos held out for validation", at_least=0, less_than=1)
    workers: int = setting(2, "reading threads of each rank (0 = none)", at_least=0, on_resume="any value")
    cache_mb: int = setting(
        0, "keep whole shards on local disk, this much (0 = read ranges)", at_least=0, on_resume="any value"
    )
    bad_samples: Literal["fail", "skip"] = setting(
        "fail", "fail, or skip and count, what cannot be read", on_resume="any value"
    )


@dataclass
class LoaderConfig(ReadConfig):
    """All that a ShardLoader is given. All ranks have the same."""

    usage: ClassVar[str] = "name a dataset made by autogaze preprocess"

    data: list[str] = field(default_factory=list, metadata={"help": "datasets made by preprocess", "required": True})
    weights: list[float] = field(
        default_factory=list, metadata={"help": "uses of each dataset's samples in an epoch ([] = 1 each)"}
    )
    versions: list[int] = field(
        default_factory=list, metadata={"help": "version of each dataset ([] = the newest whole one)"}
    )
    global_batch: int = setting(256, "samples of one step, over all ranks", at_least=1)
    prefetch: int = setting(2, "batches decoded ahead, where there are workers", at_least=0)
    cache_dir: str = setting("", "where the cache is, shared by all ranks ('' = in the temporary folder)")
    targets: bool = setting(False, "also give the stored targets of each sample")
    pinned: bool = setting(False, "frames in page-locked memory, which a GPU copies from by itself")
    starts: bool = setting(False, "of datasets without frames: decode each clip from another frame on in each epoch")
    max_stride: int = setting(
        0,
        "and take every n-th frame, n drawn from 1 to this (0 = as planned); the gaze is then of other frames",
        at_least=0,
    )
