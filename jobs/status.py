"""`autogaze status DATASET|RUN`: how far a job is, how fast, and what went wrong, from storage alone.

Exit status: 0 while it runs and when it is done; 1 when it is stalled, was stopped before its end, or no clip is ok.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.wording import plural
from pipelines.inspection.dataset_status import DatasetStatus, StatusCache
from pipelines.inspection.liveness import clock
from pipelines.inspection.run_status import RunStatus
from pipelines.inspection.status import read_status
from pipelines.schema import check, setting

_COLOURS = {"running": "cyan", "starting": "cyan", "done": "green"}
_REASONS = 8


@dataclass
class StatusConfig:
    """Say how far the job of a dataset or of a training run is."""

    usage: ClassVar[str] = "autogaze status /data/gaze"

    place: str = setting(
        "", "folder or s3:// prefix of a dataset or of a training run", required=True, place="location"
    )
    watch: float = setting(0.0, "look again every so many seconds until it ends (0 = once)", at_least=0)
    format: Literal["text", "json"] = setting("text", "text, or json (one object a line)")
    outcomes: bool = setting(True, "read every index for outcomes and reasons (false = only count shards)")
    stall_s: float = setting(600.0, "seconds without a sign of life after which it is stalled", at_least=0)


def run(config: StatusConfig, console: Console) -> int:
    """Print the status, once or until the job ends; the exit status."""
    check(config)
    seen = StatusCache()

    def look() -> DatasetStatus | RunStatus:
        return read_status(config.place, stall_s=config.stall_s, outcomes=config.outcomes, seen=seen)

    status = look()
    if config.format == "json" or not (config.watch and console.is_terminal):
        _print(status, config, console)
        while config.watch and status.state in ("starting", "running"):
            time.sleep(config.watch)
            status = look()
            _print(status, config, console)
    else:
        with Live(shown(status), console=console, auto_refresh=False) as live:
            while status.state in ("starting", "running"):
                time.sleep(config.watch)
                status = look()
                live.update(shown(status), refresh=True)
    return 0 if status.well else 1


def _print(status: DatasetStatus | RunStatus, config: StatusConfig, console: Console) -> None:
    if config.format == "json":
        utf = console.encoding.startswith("utf")
        document = asdict(status) | {"well": status.well}
        console.file.write(json.dumps(_without_nan(document), ensure_ascii=not utf, allow_nan=False) + "\n")
        console.file.flush()
    else:
        console.print(shown(status))


def _without_nan(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(status: DatasetStatus | RunStatus) -> Table:
    """The status as a table: a name and its value on each line."""
    # As wide as the place, which a reader may want to copy: a title is folded at the width of its table.
    place = Text(status.url)
    table = Table(show_header=False, title_justify="left", title=place, min_width=place.cell_len)
    table.add_row("state", Text(status.state, style=_COLOURS.get(status.state, "red")))
    for name, value in _dataset_rows(status) if isinstance(status, DatasetStatus) else _run_rows(status):
        table.add_row(name, Text(value))
    if status.notice:
        table.add_row("", Text(status.notice, style="yellow"))
    return table


def _dataset_rows(status: DatasetStatus) -> list[tuple[str, str]]:
    share = status.clips / status.clips_planned if status.clips_planned else 1.0
    rows = [
        ("clips", f"{status.clips:,} of {status.clips_planned:,} ({share:.1%})"),
        ("shards", f"{status.shards:,} of {status.shards_planned:,} committed"),
    ]
    if status.version is not None:
        newest = f"the newest whole one is {status.whole_version}" if status.whole_version else "none is whole yet"
        whole = "" if status.version == status.whole_version else f"; {newest}"
        rows.append(("version", f"{status.version}{whole}"))
    if status.outcomes is not None:
        rows.append(("outcomes", ", ".join(f"{count:,} {name}" for name, count in status.outcomes.items())))
        reasons = list((status.reasons or {}).items())
        rows += [("", f"{count:,} {reason}") for reason, count in reasons[:_REASONS]]
        if len(reasons) > _REASONS:
            rows.append(("", f"and {len(reasons) - _REASONS} other reasons"))
    if status.rate is not None:
        rows.append(("rate", f"{status.rate:.3g} clips/s over the last commits"))
    rows += _time_rows(status)
    if status.stages:
        busy = ", ".join(f"{name} {share:.0%}" for name, share in sorted(status.stages.items(), key=lambda s: -s[1]))
        rows.append(("slowest stage", f"{status.slowest_stage} (busy: {busy})"))
    else:
        rows.append(("slowest stage", "not known yet: no run has recorded finished shards beside the dataset"))
    return rows


def _run_rows(status: RunStatus) -> list[tuple[str, str]]:
    of = f" of {status.steps:,} ({status.step / status.steps:.1%})" if status.steps else ""
    rows = [("step", f"{status.step:,}{of}" + ("" if status.epoch is None else f", epoch {status.epoch}"))]
    if status.loss is not None:
        rows.append(("loss", f"{status.loss:.4g}"))
    if status.validation:
        rows.append(("validation", "  ".join(f"{name} {value:.4g}" for name, value in status.validation.items())))
    if status.rate is not None:
        wait = "" if status.wait is None else f"; {status.wait:.1%} of the time waiting for data"
        rows.append(("rate", f"{status.rate:.3g} clips/s{wait}"))
    if status.idle:
        rows.append(("idle", ", ".join(f"{name} {share:.1%}" for name, share in status.idle.items())))
    if status.bottleneck:
        rows.append(("bottleneck", status.bottleneck))
    rows += _time_rows(status)
    rows.append(("checkpoint", "none yet" if status.checkpoint is None else f"step {status.checkpoint:,}"))
    ranks = "" if status.world is None else f", the last on {plural(status.world, 'rank')}"
    failed = f"; {status.failures} ended by a kill or an error" if status.failures else ""
    rows.append(("attempts", f"{status.attempts}{ranks}{failed}"))
    if status.skipped:
        rows.append(("skipped", f"{status.skipped:,} samples that could not be read"))
    return rows


def _time_rows(status: DatasetStatus | RunStatus) -> list[tuple[str, str]]:
    rows = [] if status.left_s is None else [("left", f"about {clock(status.left_s)}")]
    if status.idle_s is not None:
        rows.append(("last sign of life", f"{clock(status.idle_s)} ago"))
    return rows
