"""`autogaze scan input=STORE output=manifest.parquet`: list and probe a video store."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from cluster.local import RayConfig, running
from pipelines.corpus import manifest as manifests
from pipelines.corpus import videos
from pipelines.errors import PipelineError
from pipelines.storage import store, urls
from pipelines.video.decode import check_timeout


@dataclass
class ScanConfig:
    """Scan a video store into a manifest. An output that exists is brought up to date."""

    input: str = field(default="", metadata={"help": "folder, file, s3:// prefix or tar of videos"})
    output: str = field(default="manifest.parquet", metadata={"help": "where the manifest goes"})
    decoder_timeout_s: float = field(
        default=60.0, metadata={"help": "a video that takes longer to open fails as decoder_timeout"}
    )
    ray: RayConfig = field(default_factory=RayConfig)


def run(config: ScanConfig, console: Console) -> int:
    """Write the manifest and print what is in it; the exit status."""
    if not config.input:
        raise PipelineError("input= is missing: autogaze scan input=/data/videos output=manifest.parquet")
    check_timeout(config.decoder_timeout_s)
    output = urls.normalise(config.output)
    previous = manifests.read_manifest(output) if store.exists(output) else None
    videos.list_videos(config.input)  # a missing input need not wait for Ray
    store.require_writable(output.rpartition("/")[0])  # nor should an hour's scan end in one that cannot be kept
    with running(config.ray):
        manifest = manifests.scan(config.input, previous, config.decoder_timeout_s)
    store.publish(manifests.manifest_bytes(manifest), output)
    ok = manifest[manifest["status"] == "ok"]
    console.print(
        f"{len(manifest)} videos: {len(ok)} ok, {len(manifest) - len(ok)} failed; {int(ok['frames'].sum()):,} frames, "
        f"{ok['duration'].sum() / 3600:.2f} h, {manifest['bytes'].sum() / 1e9:.3f} GB",
        highlight=False,
    )
    failed = manifest[manifest["status"] != "ok"]
    for reason, count in failed["reason"].value_counts().items():
        console.print(f"  {count} {reason}", highlight=False)
    console.print(f"manifest: {output}", highlight=False, soft_wrap=True, markup=False)
    return 0
