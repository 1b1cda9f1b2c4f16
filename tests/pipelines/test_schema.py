"""pipelines.schema: a setting's help, limits, words and what a resume may change stand beside its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from jobs.cli import JOBS
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig, dataset_config
from pipelines.rl.config import RLConfig
from pipelines.schema import Setting, check, section, setting, settings_of
from pipelines.train.config import PolicyTrainConfig, ReconstructorTrainConfig


@dataclass
class Part:
    """A part."""

    speed: float = setting(1.0, "how fast", more_than=0, at_most=10)
    where: str = setting("", "a path", on_resume="same content")


@dataclass
class Example:
    """An example."""

    usage: ClassVar[str] = "autogaze example output=/data"

    count: int = setting(3, "how many", at_least=1)
    mode: Literal["", "slow", "fast"] = setting("", "how")
    limit: float | None = setting(None, "where it ends", at_least=0)
    share: float = setting(0.5, "of the whole", at_least=0, less_than=1)
    part: Part = section(lambda: Part(speed=2.0), on_resume="any value")
    output: str = setting("/out", "where to", required=True)
    names: list[str] = field(default_factory=list)


def by_name(config: Any) -> dict[str, Setting]:
    return {key.name: key for key in settings_of(config)}


def test_keys_come_in_order_the_required_ones_first() -> None:
    names = ["output", "count", "mode", "limit", "share", "part.speed", "part.where", "names"]
    assert [key.name for key in settings_of(Example())] == names
    assert [key.name for key in settings_of(Part(), "part.")] == ["part.speed", "part.where"]


def test_a_setting_says_what_its_field_says() -> None:
    keys = by_name(Example(limit=2.0))
    assert keys["count"].type is int and keys["count"].help == "how many" and not keys["count"].optional
    assert keys["mode"].type is str and keys["mode"].choices == ("", "slow", "fast")
    assert keys["limit"].type is float and keys["limit"].optional and keys["limit"].value == 2.0
    assert keys["part.speed"].value == 2.0, "the default of the section, not of its class"
    assert keys["output"].required and not keys["count"].required


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"output": ""}, "output= is missing: autogaze example output=/data"),
        ({"count": 0}, "count=0: must be at least 1"),
        ({"mode": "slower"}, "mode=slower: must be one of slow, fast"),
        ({"limit": -1.0}, "limit=-1.0: must be 0 or more"),
        ({"share": 1.0}, "share=1.0: must be 0 or more, and less than 1"),
        ({"share": math.nan}, "share=nan: must be 0 or more, and less than 1"),
        ({"limit": math.inf}, "limit=inf: must be 0 or more"),
        ({"part": Part(speed=0.0)}, "part.speed=0.0: must be more than 0, and at most 10"),
    ],
)
def test_what_is_out_of_its_limits_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError) as error:
        check(Example(**changes))
    assert str(error.value) == message


def test_everything_within_its_limits_passes() -> None:
    check(Example())
    check(Example(count=1, mode="fast", limit=0.0, share=0.0, part=Part(10.0), names=["a"]))


def test_a_part_resumes_as_its_section_does_unless_it_says_otherwise() -> None:
    keys = by_name(Example())
    assert keys["count"].on_resume == "same value"
    assert keys["part.speed"].on_resume == "any value"
    assert keys["part.where"].on_resume == "same content"


def test_every_number_of_every_job_has_limits() -> None:
    for name, job in JOBS.items():
        for key in settings_of(job.load_schema()()):
            if key.type in (int, float) and not key.name.startswith("ray."):
                assert key.allowed, f"{name}: {key.name}"
            assert key.help, f"{name}: {key.name}"


def free(config: Any) -> set[str]:
    """The keys, or whole sections of them, that a resume does not compare."""
    keys = settings_of(config)
    compared = {key.name.partition(".")[0] for key in keys if key.on_resume.startswith("same value")}
    names = {key.name for key in keys if not key.on_resume.startswith("same value")}
    return {name if name.partition(".")[0] in compared else name.partition(".")[0] for name in names}


def test_a_run_may_move_and_save_more_often_but_not_learn_otherwise() -> None:
    training = {"data", "run", "micro_batch", "val_clips", "every", "extend", "best", "teachers"} | {
        "micro_tokens",
        "compile",
    }
    training |= {"loader.workers", "loader.cache_mb", "loader.bad_samples"}
    names = ("device", "threads", "min_workers", "max_workers", "resize_s", "max_failures")
    training |= {f"scale.{name}" for name in names}  # all but its precision
    assert free(ReconstructorTrainConfig()) == training | {"recompute"}
    assert free(PolicyTrainConfig()) == training | {"verify"}
    rollouts = {f"rollouts.{name}" for name in ("actors", "gpus", "groups", "timeout_s", "dump")}
    assert free(RLConfig()) == training | {"verify"} | rollouts


@pytest.mark.parametrize("config", [PolicyTrainConfig(), ReconstructorTrainConfig(), RLConfig()])
def test_a_run_is_extended_by_its_length_its_rate_and_its_precision_alone(config: Any) -> None:
    extendable = {key.name for key in settings_of(config) if key.on_resume == "same value, or extend=true"}
    rate = {f"optimizer.{name}" for name in ("lr", "min_lr", "schedule", "clip_norm")}
    assert extendable == {"epochs", "steps", "scale.dtype", "scale.tf32"} | rate


def test_a_dataset_is_a_function_of_these_settings() -> None:
    recorded = {"input", "gaze", "threshold", "max_ratio", "clip", "shard", "frames", "jpeg_quality", "decoder"}
    config = PreprocessConfig(input="/in", output="/out")
    assert dataset_config(config).keys() == recorded
    config.targets.frames = 2
    assert dataset_config(config).keys() == recorded | {"targets"}
    config.labels.lengths = "paper"
    assert dataset_config(config).keys() == recorded | {"targets", "labels"}
