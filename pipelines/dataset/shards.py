"""The shard: one WebDataset tar and the index beside it, made from one slice of the plan. Write, read, verify.

    <output>/shards/000042.tar      members per clip: <clip>.json  <clip>.NN.jpg | <clip>.frames.npy  <clip>.gaze.npz
                                                     and, if asked for, <clip>.targets.npz
    <output>/index/000042.parquet   one row per PLANNED clip; written last, its presence commits the shard

Bytes are a pure function of the plan's rows and the config: fixed member order, times and owners, no pickle. Nothing
that differs between two runs (times, hosts, worker counts) is kept inside a dataset.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.errors import PipelineError
from pipelines.storage import store, tables, urls

OUTCOMES = ("ok", "filtered", "failed")
TARGETS = "targets.npz"  # a member, pipelines/dataset/targets.py
INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("video", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stride", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("padded", pa.int32(), nullable=False),
        pa.field("tile", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # ok | filtered | failed
        pa.field("reason", pa.string()),  # a name of pipelines.video.decode.REASONS when not ok
        pa.field("detail", pa.string()),
        pa.field("tokens", pa.int32()),  # gazed patches of the clip
        pa.field("ratio", pa.float32()),  # tokens / (frames * vocabulary)
        pa.field("loss", pa.float32()),  # final error, mean over frames, in the units that dataset.json names
        pa.field("met", pa.float32()),  # share of frames whose final error is at or under the threshold
        pa.field("offset", pa.int64()),  # the clip's members in the tar, headers included ...
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),  # ... and the hash of those bytes
    ]
)


@dataclass
class ShardConfig:
    """How clips are packed."""

    clips: int = field(default=32, metadata={"help": "clips per shard; a shard's frames are held in memory at once"})


@dataclass(frozen=True)
class Outcome:
    """What became of one planned clip: a gaze with what is stored beside it, or a reason.

    filtered: whether a clip without a gaze was left out on purpose, and did not fail.
    """

    gaze: Gaze | None = None
    members: Sequence[tuple[str, bytes]] = ()  # encoded frames, and targets if there are any: (suffix, bytes)
    reason: str | None = None
    detail: str | None = None
    filtered: bool = False

    @property
    def name(self) -> str:
        """One of OUTCOMES."""
        return "ok" if self.gaze is not None else "filtered" if self.filtered else "failed"


def tar_url(dataset: str, shard: int) -> str:
    return urls.join(dataset, "shards", f"{shard:06d}.tar")


def index_url(dataset: str, shard: int) -> str:
    return urls.join(dataset, "index", f"{shard:06d}.parquet")


def build_shard(rows: pd.DataFrame, outcomes: Sequence[Outcome], threshold: float) -> tuple[bytes, bytes]:
    """Tar bytes and index bytes of one shard.

    Args:
        rows: the shard's rows of the plan, in order of position.
        outcomes: one per row.
        threshold: what `met` is measured against; infinite where there is none.
    """
    sink = io.BytesIO()
    records: list[dict[str, Any]] = []
    carried = ("clip", "shard", "position", "video", "start", "stride", "frames", "padded", "tile")
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row, outcome in zip(rows.to_dict("records"), outcomes, strict=True):
            record: dict[str, Any] = {name: row[name] for name in carried} | {"outcome": outcome.name}
            records.append(record)
            if outcome.gaze is None:
                record.update(reason=outcome.reason, detail=outcome.detail)
                continue
            gaze, begin = outcome.gaze, sink.tell()
            record.update(
                tokens=int(gaze.counts()[0]),
                ratio=float(gaze.ratio()[0]),
                loss=float(gaze.final().mean()),
                met=float(gaze.met(threshold).float().mean()),
            )
            # Not its shard and position: a clip's bytes are the same wherever the plan puts it.
            described = {name: value for name, value in record.items() if name not in ("shard", "position")}
            described |= {name: row[name] for name in ("video_frames", "fps", "width", "height")}
            text = json.dumps(described, ensure_ascii=False, sort_keys=True).encode()
            members = [("json", text), *outcome.members, ("gaze.npz", gaze.to_npz())]
            for suffix, data in sorted(members, key=lambda named: named[0] == TARGETS):  # targets last, else as it is
                member = tarfile.TarInfo(f"{row['clip']}.{suffix}")  # TarInfo's own defaults: mtime 0, uid 0, mode 644
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            end = sink.tell()
            digest = hashlib.sha256(sink.getbuffer()[begin:end]).hexdigest()
            record.update(offset=begin, size=end - begin, sha256=digest)
    return sink.getvalue(), tables.to_bytes(pd.DataFrame(records, columns=INDEX_SCHEMA.names), INDEX_SCHEMA)


def commit_shard(dataset: str, shard: int, tar: bytes, index: bytes) -> None:
    """Publish a shard: the tar, then the index, which makes it count. Safe to do twice, at once, or half."""
    store.publish(tar, tar_url(dataset, shard))
    store.publish(index, index_url(dataset, shard))


def uncommit_shard(dataset: str, shard: int) -> None:
    """Take a shard back: its index first, so that no reader ever pairs an old index with a new tar."""
    store.remove(index_url(dataset, shard))
    store.remove(tar_url(dataset, shard))


@dataclass(frozen=True)
class Dataset:
    """A gaze dataset opened for reading.

    Attributes:
        url: its place.
        about: dataset.json.
        plan: plan.parquet as a frame.
    """

    url: str
    about: dict[str, Any]
    plan: pd.DataFrame

    @property
    def shards(self) -> int:
        """How many shards are planned."""
        return int(self.plan["shard"].max()) + 1 if len(self.plan) else 0

    def committed(self) -> list[int]:
        """Numbers of the shards whose index exists, ascending."""
        return committed_shards(self.url)

    def index(self, shards: Sequence[int] | None = None) -> pd.DataFrame:
        """Rows of the committed shards' indexes (or of the named ones), in plan order."""
        tables = [read_index(self.url, shard) for shard in (self.committed() if shards is None else shards)]
        return pa.concat_tables(tables or [INDEX_SCHEMA.empty_table()]).to_pandas()

    def read_clip(self, row: Any) -> dict[str, bytes]:
        """Members of one clip by suffix, from an index row whose outcome is ok, its hash checked.

        Raises PipelineError when the bytes are not those of the index.
        """
        data = store.read(tar_url(self.url, int(row["shard"])), int(row["offset"]), int(row["size"]))
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise PipelineError(f"{row['clip']}: bytes differ from the index; run: autogaze verify {self.url}")
        return split_members(data, str(row["clip"]))


