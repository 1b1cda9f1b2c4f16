"""The shard: one WebDataset tar and the index beside it, made from one slice of the plan. Written and read here.

    <output>/shards/000042.tar      members per clip: <clip>.json  <clip>.NN.jpg | <clip>.frames.npy  <clip>.gaze.npz
                                                     and, if asked for, <clip>.targets.npz
    <output>/index/000042.parquet   one row per PLANNED clip; written last, its presence commits the shard
                                    (later merged with others: pipelines.dataset.indexes)

Bytes are a pure function of the plan's rows and the config: the order of members, times and owners are fixed, and there
is no pickle. Nothing that differs between two runs (times, hosts, worker counts) is kept inside a dataset.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from autogaze.patches import VOCABULARY, PatchVocabulary
from pipelines.corpus.plan_reader import DatasetPlan, open_plan
from pipelines.dataset.frames import decode_frames
from pipelines.dataset.indexes import INDEX_SCHEMA, PLACE_SCHEMA, Indexes, IndexListing, Span, span_url
from pipelines.dataset.members import BadSample, Members, split_members
from pipelines.dataset.merging import take_back
from pipelines.dataset.packing import PackedClip, ShardWriter, pack_shard
from pipelines.errors import PipelineError
from pipelines.schema import setting
from pipelines.storage import store
from pipelines.storage.location import Location

if TYPE_CHECKING:
    from autogaze.gaze import Gaze

DATASET_FORMAT = 3
READABLE_FORMATS = (2, 3)  # 2: with a row per clip in its plan
OUTCOMES = ("ok", "filtered", "failed")
TARGETS = "targets.npz"  # a member, pipelines/dataset/targets.py


SHARD_FRAMES = {"jpeg": 15_360, "none": 15_360, "raw": 1_856}
"""Frames of a shard by how they are stored, where shard.clips= does not say: 280 MB of frames of 224x224."""


@dataclass
class ShardConfig:
    """How clips are packed."""

    clips: int = setting(
        0,
        "clips per shard; 0 = about 280 MB of frames: 960 clips of 16 frames as JPEGs, 116 as raw (a dataset that is "
        "there keeps its own)",
        at_least=0,
    )

    def settled(self, frames: int, storage: str) -> int:
        """How many: as given, or the default for clips of so many frames that are stored so."""
        return self.clips or max(1, SHARD_FRAMES[storage] // frames)


@dataclass(frozen=True)
class Outcome:
    """What became of one planned clip: a gaze and what is stored beside it, or the reason why there is none.

    filtered: a clip without a gaze was left out on purpose; it did not fail.
    """

    gaze: Gaze | None = None
    members: Sequence[tuple[str, bytes]] = ()  # (suffix, bytes): encoded frames, and targets if any
    reason: str | None = None
    detail: str | None = None
    filtered: bool = False

    @property
    def name(self) -> str:
        """One of OUTCOMES."""
        return "ok" if self.gaze is not None else "filtered" if self.filtered else "failed"


def tar_url(dataset: str, shard: int) -> Location:
    return Location(dataset) / "shards" / f"{shard:06d}.tar"


def index_url(dataset: str, shard: int) -> Location:
    """Where a shard's own index is until it is merged with others."""
    return span_url(dataset, Span(shard, shard))


def build_shard(
    rows: pd.DataFrame, outcomes: Sequence[Outcome], threshold: float | Sequence[float]
) -> tuple[bytes, bytes]:
    """Tar bytes and index bytes of one shard.

    Args:
        rows: the shard's rows of the plan, in order of position.
        outcomes: one per row.
        threshold: what `met` is measured against, one number or one for each frame; infinite where there is none.
    """
    return pack_shard(rows, (packed(outcome, threshold) for outcome in outcomes), INDEX_SCHEMA)


def packed(outcome: Outcome, threshold: float | Sequence[float]) -> PackedClip:
    """A clip as a gaze dataset holds it. threshold: as for `build_shard`."""
    gaze = outcome.gaze
    if gaze is None:
        return PackedClip({"outcome": outcome.name, "reason": outcome.reason, "detail": outcome.detail})
    columns = {
        "outcome": outcome.name,
        "tokens": int(gaze.counts()[0]),
        "ratio": float(gaze.ratio()[0]),
        "loss": float(gaze.final().mean()),
        "met": float(gaze.met(threshold).float().mean()),
    }
    members = [*outcome.members, ("gaze.npz", gaze.to_npz())]
    return PackedClip(columns, sorted(members, key=lambda member: member[0] == TARGETS))  # stable: targets go last


