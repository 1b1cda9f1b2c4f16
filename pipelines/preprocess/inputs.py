"""What a job reads: the manifest of its input, and how the input has changed since it was planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.corpus.inputs import Found, is_manifest, list_input
from pipelines.corpus.manifest import manifest_tables, ordered_manifest
from pipelines.corpus.passed import REPEATED, PassedOver
from pipelines.corpus.scan import scan, unchanged
from pipelines.corpus.unfinished import UnfinishedScan
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.storage.location import Entry, Location, escaped

Progress = Callable[[int, int], None]


@dataclass
class JobInput:
    """What a job is to plan.

    Attributes:
        tables: a row per video (MANIFEST_SCHEMA), in order of object and uri. `passed` is complete after the last.
        root: what names of videos are relative to.
        passed: what the scan passed over.
        unfinished: where the scan is kept until the plan is written; None where nothing was scanned.
    """

    tables: Iterable[pa.Table]
    root: str
    passed: PassedOver
    unfinished: UnfinishedScan | None = None


def require_input(config: CorpusConfig) -> None:
    """Raise PipelineError, in one line, for an input in which a job would find nothing. Needs no Ray."""
    if is_manifest(config.input):
        next(manifest_tables(config.input), None)
    else:
        next((found for found in list_input(config.input).found if not found.problem), None)


def read_input(config: CorpusConfig, on_progress: Progress) -> JobInput:
    """The manifest of the input. Anything but a manifest is scanned: on Ray.

    on_progress: called with the number of objects that are scanned, and of all.
    Raises PipelineError when the input has no videos.
    """
    passed = PassedOver()

    def noting(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            passed.add_texts(table["passed_over"].drop_null().to_pylist())
            yield table

    if is_manifest(config.input):
        manifest = ordered_manifest(config.input)
        if not manifest.videos:
            raise PipelineError(f"input={config.input}: the manifest has no videos")
        for uri in manifest.repeated:
            passed.add(REPEATED, uri)
        return JobInput(noting(manifest.tables), manifest.folder, passed)
    listing, unfinished = list_input(config.input), UnfinishedScan(Location(config.output))
    passed = listing.passed
    found = scan(listing, timeout_s=config.decoder_timeout_s, keeper=unfinished, on_progress=on_progress)
    return JobInput(noting(found), listing.root, passed, unfinished)


def planned_input(config: CorpusConfig, output: Location) -> tuple[PassedOver, str]:
    """What was passed over of an input that was planned before, and a line when it no longer holds what was planned.

    The line is '' when it does. The plan stays as it is.
    """
    passed = PassedOver()
    for table in manifest_tables(output / "manifest.parquet", ["passed_over"]):
        passed.add_texts(table["passed_over"].drop_null().to_pylist())
    if is_manifest(config.input):
        return passed, ""
    listing = list_input(config.input)
    added = gone = changed = 0
    new = ""
    for before, now in _side_by_side(_planned_objects(output), listing.found):
        if before is None and now is not None and not now.problem:
            added, new = added + 1, new or now.entry.url
        elif now is None:
            gone += 1
        elif before is not None and not now.problem and not _same(before, now.entry):
            changed += 1
    passed.merge(listing.passed)
    if not added and not gone and not changed:
        return passed, ""
    line = (
        f"the input changed since this dataset was planned ({added} new, {changed} changed, "
        f"{gone} gone); this run finishes the plan it has."
    )
    if added:
        line += (
            f" For the new ones, such as {new}: name them in a list, preprocess that into another dataset "
            "(input=new.txt output=...), and train on both (data=OLD,NEW)"
        )
    if changed:
        line += " What changed fails as source_changed: a new output takes in its new state"
    return passed, line


def _same(row: dict[str, Any], entry: Entry) -> bool:
    """Whether an object is as it was, as far as its store can tell."""
    return unchanged(row, entry) or bool(row["version"] == entry.version)


def _planned_objects(output: Location) -> Iterator[dict[str, Any]]:
    """The first row of each object of a dataset's manifest, in order."""
    last = None
    for table in manifest_tables(output / "manifest.parquet", ["object", "uri", "version", "bytes"]):
        for row in table.to_pylist():
            if row["object"] != last:
                yield row
            last = row["object"]


def _side_by_side(
    planned: Iterator[dict[str, Any]], found: Iterator[Found]
) -> Iterator[tuple[dict[str, Any] | None, Found | None]]:
    """What two listings in order hold of each object; None where one lacks it."""
    before, now = next(planned, None), next(found, None)
    while before is not None or now is not None:
        old = None if before is None else str(before["object"])
        new = None if now is None else escaped(now.entry.url)
        here_first = new is not None and (old is None or new < old)
        there_first = old is not None and (new is None or old < new)
        yield (None if here_first else before), (None if there_first else now)
        before = before if here_first else next(planned, None)
        now = now if there_first else next(found, None)
