"""`autogaze audit RUN`: prove that a training run used every sample as often as it should; 0 only if it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from pipelines.errors import PipelineError
from pipelines.runs.audit import audit
from pipelines.storage import urls

_SHOWN = 12


@dataclass
class AuditConfig:
    """Check a training run against its ledger: each epoch every sample once, in the run's order."""

    run: str = field(default="", metadata={"help": "folder or s3:// prefix of a training run"})


def run(config: AuditConfig, console: Console) -> int:
    """Print what each epoch used and what is wrong, one line each; 0 if nothing is, else 1."""
    if not config.run:
        raise PipelineError("which run? autogaze audit /data/runs/1")
    with console.status("reading the ledger"):
        found = audit(urls.normalise(config.run))
    table = Table("epoch", "steps", "samples", "repeats", "skipped", title=f"{len(found.attempts)} attempts")
    for column in table.columns:
        column.justify = "right"
    left_out = len(found.epochs) - _SHOWN if len(found.epochs) > _SHOWN + 1 else 0
    if left_out:
        table.add_row(f"{left_out} more")
    for epoch in found.epochs[left_out:]:
        steps = str(epoch.of) if epoch.steps == epoch.of else f"{epoch.steps} of {epoch.of}"
        table.add_row(str(epoch.number), steps, f"{epoch.used:,}", str(epoch.repeats), str(epoch.skipped))
    console.print(table)
    for problem in found.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    if found.count > len(found.problems):
        console.print(f"... and {found.count - len(found.problems)} more", style="red", highlight=False)
    worlds = " -> ".join(str(attempt.world) for attempt in found.attempts[-8:])
    console.print(
        f"{found.steps} steps in {len(found.attempts)} attempts (ranks: {worlds}), {len(found.epochs)} epochs: "
        + (f"{found.count} problems" if found.count else "every sample as often as the order has it"),
        highlight=False,
    )
    return 1 if found.count else 0
