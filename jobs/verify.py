"""`autogaze verify DATASET`: re-read every byte of a dataset; exit status 0 only if nothing is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.inspection.verify import verify
from pipelines.storage import urls


@dataclass
class VerifyConfig:
    """Check a dataset against its plan and its indexes."""

    dataset: str = field(default="", metadata={"help": "folder or s3:// prefix of the dataset"})
    threads: int = field(default=4, metadata={"help": "shards read at once"})


def run(config: VerifyConfig, console: Console) -> int:
    """Print what is wrong, one line each; 0 if nothing is, else 1."""
    if not config.dataset:
        raise PipelineError("which dataset? autogaze verify /data/gaze")
    with console.status("reading") as status:
        verdict = verify(
            urls.normalise(config.dataset),
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
