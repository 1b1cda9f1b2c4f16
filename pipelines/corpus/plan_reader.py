"""The plan of a dataset, read: any shard's clips, on any machine, with a part of the plan in memory.

`open_plan` reads both kinds: plans in parts with a row per video, and those of datasets of format 2: one file with a
row per clip.
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.corpus.plan_part import VIDEO_SCHEMA, Cut, Outline, PlanPart
from pipelines.errors import PipelineError
from pipelines.storage import store, tables
from pipelines.storage.location import Location

_KEPT = 2  # parts in memory: neighbouring shards may lie in two
_AT_ONCE = 8  # parts read at the same time for an outline


class DatasetPlan(ABC):
    """Which clips each shard of a dataset holds. Threads may share one, and it may be pickled.

    Attributes:
        url: of the dataset.
        shards, clips, videos: how many.
    """

    url: Location
    shards: int
    clips: int
    videos: int

    @abstractmethod
    def clips_of(self, shard: int) -> pd.DataFrame:
        """The clips of a shard: columns of PLAN_SCHEMA, in order of position, numbered from 0.

        Raises PipelineError where the plan is damaged, StoreError.
        """

    @abstractmethod
    def straddling(self, shard: int) -> set[str]:
        """Videos of a shard (as in column `video`) that other shards hold clips of, too."""

    @property
    @abstractmethod
    def outline(self) -> Outline:
        """What it adds up to, shard by shard."""

    @abstractmethod
    def refused(self, shards: range) -> Counter[str]:
        """Clips in a run of shards that have failed before they are made, by reason."""

    @abstractmethod
    def uris(self) -> Iterator[str]:
        """The videos, as in column `video`, in order."""

    @abstractmethod
    def damage(self) -> list[str]:
        """What is wrong with its files, a line each; [] where all are those that dataset.json names."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Frames of a clip."""

    def rows(self) -> pd.DataFrame:
        """All clips: for what needs them all at once, and grows with them."""
        found = [self.clips_of(shard) for shard in range(self.shards)]
        return pd.concat(found, ignore_index=True) if found else PLAN_SCHEMA.empty_table().to_pandas()


@dataclass(frozen=True)
class PlanFile:
    """A file of a plan, plan.parquet/000042.parquet, as dataset.json names it: what is in it, and its hash."""

    videos: int
    clips: int
    shards: int
    sha256: str


