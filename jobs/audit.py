"""`autogaze audit RUN`: prove that a training run used every sample as often as it should; 0 only if it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from jobs.wording import plural
from pipelines.runs.audit import audit
from pipelines.schema import check, setting
from pipelines.storage.location import Location

_SHOWN = 12


@dataclass
class AuditConfig:
    """Check a training run against its ledger: each epoch every sample once, in the run's order."""

    usage: ClassVar[str] = "autogaze audit /data/runs/1"

    run: str = setting("", "folder or s3:// prefix of a training run", required=True, place="location")


def run(config: AuditConfig, console: Console) -> int:
    """Print what each epoch used and what is wrong, one line each; 0 if nothing is, else 1."""
    check(config)
    with console.status("reading the ledger"):
        result = audit(Location(config.run))
    table = Table("epoch", "steps", "samples", "repeats", "skipped", title=plural(len(result.attempts), "attempt"))
    for column in table.columns:
        column.justify = "right"
    left_out = len(result.epochs) - _SHOWN if len(result.epochs) > _SHOWN + 1 else 0
    if left_out:
        table.add_row(f"{left_out} more")
    for epoch in result.epochs[left_out:]:
        steps = str(epoch.of) if epoch.steps == epoch.of else f"{epoch.steps} of {epoch.of}"
        table.add_row(str(epoch.number), steps, f"{epoch.used:,}", str(epoch.repeats), str(epoch.skipped))
    console.print(table)
    for problem in result.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    if result.count > len(result.problems):
        console.print(f"... and {result.count - len(result.problems)} more", style="red", highlight=False)
    worlds = " -> ".join(str(attempt.world) for attempt in result.attempts[-8:])
    console.print(
        f"{plural(result.steps, 'step')} in {plural(len(result.attempts), 'attempt')} (ranks: {worlds}), "
        f"{plural(len(result.epochs), 'epoch')}: "
        + (plural(result.count, "problem") if result.count else "every sample as often as the order has it"),
        highlight=False,
    )
    return 1 if result.count else 0
