"""Verify a dataset: read every byte again, hold it against the index, and say in words what is wrong."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.dataset import shards
from pipelines.dataset.features import FeatureDataset, open_any
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.members import split_members
from pipelines.dataset.packing import CARRIED
from pipelines.dataset.shards import OUTCOMES, TARGETS, Dataset
from pipelines.dataset.summaries import SUMMARY, SUMMARY_COLUMNS, joined, summarise
from pipelines.dataset.versions import Version, version_named, versions_of
from pipelines.errors import PipelineError
from pipelines.inspection.measured import check_errors
from pipelines.inspection.verify_features import check_features
from pipelines.storage import store

if TYPE_CHECKING:
    from autogaze.reconstruction.base import Reconstructor

_BLOCK_BYTES = 8 << 20  # of a tar, read at once


@dataclass
class Verdict:
    """What was checked, and what is wrong: `problems` is empty only for a complete and sound dataset."""

    shards: int = 0
    clips: int = 0
    ok: int = 0
    filtered: int = 0
    failed: int = 0
    bytes: int = 0
    measured: int = 0  # clips whose errors were measured again
    version: Version | None = None  # what was checked of a dataset that has grown
    problems: list[str] = field(default_factory=list)


def verify(
    url: str,
    threads: int = 4,
    on_shard: Callable[[int, int], None] | None = None,
    measurer: Reconstructor | None = None,
    version: int = 0,
) -> Verdict:
    """Check that every planned clip has one row, and that every row's bytes are there, unchanged and what it says.

    Args:
        threads: shards checked at once.
        on_shard: called with the number of shards checked, and of all.
        measurer: what verified the gaze (`measurer_of`): its errors are measured again. None: they are not.
        version: of a dataset that has grown, only the shards of this version; 0: all.
    Raises PipelineError when there is no dataset to check, or `threads` is less than 1.
    """
    if threads < 1:
        raise PipelineError(f"threads={threads}: must be at least 1")
    dataset = open_any(url)
    verdict = Verdict()
    versions = versions_of(dataset.about, dataset.url) if "shards" in dataset.about else []
    plan, everything = dataset.plan, range(dataset.plan.shards)
    planned = everything
    if version:
        verdict.version = version_named(dataset.about, dataset.url, version)
        planned = range(verdict.version.shards)
    elif len(versions) > 1:
        verdict.version = versions[-1]
    verdict.problems += plan.damage()
    committed = set(dataset.committed())
    for shard in sorted(shard for shard in committed if shard not in everything):
        verdict.problems.append(f"shard {shard}: committed but not planned")
    if missing := [shard for shard in planned if shard not in committed]:
        sizes = plan.outline.clips
        verdict.problems += [f"shard {shard}: not committed ({sizes[shard]} clips missing)" for shard in missing]
    for entry in store.list_objects(dataset.url / "shards"):
        name = entry.url.name.removesuffix(".tar")
        if not name.isdigit() or int(name) not in everything:
            verdict.problems.append(f"shards/{name}: not part of this dataset")
    verdict.problems += _wrong_summaries(dataset)
    with ThreadPoolExecutor(threads) as pool:
        checked = [shard for shard in planned if shard in committed]
        parts = pool.map(lambda shard: _check_shard(dataset, shard, measurer), checked)
        for number, part in enumerate(parts):
            for name in ("shards", "clips", "ok", "filtered", "failed", "bytes", "measured", "problems"):
                setattr(verdict, name, getattr(verdict, name) + getattr(part, name))
            if on_shard is not None:
                on_shard(number + 1, len(checked))
    return verdict


def _wrong_summaries(dataset: Dataset | FeatureDataset) -> list[str]:
    """What merged indexes say of their samples and is not so. Loaders believe them."""
    problems = []
    for file in dataset.indexes.listing().files:
        try:
            if (stated := dataset.indexes.metadata(file, SUMMARY)) is None:
                continue
            read = (dataset.indexes.read(file, shard, SUMMARY_COLUMNS) for shard in file.span.shards)
            if stated != joined([summarise(table) for table in read]).to_text():
                problems.append(
                    f"{file.entry.url}: what it says of its samples is not what its rows say; remove "
                    f"{SUMMARY} from its metadata"
                )
        except (ValueError, TypeError) as error:
            problems.append(f"{file.entry.url}: damaged, or not an index: {error}")
        except PipelineError as error:
            problems.append(str(error))
    return problems


def _check_shard(dataset: Dataset | FeatureDataset, shard: int, measurer: Reconstructor | None) -> Verdict:
    verdict = Verdict(shards=1)

    def wrong(what: str) -> None:
        verdict.problems.append(f"shard {shard}: {what}")

    try:
        planned = dataset.plan.clips_of(shard)
        index = dataset.read_index(shard).to_pandas()
        with store.open_read(shards.tar_url(dataset.url, shard), _BLOCK_BYTES) as tar:
            _check_rows(dataset, verdict, planned, index, tar, wrong, measurer)
    except FileNotFoundError:
        wrong("its tar is missing")
    except PipelineError as error:
        wrong(str(error))
    return verdict


def _check_rows(
    dataset: Dataset | FeatureDataset,
    verdict: Verdict,
    planned: pd.DataFrame,
    index: pd.DataFrame,
    tar: IO[bytes],
    wrong: Callable[[str], None],
    measurer: Reconstructor | None,
) -> None:
    """Check the rows of a shard's index, clip by clip: its tar is not in memory."""
    length = tar.seek(0, os.SEEK_END)
    verdict.clips, verdict.bytes = len(index), length
    if len(index) != len(planned):
        wrong(f"{len(planned)} clips planned, {len(index)} rows in its index")
        return
    for name in CARRIED:
        if index[name].tolist() != planned[name].tolist():
            wrong(f"column {name} of its index differs from the plan")
            return
    end = 0
    for row in index.to_dict("records"):
        if row["outcome"] != "ok":
            verdict.filtered += row["outcome"] == "filtered"
            verdict.failed += row["outcome"] == "failed"
            if row["outcome"] not in OUTCOMES:
                wrong(f"{row['clip']}: outcome {row['outcome']}, which is none of {', '.join(OUTCOMES)}")
            if not isinstance(row["reason"], str):  # null reads as NaN
                wrong(f"{row['clip']}: {row['outcome']} without a reason")
            continue
        verdict.ok += 1
        begin, size = int(row["offset"]), int(row["size"])
        if begin != end:
            wrong(f"{row['clip']}: starts at byte {begin}, the clip before it ends at {end}")
        end = begin + size
        verdict.measured += measurer is not None
        tar.seek(begin)
        for problem in _check_clip(dataset, row, tar.read(size), measurer):
            wrong(f"{row['clip']}: {problem}")
    # What follows the last clip is the end of the archive: zeros up to a full record.
    tar.seek(end)
    rest = iter(lambda: tar.read(_BLOCK_BYTES), b"")
    if length < end + 2 * tarfile.BLOCKSIZE or any(block.strip(b"\0") for block in rest):
        wrong(f"its tar is {length} bytes and does not end as an archive after byte {end}")


