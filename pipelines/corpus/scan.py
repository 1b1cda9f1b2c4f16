"""Scan a video store into a manifest: one parquet row per video, with what the plan needs to know.

For what can be scanned see pipelines.corpus.inputs. A tar member is read in place by its byte range and never unpacked.
A scan made over an earlier manifest opens only the objects that are new, changed, or could not be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.inputs import Found, Listing, list_input
from pipelines.corpus.known import KnownRows
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.corpus.passed import PassedOver
from pipelines.corpus.suffixes import is_archive, is_tar
from pipelines.corpus.tars import TarVideos, tar_videos
from pipelines.corpus.videos import local_copy, reading_video, video_fingerprint
from pipelines.ray_data import configure_ray_data, pipeline_errors
from pipelines.storage import store
from pipelines.storage.location import Entry, Location, escaped
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder, index_folder

_OBJECTS_PER_TASK = 16
_WAVE, _TAR = 1 << 17, 1 << 9  # objects whose rows are in memory at a time; a tar counts as this many
Rows = list[dict[str, Any]]


class Keeper(Protocol):
    """Keeps what a scan has found so far: pipelines.corpus.unfinished.UnfinishedScan."""

    def read(self) -> Iterator[pa.Table]: ...
    def add(self, rows: pa.Table) -> None: ...
    def keep(self) -> None: ...


def scan(
    input: str | Listing,
    previous: Iterable[pa.Table] = (),
    timeout_s: float = DecodeConfig.timeout_s,
    keeper: Keeper | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[pa.Table]:
    """The manifest of an input: some rows at a time, in order of object and uri. Needs a running Ray.

    Args:
        input: what a user gives (pipelines.corpus.inputs), or its listing.
        previous: an earlier manifest; rows of objects that were read and are unchanged are kept as they are.
        timeout_s: a video that takes longer to open fails as decoder_timeout; the next scan tries it again.
        keeper: has the rows of scans that were interrupted, and keeps those of this one; also when it is.
        on_progress: called with the number of objects that are done, and of all that were listed so far.
    Raises:
        PipelineError: nothing there, or nothing that looks like a video.
    """
    listing = list_input(input) if isinstance(input, str) else input
    done = listed = 0
    with KnownRows(itertools.chain(previous, () if keeper is None else keeper.read())) as known:
        try:
            for wave in _waves(listing.found):
                rows, fresh = _known_rows(wave, known)
                listed += len(wave)
                done += len(wave) - len(fresh)
                on_progress(done, listed)
                for objects, found in _probe_all(fresh, timeout_s) if fresh else ():
                    rows.append(found)
                    done += objects
                    if keeper is not None:
                        keeper.add(found)
                    on_progress(done, listed)
                table = pa.concat_tables(rows)
                yield table.take(pc.sort_indices(table, [("object", "ascending"), ("uri", "ascending")]))
        finally:
            if keeper is not None:
                keeper.keep()


def _waves(found: Iterator[Found]) -> Iterator[list[Found]]:
    """The objects of a listing, as many at a time as `_WAVE` says."""
    wave, size = list[Found](), 0
    for each in found:
        wave.append(each)
        size += _TAR if is_tar(each.entry.url) else 1
        if size >= _WAVE:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def _known_rows(wave: list[Found], known: KnownRows) -> tuple[list[pa.Table], list[Entry]]:
    """The rows of objects that need not be opened, and the objects that do."""
    rows, which = known.of([escaped(each.entry.url) for each in wave])
    facts = rows.select(["uri", "object", "version", "bytes", "fingerprint", "reason", "fps_source"]).to_pylist()
    good = [
        unchanged(row, wave[number].entry) and not _failed_for_now(row)
        for row, number in zip(facts, which.tolist(), strict=True)
    ]
    bad = {number for number, is_good in zip(which.tolist(), good, strict=True) if not is_good}
    kept = {n for n in which.tolist() if n not in bad and not wave[n].problem}
    kept = {n for n in kept if escaped(wave[n].entry.url) == wave[n].entry.url}
    failed: Rows = []
    fresh: list[Entry] = []
    for number, (entry, problem) in enumerate(wave):
        if problem:
            failed.append(_failed(escaped(entry.url), entry, 0, 0, "", "unreadable", problem))
        elif (name := escaped(entry.url)) != entry.url:
            # Parquet holds UTF-8 only, and nobody could open a video by a name that differs from its own.
            failed.append(_failed(name, entry, 0, entry.bytes, "", "bad_name", "the file name is not valid UTF-8"))
        elif number not in kept:
            fresh.append(entry)
    taken = rows.filter(pa.array([number in kept for number in which.tolist()], pa.bool_()))
    return [taken, pa.Table.from_pylist(failed, MANIFEST_SCHEMA)], fresh


def unchanged(row: dict[str, Any], entry: Entry) -> bool:
    """Whether a row is about the object as it is now. Nobody can tell where the store has no versions."""
    if row["version"] == entry.version:
        return bool(entry.version)
    # Manifests of older versions have times without the size. A row of a tar does not say how large the tar was.
    time = entry.version.removesuffix(f"-{entry.bytes}")
    return bool(time) and row["version"] == time and row["bytes"] == entry.bytes and row["uri"] == row["object"]


def _failed_for_now(row: dict[str, Any]) -> bool:
    """Whether a video is to be opened again although it is the same.

    It was not read, the time limit was too short, or an older version opened it, which took packets for frames and
    believed headers.
    """
    return not row["fingerprint"] or row["reason"] == "decoder_timeout" or row["fps_source"] is None


def _probe_all(entries: list[Entry], timeout_s: float) -> Iterator[tuple[int, pa.Table]]:
    """Probe objects on Ray; (how many objects, all their rows) as they are done."""
    import ray.data  # here, not above: see cluster.local

    configure_ray_data()
    tars = [[entry] for entry in entries if is_tar(entry.url)]  # which may hold thousands of videos
    others = [entry for entry in entries if not is_tar(entry.url)]
    parts = tars + [others[i : i + _OBJECTS_PER_TASK] for i in range(0, len(others), _OBJECTS_PER_TASK)]
    tasks = [
        {"urls": [e.url for e in part], "bytes": [e.bytes for e in part], "versions": [e.version for e in part]}
        for part in parts
    ]
    probed = ray.data.from_items(tasks, override_num_blocks=len(tasks)).flat_map(
        partial(_probe, timeout_s=timeout_s), num_cpus=1
    )
    for answer in pipeline_errors(probed.iter_rows()):
        yield int(answer["objects"]), pa.ipc.open_stream(answer["rows"]).read_all()


def _probe(task: dict[str, Any], timeout_s: float) -> Rows:
    """Ray Data task: objects -> their manifest rows, as one value, so that they stay together.

    Untrusted bytes are opened in a decoder's child process.
    """
    rows: Rows = []
    with IsolatedDecoder(DecodeConfig(timeout_s=timeout_s, index_dir=index_folder())) as decoder:
        for url, size, version in zip(task["urls"], task["bytes"], task["versions"], strict=True):
            rows.extend(probe_object(Entry(Location.as_is(url), int(size), str(version)), decoder))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, MANIFEST_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    return [{"objects": len(task["urls"]), "rows": sink.getvalue().to_pybytes()}]


def probe_object(entry: Entry, decoder: IsolatedDecoder) -> Rows:
    """Manifest rows of one object: one for a video, one per video member for a tar."""
    if is_archive(entry.url):
        detail = "a compressed archive: unpack it, or make it a plain .tar"
        return [_failed(entry.url, entry, 0, entry.bytes, "", "unreadable", detail)]
    if not is_tar(entry.url):
        return [_probe_video(entry.url, entry, 0, entry.bytes, decoder)]
    try:
        found = reading_video(partial(tar_videos, entry.url), entry.url)
    except VideoError as error:
        found = TarVideos({}, PassedOver(), (error.reason, error.detail))
    rows = []
    for name, (offset, size) in found.videos.items():
        uri = f"{entry.url}#{name}"
        if offset is None:
            rows.append(_failed(uri, entry, 0, 0, "", "unreadable", "stored sparse; make the tar without -S"))
        else:
            rows.append(_probe_video(uri, entry, offset, size, decoder))
    if found.problem:
        rows.append(_failed(entry.url, entry, 0, entry.bytes, "", *found.problem))
    rows[0]["passed_over"] = found.passed.to_text()
    return rows


def _probe_video(uri: str, entry: Entry, offset: int, size: int, decoder: IsolatedDecoder) -> dict[str, Any]:
    mark = ""
    try:
        if not size and not store.exists(entry.url):  # of no bytes, none would be asked for
            raise FileNotFoundError(entry.url)
        with local_copy(entry.url, offset, size) as source:
            mark = video_fingerprint(source.path, source.offset, source.size)
            info = decoder.probe(source)
    except FileNotFoundError:
        return _failed(uri, entry, offset, size, mark, "missing", "no such object; removed since it was listed?")
    except VideoError as error:
        return _failed(uri, entry, offset, size, mark, error.reason, error.detail)
    return {
        "uri": uri,
        "object": entry.url,
        "offset": offset,
        "bytes": size,
        "version": entry.version,
        "fingerprint": mark,
        "container": info.container,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "fps": info.fps,
        "frames": info.frames,
        "duration": info.duration,
        "status": "ok",
        "reason": None,
        "detail": None,
        "passed_over": None,
        "mirrored": info.mirrored,
        "fps_source": info.fps_source,
        "duration_source": info.duration_source,
    }


def _failed(uri: str, entry: Entry, offset: int, size: int, mark: str, reason: str, detail: str) -> dict[str, Any]:
    return {
        "uri": uri,
        "object": escaped(entry.url),
        "offset": offset,
        "bytes": size,
        "version": entry.version,
        "fingerprint": mark,
        "container": "",
        "codec": "",
        "width": 0,
        "height": 0,
        "rotation": 0,
        "fps": 0.0,
        "frames": 0,
        "duration": 0.0,
        "status": "failed",
        "reason": reason,
        "detail": detail,
        "passed_over": None,
        "mirrored": False,
        "fps_source": "",
        "duration_source": "",
    }
