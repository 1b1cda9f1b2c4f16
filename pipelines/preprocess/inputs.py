"""What a job reads: the manifest of its input, and how the input has changed since it was planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.inputs import Found, Listing, is_manifest, list_input
from pipelines.corpus.manifest import manifest_tables, ordered_manifest
from pipelines.corpus.passed import REPEATED, PassedOver
from pipelines.corpus.plan_reader import VideoPlan, part_url
from pipelines.corpus.scan import scan, unchanged
from pipelines.corpus.unfinished import UnfinishedScan
from pipelines.dataset.shards import ShardedDataset
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.storage.location import Entry, Location, escaped

Progress = Callable[[int, int], None]
_OF_OBJECTS = ["object", "uri", "version", "bytes"]


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


def new_input(config: CorpusConfig, dataset: ShardedDataset, on_progress: Progress) -> JobInput:
    """What the input holds, and `dataset` was not planned with: see `read_input`. Objects are told apart by URL."""
    if is_manifest(config.input):
        everything = read_input(config, on_progress)
        known = pa.array([row["object"] for row in _planned_objects(dataset)], pa.string())
        news = (table.filter(pc.invert(pc.is_in(table["object"], value_set=known))) for table in everything.tables)
        return JobInput(news, everything.root, everything.passed)
    listing, unfinished = list_input(config.input), UnfinishedScan(dataset.url)
    only_new = Listing(listing.root, _new_objects(dataset, listing), listing.passed)
    found = scan(only_new, timeout_s=config.decoder_timeout_s, keeper=unfinished, on_progress=on_progress)
    return JobInput(found, listing.root, listing.passed, unfinished)


def has_new_input(config: CorpusConfig, dataset: ShardedDataset) -> bool:
    """Whether `new_input` would find anything. Needs no Ray."""
    if is_manifest(config.input):
        return any(len(table) for table in new_input(config, dataset, lambda done, total: None).tables)
    return next(_new_objects(dataset, list_input(config.input)), None) is not None


def _new_objects(dataset: ShardedDataset, listing: Listing) -> Iterator[Found]:
    pairs = _side_by_side(_planned_objects(dataset), listing.found)
    return (now for before, now in pairs if before is None and now is not None)


def planned_input(config: CorpusConfig, dataset: ShardedDataset) -> tuple[PassedOver, str]:
    """What was passed over of an input that was planned before, and a line when it no longer holds what was planned.

    The line is '' when it does. The plan stays as it is.
    """
    passed = PassedOver()
    for rows in _manifest_runs(dataset, ["passed_over"]):
        for table in rows:
            passed.add_texts(table["passed_over"].drop_null().to_pylist())
    listing = _listed_in(config.input) if is_manifest(config.input) else list_input(config.input)
    added = gone = changed = 0
    new = ""
    for before, now in _side_by_side(_planned_objects(dataset), listing.found):
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
        line += f" The new ones, such as {new}: {how_to_grow(config)}."
    if changed:
        line += " What changed fails as source_changed: a new output takes in its new state."
    return passed, line


def _listed_in(manifest: str) -> Listing:
    """The objects of a manifest, as a listing of its input would show them; what it passed over stands in the plan."""
    tables = ordered_manifest(manifest).tables
    return Listing("", (Found(_entry_of(row)) for row in _first_rows(tables)))


def _entry_of(row: dict[str, Any]) -> Entry:
    return Entry(Location.as_is(row["object"]), int(row["bytes"]), str(row["version"]))


def how_to_grow(config: CorpusConfig) -> str:
    """What makes new shards of what is new."""
    if config.grow:  # a part, which grows nothing: the others would not know where it ended
        return f"part={config.part} makes what is planned; part=plan grow=true plans new shards for them"
    return "grow=true makes new shards of them"


def _same(row: dict[str, Any], entry: Entry) -> bool:
    """Whether an object is as it was, as far as its store can tell."""
    return unchanged(row, entry) or bool(row["version"] == entry.version)


def _planned_objects(dataset: ShardedDataset) -> Iterator[dict[str, Any]]:
    """The first row of each object of a dataset's manifest, in order."""
    runs = [_first_rows(rows) for rows in _manifest_runs(dataset, _OF_OBJECTS)]
    last = None
    for row in heapq.merge(*runs, key=lambda row: str(row["object"])):
        if row["object"] != last:
            yield row
        last = row["object"]


def _first_rows(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """The first row of each object of a manifest in order, what _OF_OBJECTS names of it."""
    last = None
    for table in tables:
        for row in table.select(_OF_OBJECTS).to_pylist():
            if row["object"] != last:
                yield row
            last = row["object"]


def _manifest_runs(dataset: ShardedDataset, columns: Sequence[str]) -> list[Iterator[pa.Table]]:
    """Columns of a dataset's manifest, version by version: each is in order of object. Parts that dataset.json does
    not name, as of a growth that was killed, are left out.
    """
    place, plan = dataset.url / "manifest.parquet", dataset.plan
    if not isinstance(plan, VideoPlan):
        return [manifest_tables(place, columns)]
    ends = [*(int(one["parts"]) for one in dataset.about.get("versions") or ()), len(plan.parts)]

    def run(first: int, end: int) -> Iterator[pa.Table]:
        for number in range(first, end):
            yield from manifest_tables(part_url(dataset.url, "manifest.parquet", number), columns)

    return [run(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]


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
