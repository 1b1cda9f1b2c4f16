"""What each node checks before a job: that it can write, read and remove in the output, and decode the input's videos.

These functions run on the nodes; `autogaze cluster preflight` shows what they raise as rows of a table.
"""

from __future__ import annotations

import hashlib
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from pipelines.corpus import manifest as manifests
from pipelines.corpus import tars, videos
from pipelines.corpus.inputs import is_manifest, list_input
from pipelines.corpus.suffixes import is_hidden, is_tar, is_video
from pipelines.errors import PipelineError
from pipelines.storage import retry, store
from pipelines.storage.location import TEMPORARY_PREFIX, Location
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder

_TRIED = 5  # videos, before giving up


@dataclass(frozen=True)
class SampleVideo:
    """A video that every node decodes: a byte range of an object."""

    uri: str
    object: str
    offset: int
    bytes: int


def write_probe(output: str) -> str:
    """Write an object into `output`, read it back, and leave it for other nodes to read; its URL. Raises StoreError."""
    store.require_shared(output)
    url = Location(output) / f"{TEMPORARY_PREFIX}preflight-{uuid.uuid4().hex}"
    data = url.encode()
    try:
        store.publish(data, url)
        read_probe(url)
    except FileNotFoundError as error:
        raise retry.StoreError(f"{output}: no such place; create the folder or bucket first") from error
    except retry.StoreError as error:
        raise retry.StoreError(str(error).replace(url, output)) from error  # users know `output`, not the probe
    return url


def read_probe(url: str) -> None:
    """Read an object that write_probe left, perhaps on another node. Raises FileNotFoundError, StoreError."""
    if store.read(url) != url.encode():
        raise retry.StoreError(f"{url}: reads back other bytes than were written; is another program writing there?")


def remove_probe(url: str) -> None:
    """Remove what write_probe left. Raises StoreError when it is still there afterwards."""
    store.remove(url)
    if store.exists(url):
        raise retry.StoreError(f"{url}: cannot be removed; check the right to delete")


def find_sample(input: str, decoder: str) -> SampleVideo:
    """The smallest video of a store, or of a manifest, that decodes here.

    Raises PipelineError when there is no video, or none of the five smallest decodes; StoreError.
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
    """Videos to try, small ones first. Tars that hold no video, or are damaged, are added to `failed`."""
    if is_manifest(input):
        good = (
            row
            for table in manifests.manifest_tables(input, ["uri", "object", "offset", "bytes", "status"])
            for row in table.to_pylist()
            if row["status"] == "ok"
        )
        small = nsmallest(_TRIED, good, key=lambda row: int(row["bytes"]))
        if not small:
            raise PipelineError(f"input={input}: the manifest has no video that is ok")
        for row in small:
            yield SampleVideo(row["uri"], row["object"], row["offset"], row["bytes"])
        return
    there = (found.entry for found in list_input(input).found if found.entry.bytes)
    for entry in nsmallest(_TRIED, there, key=lambda entry: entry.bytes):
        if not is_tar(entry.url):
            yield SampleVideo(entry.url, entry.url, 0, entry.bytes)
            continue
        has_video = False
        with suppress(tarfile.TarError, EOFError):  # a video before the damage will do
            for member in tars.tar_members(entry.url):
                if is_video(member.name) and not is_hidden(member.name) and member.offset is not None:
                    has_video = True
                    yield SampleVideo(f"{entry.url}#{member.name}", entry.url, member.offset, member.size)
        if not has_video:
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