@contextmanager
def writing_shard(dataset: str, shard: int, schema: pa.Schema) -> Iterator[WrittenShard]:
    """Make a shard clip by clip, and commit it when the block ends: the tar, then the index. After an error nothing of
    it is left. Safe to do twice, at the same time, or to half.

    What was packed lies in a file until it is whole (`store.publishing`), so memory does not grow with the shard.
    """
    with store.publishing(tar_url(dataset, shard)) as sink:
        made = WrittenShard(ShardWriter(sink, schema))
        yield made
        made.bytes = made.writer.finish()
    index = made.writer.index()
    store.publish(index, index_url(dataset, shard))
    made.bytes += len(index)


@dataclass
class WrittenShard:
    """A shard that is being made. bytes: of tar and index, once it is committed."""

    writer: ShardWriter
    bytes: int = 0


def commit_shard(dataset: str, shard: int, tar: bytes, index: bytes) -> None:
    """Publish a shard: the tar, then the index, which commits it. Safe to do twice, at the same time, or to half."""
    store.publish(tar, tar_url(dataset, shard))
    store.publish(index, index_url(dataset, shard))


def uncommit_shards(dataset: str, shards: Collection[int], schema: pa.Schema = INDEX_SCHEMA) -> None:
    """Take shards back: from the indexes first, so that no reader ever pairs an old index with a new tar."""
    take_back(Location(dataset), schema, shards)
    for shard in shards:
        store.remove(tar_url(dataset, shard))