def read_members(dataset: Dataset, row: dict[str, Any]) -> dict[str, bytes]:
    """dataset.read_clip, whose every failure is told in one line. Raises PipelineError."""
    try:
        return dataset.read_clip(row)
    except (FileNotFoundError, tarfile.TarError, ValueError) as error:
        raise PipelineError(f"{row['clip']}: cannot be read ({error}); run: autogaze verify {dataset.url}") from error


def split_members(data: bytes, clip: str) -> dict[str, bytes]:
    """Tar bytes of one clip -> {suffix: bytes}. Raises tarfile.TarError, ValueError for a member of another clip."""
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.name.startswith(f"{clip}."):
                raise ValueError(f"member {member.name!r} does not belong to clip {clip}")
            content = archive.extractfile(member)
            members[member.name[len(clip) + 1 :]] = content.read() if content else b""
    return members


def open_dataset(url: str) -> Dataset:
    """Open a dataset for reading. Raises PipelineError when there is none."""
    url = urls.normalise(url)
    try:
        about = json.loads(store.read(urls.join(url, "dataset.json")))
        plan = tables.read(urls.join(url, "plan.parquet"), PLAN_SCHEMA, "a plan").to_pandas()
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no dataset here (no dataset.json); make one with: autogaze preprocess") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{url}/dataset.json: damaged: {error}") from error
    return Dataset(url, about, plan)


def committed_shards(dataset: str) -> list[int]:
    """Numbers of the shards whose index exists, ascending."""
    names = (entry.url.rsplit("/", 1)[-1] for entry in store.list_objects(urls.join(dataset, "index")))
    return sorted(int(name[:-8]) for name in names if name.endswith(".parquet") and name[:-8].isdigit())


def read_index(dataset: str, shard: int) -> pa.Table:
    """The index of one shard. Raises FileNotFoundError, PipelineError when it is not an index."""
    return tables.read(index_url(dataset, shard), INDEX_SCHEMA, "an index")


def threshold_of(settings: dict[str, Any]) -> float | None:
    """The threshold a dataset was gazed to; None where there was none."""
    stated = settings.get("threshold", 0.0)
    return None if stated is None else float(stated)


def vocabulary_of(about: dict[str, Any]) -> PatchVocabulary:
    """The vocabulary a dataset says it was made with; the reference's when it does not say."""
    stated = about.get("vocabulary")
    if not isinstance(stated, dict):
        return VOCABULARY
    return PatchVocabulary(tuple(stated["scales"]), int(stated["patch_size"]))


DATASET_FORMAT = 2
