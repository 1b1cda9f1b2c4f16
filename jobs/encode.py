"""`autogaze encode data=GAZE encoder.checkpoint=... output=FEATURES`: gazed patches -> token features.

Or straight from videos, which are gazed at and encoded in one pass: `autogaze encode input=VIDEOS ...`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.local import RayConfig
from jobs import making
from jobs.scan_progress import show_passed
from jobs.wording import fewer
from pipelines.corpus.inputs import is_manifest
from pipelines.dataset.run_records import RunRecord
from pipelines.dataset.shards import open_dataset
from pipelines.encode.config import POOLED, EncodeConfig, check_encode_config
from pipelines.encode.workers import share_encode_workers
from pipelines.preprocess.decoding import PIECE_BYTES
from pipelines.preprocess.totals import Totals
from pipelines.schema import section

if TYPE_CHECKING:
    from pipelines.encode.job import EncodeJob


@dataclass
class EncodeCommand(EncodeConfig):
    """Encode gazed patches into token features."""

    ray: RayConfig = section(RayConfig, on_resume="any value")


def run(config: EncodeCommand, console: Console, dry_run: bool = False) -> int:
    """Run the job, or with dry_run show what it would do; the exit status."""
    check_encode_config(config)
    if config.data:
        open_dataset(config.data)
    else:
        making.require_source(config)
    # After the checks, since these import torch.
    from pipelines.encode.graph import execute_encode
    from pipelines.encode.job import plan_encode, resume_encode
    from pipelines.preprocess.record import how_gazed

    steps = making.MakingJob(
        name="encode",
        resume=resume_encode,
        plan=plan_encode,
        plans_on_ray=bool(config.input) and not is_manifest(config.input),  # a gaze dataset has a plan
        share=share_encode_workers,
        execute=execute_encode,
        how=lambda job, workers: {
            "gaze": how_gazed(job.gazer, workers.device) if job.gazer else "stored",
            "encoder": job.encoder.words,
        },
        show_plan=_show_plan,
        show_summary=_show_summary,
    )
    return making.run(steps, config, config.ray, console, dry_run)


def _show_plan(job: EncodeJob, console: Console) -> None:
    facts, config = job.encoder.facts, job.config
    _, todo = job.clips_to_make()
    table = Table(title=f"what autogaze encode would write to {job.output}", show_header=False, title_justify="left")
    values = facts["width"] * len(job.encoder.layers)
    for name, value in (
        ("clips", f"{job.clips:,} planned, of them {todo:,} to encode, {todo * job.plan.frames:,} frames"),
        ("shards", f"{job.shards:,} planned, {len(job.missing):,} to make"),
        ("encoder", job.encoder.words),
        ("of a token", f"{values * 2:,} bytes: {', '.join(job.encoder.layers) or 'nothing'} in {config.store}"),
        ("pooled", ", ".join(POOLED[config.pooled]) or "nothing"),
        ("memory", f"{PIECE_BYTES / 1e6:.0f} MB of decoded frames a decoder, however large a shard is"),
    ):
        table.add_row(name, value)
    console.print(table)
    show_passed(console, job.passed)


def _show_summary(job: EncodeJob, totals: Totals, record: RunRecord, console: Console) -> None:
    table = making.summary_of(totals)
    vocabulary = job.encoder.vocabulary
    if totals.ok:
        possible = totals.frames * vocabulary.size
        table.add_row(
            "tokens",
            f"{totals.tokens:,} of {possible:,} multi-scale patches: " + fewer(totals.tokens, possible, vocabulary),
        )
    table.add_row("gazed by", record.gaze)
    table.add_row("encoded by", f"{record.encoder}, on {record.device}")
    making.show_summary(table, job, totals, record, console)
