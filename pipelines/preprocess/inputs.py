"""What a job reads: the manifest of its input, and how the input has changed since it was planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.corpus import videos as corpus_videos
from pipelines.corpus.inputs import is_manifest, list_input
from pipelines.corpus.manifest import manifest_tables, ordered_manifest, read_manifest
from pipelines.corpus.passed import REPEATED, PassedOver
from pipelines.corpus.scan import by_object, scan, unchanged
from pipelines.corpus.unfinished import UnfinishedScan
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.storage.location import Entry, Location

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
        list_input(config.input)


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
    found = scan(listing, timeout_s=config.decoder_timeout_s, keeper=unfinished, on_progress=on_progress)
    passed.merge(listing.passed)
    return JobInput(noting([found]), listing.root, passed, unfinished)


def planned_input(config: CorpusConfig, output: Location) -> tuple[PassedOver, str]:
    """What was passed over of an input that was planned before, and a line when it no longer holds what was planned.

    The line is '' when it does. The plan stays as it is.
    """
    passed, planned = PassedOver(), read_manifest(output / "manifest.parquet")
    passed.add_texts(planned["passed_over"])
    if is_manifest(config.input):
        return passed, ""
    listing = list_input(config.input)
    passed.merge(listing.passed)
    before = by_object(planned[["object", "uri", "version", "bytes"]].to_dict("records"))
    now = {corpus_videos.escaped(entry.url): entry for entry in listing.entries}
    unusable = {corpus_videos.escaped(entry.url) for entry, _ in listing.unusable}
    added, gone = now.keys() - before.keys(), before.keys() - now.keys() - unusable
    changed = [url for url in now.keys() & before.keys() if not _same(before[url][0], now[url])]
    if not added and not gone and not changed:
        return passed, ""
    line = (
        f"the input changed since this dataset was planned ({len(added)} new, {len(changed)} changed, "
        f"{len(gone)} gone); this run finishes the plan it has."
    )
    if added:
        line += (
            f" For the new ones, such as {min(added)}: name them in a list, preprocess that into another dataset "
            "(input=new.txt output=...), and train on both (data=OLD,NEW)"
        )
    if changed:
        line += " What changed fails as source_changed: a new output takes in its new state"
    return passed, line


def _same(row: dict[str, Any], entry: Entry) -> bool:
    """Whether an object is as it was, as far as its store can tell."""
    return unchanged(row, entry) or bool(row["version"] == entry.version)
