"""`autogaze verify DATASET`: re-read every byte of a dataset; exit status 0 only if nothing is wrong.

With deep=true it also decodes some clips of each video a second way, and compares their frames. With errors=true it
measures the errors of a verified gaze again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.console import Console

from jobs.wording import plural
from pipelines.dataset.features import open_any
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import ReconstructorConfig, TeachersConfig
from pipelines.inspection.deep import verify_deep
from pipelines.inspection.measured import measurer_of, not_measurable
from pipelines.inspection.verify import verify
from pipelines.schema import check, section, setting
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.reconstruction.base import Reconstructor


@dataclass
class VerifyConfig:
    """Check a dataset against its plan and its indexes."""

    usage: ClassVar[str] = "autogaze verify /data/gaze"

    dataset: str = setting("", "folder or s3:// prefix of the dataset", required=True, place="location")
    threads: int = setting(4, "shards read at once", at_least=1)
    version: int = setting(0, "of a dataset that has grown, check this version only (0 = all there is)", at_least=0)
    deep: bool = setting(False, "also decode two clips of each video a second way, and compare their frames")
    errors: bool = setting(
        False,
        "also measure the errors of verify=true again, on the stored frames: by canvas, or by reconstructor.checkpoint",
    )
    reconstructor: ReconstructorConfig = section(ReconstructorConfig)
    teachers: TeachersConfig = section(TeachersConfig)
    second: Literal["sequential", "decord", "torchcodec"] = setting(
        "sequential", "how deep=true decodes: PyAV from the first frame on, or another decoder if it is installed"
    )


def run(config: VerifyConfig, console: Console) -> int:
    """Print what is wrong, one line each; 0 if nothing is, else 1."""
    check(config)
    measurer = _measurer(config)
    with console.status("reading") as status:
        verdict = verify(
            Location(config.dataset),
            config.threads,
            lambda done, total: status.update(f"reading shard {done} of {total}"),
            measurer,
            config.version,
        )
    deep = None
    if config.deep:
        with console.status("decoding") as status:
            deep = verify_deep(
                Location(config.dataset),
                config.second,
                config.threads,
                lambda done, total: status.update(f"decoding video {done} of {total}"),
            )
    problems = verdict.problems + (deep.problems if deep else [])
    for problem in problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{plural(verdict.shards, 'shard')}, {plural(verdict.clips, 'clip')} ({verdict.ok} ok, "
        + (f"{verdict.filtered} filtered, " if verdict.filtered else "")
        + f"{verdict.failed} failed), "
        f"{verdict.bytes / 1e6:.1f} MB read: "
        + (plural(len(verdict.problems), "problem") if verdict.problems else "all good"),
        highlight=False,
    )
    if verdict.version is not None:
        console.print(
            f"of version {verdict.version.number}: {plural(verdict.version.shards, 'shard')}", highlight=False
        )
    if measurer is not None:
        console.print(f"{plural(verdict.measured, 'clip')} measured again by {measurer.name}", highlight=False)
    if deep is not None:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(deep.skipped.items()))
        console.print(
            f"{plural(deep.clips, 'clip')} of {plural(deep.videos, 'video')} decoded a second way: "
            + (
                plural(len(deep.problems), "problem")
                if deep.problems
                else "the same frames"
                if deep.clips
                else "nothing to compare"
            )
            + (f"; videos not compared: {skipped}" if skipped else ""),
            highlight=False,
        )
    return 1 if problems else 0


def _measurer(config: VerifyConfig) -> Reconstructor | None:
    """What measures the errors again; None where that is not asked for. Raises PipelineError where it cannot be."""
    if not config.errors:
        if config.reconstructor.checkpoint:
            raise PipelineError("reconstructor.checkpoint= is for errors=true; add that, or leave it out")
        return None
    dataset = open_any(Location(config.dataset))
    if not isinstance(dataset, Dataset):
        reason = "it holds features, not a gaze"
    else:
        reason = not_measurable(dataset, config.reconstructor.checkpoint)
        if not reason:
            return measurer_of(dataset, config.reconstructor, config.teachers)
    raise PipelineError(
        f"errors=true: {config.dataset} cannot be measured again: {reason}; leave errors= out, or measure it with "
        "autogaze evaluate"
    )
