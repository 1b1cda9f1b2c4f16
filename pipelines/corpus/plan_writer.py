"""Write a plan: the rows of a manifest -> parts of manifest.parquet and plan.parquet in a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from pipelines.corpus.manifest import in_parts, manifest_bytes
from pipelines.corpus.plan_part import Outline
from pipelines.corpus.plan_reader import PlanFile, VideoPlan, part_url
from pipelines.corpus.planning import PART_VIDEOS, Planner
from pipelines.storage import store, tables
from pipelines.storage.location import Location

MANIFEST, PLAN = "manifest.parquet", "plan.parquet"


def write_plan(
    dataset: str,
    planner: Planner,
    manifest: Iterable[pa.Table],
    write: bool = True,
    part_videos: int = PART_VIDEOS,
    after: VideoPlan | None = None,
) -> VideoPlan:
    """Plan the videos of a manifest, and write both into a dataset, part by part, unless `write` is False.

    manifest: its rows, in order of object and uri. One part of them is in memory at a time.
    after: the plan that the planner goes on from; its parts stay, and are the first of the plan that is returned.

    Files are replaced one by one, and none is removed before all are there: jobs that start together, such as parts of
    one without a plan, all plan, and the first to end works by these very files while the others still write them.
    """
    output, parts, outlines = Location(dataset), list[PlanFile](), list[Outline]()
    if after is not None:
        parts, outlines = list(after.parts), [after.outline]
    for number, rows in enumerate(in_parts(manifest, part_videos), len(parts)):
        part, mark = planner.part(rows), ""
        if write:
            data = tables.table_bytes(part.table)
            store.publish(manifest_bytes(rows), part_url(output, MANIFEST, number))
            store.publish(data, part_url(output, PLAN, number))
            mark = hashlib.sha256(data).hexdigest()
        outlines.append(part.outline())
        parts.append(PlanFile(len(rows), int(outlines[-1].clips.sum()), len(outlines[-1].clips), mark))
    if write:
        _clear(output, len(parts))
    return VideoPlan(output, planner.cut, parts, Outline.joined(outlines))


def _clear(output: Location, parts: int) -> None:
    """Remove what a planner that was killed left there: files beyond the first `parts`."""
    for name in (MANIFEST, PLAN):
        mine = {part_url(output, name, number) for number in range(parts)}
        for entry in list(store.list_objects(output / name)):
            if entry.url not in mine:
                store.remove(entry.url)
        store.remove_temporaries(output / name)
