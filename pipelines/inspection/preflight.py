"""What every node proves before any work: it can write, read and remove in the output, and decode the input's videos.

These functions run on the nodes; `autogaze cluster preflight` makes rows of what they raise.
"""

from __future__ import annotations

import hashlib
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from pipelines.corpus import manifest as manifests
from pipelines.corpus import videos
from pipelines.errors import PipelineError
from pipelines.storage import retry, store, urls
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder

_TRIED = 5


@dataclass(frozen=True)
class SampleVideo:
    """A video to decode everywhere: a byte window of an object."""

    uri: str
    object: str
    offset: int
    bytes: int


def write_probe(output: str) -> str:
    """Write an object into `output`, read it back, and leave it for the others; its URL. Raises StoreError."""
    if urls.scheme(output) == "memory":
        raise retry.StoreError(f"{output}: memory:// lives in one process; use a folder or s3://")
    url = urls.join(urls.normalise(output), f"{urls.TEMPORARY_PREFIX}preflight-{uuid.uuid4().hex}")
    data = url.encode()
    try:
        store.publish(data, url)
        read_probe(url)
    except FileNotFoundError as error:
        raise retry.StoreError(f"{output}: no such place; create the folder or bucket first") from error
    except retry.StoreError as error:
        raise retry.StoreError(str(error).replace(url, output)) from error  # the probe's name tells nobody anything
    return url


def read_probe(url: str) -> None:
    """Read an object that write_probe left, maybe on another node. Raises FileNotFoundError, StoreError."""
    if store.read(url) != url.encode():
        raise retry.StoreError(f"{url}: other bytes come back than were written; is another program writing there?")


def remove_probe(url: str) -> None:
    """Remove it. Raises StoreError when it is there still."""
    store.remove(url)
    if store.exists(url):
        raise retry.StoreError(f"{url}: cannot be removed; check the right to delete")


def find_sample(input: str, decoder: str) -> SampleVideo:
    """One of the smallest videos of a store, or of a manifest, that decodes here.

    Raises PipelineError: there is none, or none of the first few decodes. StoreError.
    """
    failed: list[str] = []
    for sample in islice(_smallest(input, failed), _TRIED):
        try:
            decode_sample(sample, decoder)
        except VideoError as error:
            failed.append(f"{sample.uri} is {error.reason}")
        else:
            return sample
    raise PipelineError(f"input={input}: no video decodes among the {len(failed)} smallest ({', '.join(failed)})")


def _smallest(input: str, failed: list[str]) -> Iterator[SampleVideo]:
    """Videos to try, small ones first; tars that are none, or hold no video, are noted in `failed`."""
    if input.endswith(".parquet"):
        rows = manifests.read_manifest(urls.normalise(input))
        good = rows[rows["status"] == "ok"].nsmallest(_TRIED, "bytes")
        if good.empty:
            raise PipelineError(f"input={input}: the manifest has no video that is ok")
        for row in good.itertuples():
            yield SampleVideo(str(row.uri), str(row.object), int(row.offset), int(row.bytes))
        return
    for entry in sorted(videos.list_videos(input), key=lambda entry: entry.bytes)[:_TRIED]:
        if not entry.url.lower().endswith(videos.TAR_SUFFIX):
            yield SampleVideo(entry.url, entry.url, 0, entry.bytes)
            continue
        found = False
        with suppress(tarfile.TarError, EOFError):  # what comes before the damage may serve
            for name, offset, size in videos.tar_members(entry.url):
                if videos.is_video(name) and offset is not None:
                    found = True
                    yield SampleVideo(f"{entry.url}#{name}", entry.url, offset, size)
        if not found:
            failed.append(f"{entry.url} is no tar of videos")


def decode_sample(sample: SampleVideo, decoder: str) -> str:
    """Decode the first frame in a child process, as a job does; the frame's hash. Raises VideoError, StoreError."""
    with (
        videos.local_copy(sample.object, sample.offset, sample.bytes) as source,
        IsolatedDecoder(DecodeConfig(decoder=decoder)) as isolated,
    ):
        _, frames = next(iter(isolated.decode_clips(source, [[0]])))
    if isinstance(frames, VideoError):
        raise frames
    return hashlib.sha256(frames.tobytes()).hexdigest()
