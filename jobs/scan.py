"""`autogaze scan input=STORE output=manifest.parquet`: list and probe a video store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from cluster.local import RayConfig, running
from jobs.scan_progress import ScanProgress, show_passed
from pipelines.corpus import manifest as manifests
from pipelines.corpus.inputs import is_manifest, list_input
from pipelines.corpus.passed import PassedOver
from pipelines.corpus.scan import scan
from pipelines.corpus.unfinished import UnfinishedScan
from pipelines.errors import PipelineError
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.video.decode import LONGEST_TIMEOUT_S


@dataclass
class ScanConfig:
    """Scan a video store into a manifest. An output that exists is brought up to date."""

    usage: ClassVar[str] = "autogaze scan input=/data/videos output=manifest.parquet"

    input: str = setting(
        "",
        "folder, file, s3:// prefix, tar, pattern (videos/**/*.mp4), list of videos (.txt, .csv, .parquet with a "
        "column url), or several of these with commas",
        required=True,
        place="input",
    )
    output: str = setting("manifest.parquet", "where the manifest goes", place="location")
    decoder_timeout_s: float = setting(
        60.0, "a video that takes longer to open fails as decoder_timeout", more_than=0, at_most=LONGEST_TIMEOUT_S
    )
    ray: RayConfig = section(RayConfig)


def run(config: ScanConfig, console: Console) -> int:
    """Write the manifest and print a summary of it; returns the exit status."""
    check(config)
    if is_manifest(config.input):
        raise PipelineError(
            f"input={config.input}: is a manifest already; give it to preprocess, or scan its videos into it: "
            f"input=VIDEOS output={config.input}"
        )
    output = Location(config.output)
    listing = list_input(config.input)
    first = next(listing.found)  # a missing input is reported before Ray starts
    listing = replace(listing, found=chain([first], listing.found))
    previous = manifests.manifest_tables(output) if store.exists(output) else ()
    store.require_writable(output.parent)  # so is an output that cannot be written
    unfinished, summary = UnfinishedScan(output), _Summary()
    with running(config.ray), ScanProgress(console) as progress:
        found = scan(listing, previous, config.decoder_timeout_s, unfinished, progress.update)
        manifests.write_manifest(map(summary.note, found), output)
    unfinished.remove()
    summary.show(console)
    listing.passed.merge(summary.passed)
    show_passed(console, listing.passed)
    console.print(f"manifest: {output}", highlight=False, soft_wrap=True, markup=False)
    return 0


class _Summary:
    """A manifest in numbers, counted as its rows go by."""

    def __init__(self) -> None:
        self.videos, self.frames, self.bytes, self.seconds = 0, 0, 0, 0.0
        self.failed: Counter[str] = Counter()
        self.passed = PassedOver()

    def note(self, table: pa.Table) -> pa.Table:
        ok = pc.equal(table["status"], "ok")
        self.videos += len(table)
        self.frames += pc.sum(table["frames"].filter(ok)).as_py() or 0
        self.seconds += pc.sum(table["duration"].filter(ok)).as_py() or 0.0
        self.bytes += pc.sum(table["bytes"]).as_py() or 0
        self.failed.update(table["reason"].filter(pc.invert(ok)).to_pylist())
        self.passed.add_texts(table["passed_over"].drop_null().to_pylist())
        return table

    def show(self, console: Console) -> None:
        failed = self.failed.total()
        console.print(
            f"{self.videos} videos: {self.videos - failed} ok, {failed} failed; {self.frames:,} frames, "
            f"{self.seconds / 3600:.2f} h, {self.bytes / 1e9:.3f} GB",
            highlight=False,
        )
        for reason, count in self.failed.most_common():
            console.print(f"  {count} {reason}", highlight=False)