class VideoPlan(DatasetPlan):
    """A plan in parts, with a row per video.

    Args:
        url: of the dataset.
        cut, parts: what dataset.json says of it.
        outline: where it is known already.
    """

    def __init__(self, url: str, cut: Cut, parts: Sequence[PlanFile], outline: Outline | None = None) -> None:
        self.url, self.cut, self.parts = Location(url), cut, tuple(parts)
        self.shards, self.clips, self.videos = (
            sum(getattr(part, name) for part in self.parts) for name in ("shards", "clips", "videos")
        )
        self._ends = np.cumsum([part.shards for part in self.parts])
        self._outline = outline
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._kept: OrderedDict[int, PlanPart] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoPlan, (self.url, self.cut, self.parts)

    def about(self) -> dict[str, Any]:
        """What dataset.json says of it."""
        return {**asdict(self.cut), "parts": [asdict(part) for part in self.parts]}

    @property
    def frames(self) -> int:
        return self.cut.frames

    def clips_of(self, shard: int) -> pd.DataFrame:
        return self._part_of(shard).clips_of(shard)

    def straddling(self, shard: int) -> set[str]:
        return self._part_of(shard).straddling(shard)

    @property
    def outline(self) -> Outline:
        if self._outline is None:
            self._outline = Outline.joined(list(self._each(range(len(self.parts)), PlanPart.outline)))
        return self._outline

    def refused(self, shards: range) -> Counter[str]:
        if not len(shards):
            return Counter()
        first, last = (int(np.searchsorted(self._ends, end, "right")) for end in (shards[0], shards[-1]))
        found = self._each(range(first, last + 1), lambda part: part.refused(shards))
        return sum(found, Counter[str]())

    def uris(self) -> Iterator[str]:
        for uris in self._each(range(len(self.parts)), lambda part: part.table["video"]):
            yield from uris.to_pylist()

    def names(self) -> Iterator[str]:
        """What the names of each video's clips begin with, in order."""
        for names in self._each(range(len(self.parts)), lambda part: part.table["name"]):
            yield from names.to_pylist()

    def damage(self) -> list[str]:
        found = []
        for number in range(len(self.parts)):
            try:
                self._read(number)
            except PipelineError as error:
                found.append(str(error))
        return found

    def _part_of(self, shard: int) -> PlanPart:
        number = int(np.searchsorted(self._ends, shard, "right"))
        if self._process != os.getpid():  # forked: a thread of the parent may have held the lock
            self._begin()
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self._read(number)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

    def _each(self, numbers: range, take: Callable[[PlanPart], Any]) -> Iterator[Any]:
        """What `take` gives of each part, in order; some are read ahead."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for begin in range(0, len(numbers), _AT_ONCE):
                yield from pool.map(lambda number: take(self._read(number)), numbers[begin : begin + _AT_ONCE])

    def _read(self, number: int) -> PlanPart:
        place = part_url(self.url, "plan.parquet", number)
        data = _plan_bytes(place)
        if hashlib.sha256(data).hexdigest() != self.parts[number].sha256:
            raise PipelineError(
                f"{place}: its hash is not the one in dataset.json; put the original back, or choose another output"
            )
        return PlanPart(tables.from_bytes(data, place, VIDEO_SCHEMA, "a plan"), self.cut)


class RowPlan(DatasetPlan):
    """A plan of a dataset of format 2: one file with a row per clip, all of it in memory.

    Args:
        url: of the dataset.
        sha256: of the file, as dataset.json has it.
    """

    def __init__(self, url: str, sha256: str) -> None:
        self.url, self._sha256 = Location(url), sha256
        self._place = self.url / "plan.parquet"

    def __reduce__(self) -> tuple[Any, ...]:
        return RowPlan, (self.url, self._sha256)

    @cached_property
    def _rows(self) -> pa.Table:
        try:
            return tables.read(self._place, PLAN_SCHEMA, "a plan").combine_chunks()
        except FileNotFoundError as error:
            raise _missing(self._place) from error

    @cached_property
    def _shard(self) -> np.ndarray:
        shard: np.ndarray = self._rows["shard"].to_numpy()
        return shard

    @cached_property
    def shards(self) -> int:  # type: ignore[override]
        return int(self._shard.max(initial=-1)) + 1

    @cached_property
    def clips(self) -> int:  # type: ignore[override]
        return len(self._rows)

    @cached_property
    def videos(self) -> int:  # type: ignore[override]
        return len(pc.unique(self._rows["video"]))

    @property
    def frames(self) -> int:
        return int(self._rows["frames"][0].as_py()) if self.clips else 0

    def clips_of(self, shard: int) -> pd.DataFrame:
        low, high = (int(np.searchsorted(self._shard, shard, side)) for side in ("left", "right"))
        return self._rows.slice(low, high - low).to_pandas()

    def straddling(self, shard: int) -> set[str]:
        low, high = (int(np.searchsorted(self._shard, shard, side)) for side in ("left", "right"))
        uri = self._rows["video"]
        outside = {uri[place].as_py() for place in (low - 1, high) if 0 <= place < self.clips}
        return outside & {uri[low].as_py(), uri[high - 1].as_py()}

    @cached_property
    def outline(self) -> Outline:
        video = pc.dictionary_encode(self._rows["video"]).combine_chunks().indices.to_numpy()
        new = np.diff(video, prepend=-1) != 0
        first = np.diff(self._shard, prepend=-1) != 0
        refused = self._rows["reason"].is_valid().to_numpy()
        cut = self._rows["object"].filter(pa.array(first & ~new)).unique().to_pylist()
        return Outline(
            clips=np.bincount(self._shard, minlength=self.shards).astype(np.int32),
            refused=np.bincount(self._shard[refused], minlength=self.shards).astype(np.int32),
            begins=np.bincount(self._shard[new], minlength=self.shards).astype(np.int32),
            continued=(first & ~new)[np.flatnonzero(first)],
            remote=any("://" in place for place in cut),
        )

    def refused(self, shards: range) -> Counter[str]:
        inside = (self._shard >= shards.start) & (self._shard < shards.stop)
        return Counter(reason for reason in self._rows["reason"].filter(pa.array(inside)).to_pylist() if reason)

    def uris(self) -> Iterator[str]:
        yield from pc.unique(self._rows["video"]).to_pylist()

    def damage(self) -> list[str]:
        if hashlib.sha256(_plan_bytes(self._place)).hexdigest() != self._sha256:
            return ["plan.parquet: its hash is not the one in dataset.json"]
        return []


def open_plan(url: str, about: Mapping[str, Any]) -> DatasetPlan:
    """The plan of a dataset. about: its dataset.json. Nothing is read yet.

    Raises PipelineError for a dataset.json that is damaged.
    """
    stated = about.get("plan")
    if not isinstance(stated, dict):
        return RowPlan(url, str(stated))
    try:
        cut = Cut(**{name: int(stated[name]) for name in ("frames", "per_video", "shard_clips")})
        parts = [
            PlanFile(int(part["videos"]), int(part["clips"]), int(part["shards"]), str(part["sha256"]))
            for part in stated["parts"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{Location(url)}/dataset.json: damaged: its plan says {error!r}") from error
    return VideoPlan(url, cut, parts)


def part_url(dataset: str, name: str, number: int) -> Location:
    """Where a part of a dataset's plan.parquet or manifest.parquet lies."""
    return Location(dataset) / name / f"{number:06d}.parquet"


def _plan_bytes(place: Location) -> bytes:
    try:
        return store.read(place)
    except FileNotFoundError as error:
        raise _missing(place) from error


def _missing(place: Location) -> PipelineError:
    return PipelineError(f"{place}: missing; the dataset is not whole, copy or make it again")