def _check_clip(
    dataset: Dataset | FeatureDataset, row: dict[str, Any], data: bytes, measurer: Reconstructor | None
) -> list[str]:
    """What is wrong with one ok clip, given the bytes that its index row names."""
    if len(data) != int(row["size"]):
        return [f"{len(data)} of {int(row['size'])} bytes are there"]
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return ["bytes differ from the hash in the index"]
    if isinstance(dataset, FeatureDataset):
        return check_features(dataset, row, data)
    return _check_gaze(dataset, row, data, measurer)


def _check_gaze(dataset: Dataset, row: dict[str, Any], data: bytes, measurer: Reconstructor | None) -> list[str]:
    from autogaze.gaze import Gaze  # here, not above: a place that is no dataset is refused without torch

    try:
        members = split_members(data, str(row["clip"]))
        gaze = Gaze.from_npz(bytes(members["gaze.npz"]), dataset.vocabulary)
        frames = decode_frames(members)
    except (ValueError, KeyError) as error:
        return [f"unreadable: {error}"]
    problems = []
    if gaze.num_frames != row["frames"]:
        problems.append(f"gaze of {gaze.num_frames} frames, {row['frames']} planned")
    if int(gaze.counts()[0]) != row["tokens"]:
        problems.append(f"{int(gaze.counts()[0])} tokens, {row['tokens']} in the index")
    if np.float32(gaze.final().mean()) != np.float32(row["loss"]):
        problems.append(f"mean final error {float(gaze.final().mean())}, {row['loss']} in the index")
    if dataset.frames_stored and (frames is None or len(frames) != row["frames"]):
        problems.append(f"{0 if frames is None else len(frames)} frames stored, {row['frames']} planned")
    if dataset.verified and gaze.origins is None:
        problems.append("its gaze does not say where its patches come from, which verify=true stores")
    if dataset.verified and (threshold := dataset.threshold) is not None:
        met = np.float32(gaze.met(threshold).float().mean())
        if met != np.float32(row["met"]):
            problems.append(f"{float(met)} of its frames meet the threshold, {row['met']} in the index")
    if measurer is not None and not problems and frames is not None:
        problems += check_errors(dataset, gaze, frames, measurer)
    return problems + _check_targets(dataset, row, members.get(TARGETS))


def _check_targets(dataset: Dataset, row: dict[str, Any], data: memoryview | None) -> list[str]:
    count = dataset.config.get("targets", {}).get("frames", 0)
    if data is None:
        return [f"no targets stored, those of {count} frames expected"] if count else []
    from autogaze.reconstruction.targets import Targets, target_frames

    try:
        targets = Targets.from_npz(bytes(data))
    except ValueError as error:
        return [f"targets unreadable: {error}"]
    problems = []
    if targets.at.tolist() != target_frames(row["clip"], row["frames"], count):
        problems.append(f"targets of frames {targets.at.tolist()}, not of the {count} that its name chooses")
    stated = dataset.about.get("models", {}).get("targets", {}).get("fingerprint", targets.fingerprint)
    if targets.fingerprint != stated:
        problems.append("targets of other teachers than dataset.json names")
    return problems