@dataclass(frozen=True)
class ShardedDataset:
    """A dataset of any kind, opened for reading: what its plan, its indexes and its tars say.

    Attributes:
        url: where it is.
        about: dataset.json.
        schema: of its indexes. Columns beyond PLACE_SCHEMA have a value for each ok clip.
    """

    schema: ClassVar[pa.Schema] = PLACE_SCHEMA
    what: ClassVar[str] = "dataset"
    url: Location
    about: dict[str, Any]

    @cached_property
    def plan(self) -> DatasetPlan:
        """Its plan, read when it is needed: its methods raise PipelineError when it is missing or damaged."""
        return open_plan(self.url, self.about)

    @property
    def config(self) -> dict[str, Any]:
        """The settings its bytes depend on; {} where dataset.json has none."""
        return self.about.get("config") or {}

    @property
    def vocabulary(self) -> PatchVocabulary:
        """The vocabulary it was made with; the reference's when dataset.json does not say."""
        stated = self.about.get("vocabulary")
        if not isinstance(stated, dict):
            return VOCABULARY
        return PatchVocabulary(tuple(stated["scales"]), int(stated["patch_size"]))

    @property
    def shards(self) -> int:
        """How many shards are planned."""
        return self.plan.shards

    @cached_property
    def indexes(self) -> Indexes:
        """Its indexes, listed when they are first needed."""
        return Indexes(self.url, self.schema)

    def committed(self) -> list[int]:
        """Numbers of the shards whose index exists now, ascending."""
        return self.indexes.listing(fresh=True).committed

    def read_index(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The index of one shard: see Indexes.table."""
        return self.indexes.table(shard, columns)

    def index(self, shards: Sequence[int] | None = None) -> pd.DataFrame:
        """Rows of the indexes of the committed shards (or of the named ones), in plan order."""
        read = list(self.indexes.tables(self.committed() if shards is None else shards))
        return pa.concat_tables(read or [self.schema.empty_table()]).to_pandas()

    def read_clip(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Members of one clip by suffix, from an index row whose outcome is ok, its hash checked.

        Raises PipelineError when they cannot be read, or their bytes are not those of the index.
        """
        try:
            data = store.read(tar_url(self.url, int(row["shard"])), int(row["offset"]), int(row["size"]))
            return {suffix: bytes(member) for suffix, member in checked_members(row, data).items()}
        except FileNotFoundError as error:
            raise self._damaged(row, "its tar is missing") from error
        except BadSample as error:
            raise self._damaged(row, str(error)) from error

    def _damaged(self, row: Mapping[str, Any], what: str) -> PipelineError:
        return PipelineError(f"{row['clip']}: {what}; run: autogaze verify {self.url}")


def checked_members(row: Mapping[str, Any], data: bytes | memoryview) -> dict[str, memoryview]:
    """The members of an ok clip by suffix, from the bytes that its index row names. Raises BadSample."""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise BadSample("bytes differ from the index")
    return split_members(data, str(row["clip"]))


@dataclass(frozen=True)
class Dataset(ShardedDataset):
    """A gaze dataset opened for reading."""

    schema: ClassVar[pa.Schema] = INDEX_SCHEMA
    what: ClassVar[str] = "gaze dataset"

    @property
    def frames_stored(self) -> bool:
        return bool(self.config.get("frames") != "none")

    @property
    def threshold(self) -> float | None:
        """The threshold it was gazed to; None where there was none."""
        stated = self.config.get("threshold", 0.0)
        return None if stated is None else float(stated)

    @property
    def verified(self) -> bool:
        """Whether its gaze is a policy's whose every error was measured (verify=true)."""
        return bool(self.config.get("verify"))

    @property
    def measured(self) -> bool:
        """Whether its errors were measured; else a policy predicted them."""
        return self.config.get("gaze") != "policy" or self.verified

    @property
    def stops(self) -> float | list[float]:
        """What `met` was held against: the threshold, of a calibrated policy a number for each frame, else infinity."""
        calibration = (self.about.get("models") or {}).get("calibration")
        if calibration is not None and not self.verified:  # a verified error is held against the threshold
            return list(calibration["stops"])
        return math.inf if self.threshold is None else self.threshold

    def read_gaze(self, row: Mapping[str, Any]) -> Gaze:
        """The gaze of one clip, from an index row whose outcome is ok. Raises PipelineError."""
        return self.gaze_of(row, self.read_clip(row))

    def gaze_of(self, row: Mapping[str, Any], members: Members) -> Gaze:
        """The gaze among the members of a clip. Raises PipelineError."""
        from autogaze.gaze import Gaze  # here, not above: status, verify and report begin without torch

        try:
            return Gaze.from_npz(bytes(members["gaze.npz"]), self.vocabulary)
        except (KeyError, ValueError) as error:
            raise self._damaged(row, f"its gaze cannot be read ({error})") from error

    def frames_of(self, row: Mapping[str, Any], members: Members) -> np.ndarray | None:
        """The frames among the members of a clip, uint8 [T, S, S, 3]; None where none are stored.

        Raises PipelineError.
        """
        try:
            return decode_frames(members)
        except BadSample as error:
            raise self._damaged(row, f"its frames cannot be read ({error})") from error


def open_dataset(url: str) -> Dataset:
    """Open a gaze dataset for reading; its plan and its indexes are read when they are needed.

    Raises PipelineError when there is none, or it holds features.
    """
    about = read_about(url)
    if kind_of(about) == "features":
        raise PipelineError(
            f"{Location(url)}: holds features of an encoder, and no gaze; give the gaze dataset they were made of"
        )
    return Dataset(Location(url), about)


def read_about(url: str) -> dict[str, Any]:
    """dataset.json of a dataset of any kind. Raises PipelineError when there is none, or it is damaged."""
    url = Location(url)
    try:
        about = json.loads(store.read(url / "dataset.json"))
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no dataset here (no dataset.json); make one with: autogaze preprocess") from error
    except ValueError as error:  # of JSON, or of UTF-8
        raise PipelineError(f"{url}/dataset.json: damaged: {error}") from error
    if not isinstance(about, dict):
        raise PipelineError(f"{url}/dataset.json: damaged: not a JSON object")
    return about


def kind_of(about: Mapping[str, Any]) -> str:
    """What a dataset holds, by its dataset.json: "gaze", which says nothing of it, or "features"."""
    return str(about.get("kind", "gaze"))


def copy_planned(source: str, output: str, names: Sequence[str], old: int = 0) -> None:
    """Copy what a dataset was planned with into another: files or folders of parts, by name, those that there are.

    old: so many parts of each are there already.
    """
    for name in names:
        for entry in list(store.list_objects(Location(source) / name))[old:]:
            store.publish(store.read(entry.url), Location.as_is(str(output) + entry.url.removeprefix(str(source))))


def committed_shards(dataset: str) -> list[int]:
    """Numbers of the shards that the files in index/ commit, ascending."""
    return IndexListing(dataset).committed


def read_index(
    dataset: str, shard: int, columns: Sequence[str] | None = None, schema: pa.Schema = INDEX_SCHEMA
) -> pa.Table:
    """The index of one shard, or some columns of it. To read many, open the dataset.

    schema: of a dataset's kind.
    Raises FileNotFoundError, and PipelineError when it is damaged: then every job says the same of it, and verify too.
    """
    return Indexes(Location(dataset), schema).table(shard, columns)
