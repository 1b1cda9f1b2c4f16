"""`autogaze audit RUN`: prove that a training run used every sample as often as it should; 0 only if it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from jobs.wording import plural
from pipelines.dataset.versions import parse_versions
from pipelines.runs.audit import audit
from pipelines.runs.ledger import Attempt
from pipelines.schema import check, setting
from pipelines.storage import store
from pipelines.storage.location import Location, places_in
from pipelines.yaml_text import read_yaml

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
    for line in _data(Location(config.run), result.attempts[0]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
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


def _data(run: Location, attempt: Attempt) -> list[str]:
    """What the order is of, a line for each dataset: its place, version, shards and samples to train on.

    [] where the run's config.yaml is gone, which the audit itself does without.
    """
    try:
        settings = read_yaml(store.read(run / "config.yaml"))["config"]
        places, versions = places_in(settings["data"]), parse_versions(settings.get("data_versions") or "")
    except (FileNotFoundError, YAMLError, KeyError, TypeError, AttributeError):
        return []
    lines = []
    for number, (place, counts) in enumerate(zip(places, attempt.counts, strict=False)):
        version = f", version {versions[number]}" if number < len(versions) else ""
        lines.append(f"data: {place}{version}: {plural(sum(counts), 'sample')} in {plural(len(counts), 'shard')}")
    return lines
