"""`autogaze scan input=STORE output=manifest.parquet`: list and probe a video store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
from rich.console import Console

from cluster.local import RayConfig, running
from jobs.scan_progress import ScanProgress, show_passed
from pipelines.corpus import manifest as manifests
from pipelines.corpus.inputs import is_manifest, list_input
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
    previous = pa.concat_tables(manifests.manifest_tables(output)) if store.exists(output) else None
    listing = list_input(config.input)  # a missing input is reported before Ray starts
    store.require_writable(output.parent)  # so is an output that cannot be written
    unfinished = UnfinishedScan(output)
    with running(config.ray), ScanProgress(console) as progress:
        found = scan(listing, previous, config.decoder_timeout_s, unfinished, progress.update)
    store.publish(manifests.manifest_bytes(found), output)
    manifest = found.to_pandas()
    unfinished.remove()
    ok = manifest[manifest["status"] == "ok"]
    console.print(
        f"{len(manifest)} videos: {len(ok)} ok, {len(manifest) - len(ok)} failed; {int(ok['frames'].sum()):,} frames, "
        f"{ok['duration'].sum() / 3600:.2f} h, {manifest['bytes'].sum() / 1e9:.3f} GB",
        highlight=False,
    )
    failed = manifest[manifest["status"] != "ok"]
    for reason, count in failed["reason"].value_counts().items():
        console.print(f"  {count} {reason}", highlight=False)
    listing.passed.add_texts(manifest["passed_over"])
    show_passed(console, listing.passed)
    console.print(f"manifest: {output}", highlight=False, soft_wrap=True, markup=False)
    return 0
