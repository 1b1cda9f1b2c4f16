"""`autogaze verify DATASET`: re-read every byte of a dataset; exit status 0 only if nothing is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console

from pipelines.inspection.verify import verify
from pipelines.schema import check, setting
from pipelines.storage.location import Location


@dataclass
class VerifyConfig:
    """Check a dataset against its plan and its indexes."""

    usage: ClassVar[str] = "autogaze verify /data/gaze"

    dataset: str = setting("", "folder or s3:// prefix of the dataset", required=True, place="location")
    threads: int = setting(4, "shards read at once", at_least=1)


def run(config: VerifyConfig, console: Console) -> int:
    """Print what is wrong, one line each; 0 if nothing is, else 1."""
    check(config)
    with console.status("reading") as status:
        verdict = verify(
            Location(config.dataset),
            config.threads,
            lambda done, total: status.update(f"reading shard {done} of {total}"),
        )
    for problem in verdict.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{verdict.shards} shards, {verdict.clips} clips ({verdict.ok} ok, "
        + (f"{verdict.filtered} filtered, " if verdict.filtered else "")
        + f"{verdict.failed} failed), "
        f"{verdict.bytes / 1e6:.1f} MB read: "
        + (f"{len(verdict.problems)} problems" if verdict.problems else "all good"),
        highlight=False,
    )
    return 1 if verdict.problems else 0
