"""A dataset of token features: what is in a shard of it, and reading it. docs/formats.md describes the format.

    <output>/shards/000042.tar      members per clip: <clip>.json  <clip>.frame.npy  <clip>.id.npy  <clip>.scale.npy
                                                     <clip>.final.npy and other layers, pooled features
    <output>/index/000042.parquet   one row per PLANNED clip; written last, its presence commits the shard

Shards lie, are committed and are read as those of a gaze dataset (pipelines.dataset.shards).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipelines.dataset import shards
from pipelines.dataset.indexes import BYTES_SCHEMA, PLACE_SCHEMA
from pipelines.dataset.members import BadSample, Members
from pipelines.dataset.packing import PackedClip
from pipelines.dataset.shards import ShardedDataset, kind_of, read_about
from pipelines.errors import PipelineError
from pipelines.storage.location import Location

FEATURES_FORMAT = 2
READABLE_FEATURES = (1, 2)  # 1: with a row per clip in its plan
FEATURE_INDEX_SCHEMA = pa.schema(
    [
        *PLACE_SCHEMA,
        pa.field("tokens", pa.int32()),  # of the clip
        pa.field("ratio", pa.float32()),  # tokens / (frames * vocabulary)
        pa.field("source", pa.string()),  # sha256 of the clip in the gaze dataset; "" where it was gazed at here
        *BYTES_SCHEMA,
    ]
)
FEATURE_REASONS = {
    "damaged": "the gaze dataset's bytes of the clip are missing, not those of its index, or cannot be decoded",
    "not_finite": "a feature is NaN or infinite, or too large for the type it is stored in",
}
"""Why a clip has no features, beside pipelines.video.base.REASONS."""
STORED_TYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
"""Types that features are stored in, and what numpy takes them for: it has no bfloat16, and sees its bits."""
FINAL = "final"
_TOKEN_TYPES: dict[str, np.dtype[Any]] = {"frame": np.dtype("<i4"), "id": np.dtype("<i4"), "scale": np.dtype("|u1")}


@dataclass(frozen=True)
class ClipFeatures:
    """The features of a clip of M tokens and T frames, as they are stored.

    Attributes:
        frame, id: int32 [M], of each token: its frame in the clip, and its patch, in the dataset's vocabulary.
        scale: uint8 [M], the place of the patch's scale among the vocabulary's, 0 the coarsest.
        layers: by name ("final", "hidden_11") an array [M, D].
        pooled: by name: "clip" an array [D], "frame" one [T, D].

    Features are float16; or uint16, the bits of bfloat16.
    """

    frame: np.ndarray
    id: np.ndarray
    scale: np.ndarray
    layers: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All of them, by the suffix of their member without `.npy`."""
        pooled = {f"pooled_{name}": values for name, values in self.pooled.items()}
        return {"frame": self.frame, "id": self.id, "scale": self.scale, **self.layers, **pooled}


@dataclass(frozen=True)
class FeatureOutcome:
    """What became of one planned clip: its features, or the reason why there are none.

    source: sha256 of the clip in the gaze dataset. filtered: it was left out there on purpose.
    """

    features: ClipFeatures | None = None
    source: str = ""
    reason: str | None = None
    detail: str | None = None
    filtered: bool = False


def packed_features(outcome: FeatureOutcome, frames: int, dtype: str, vocabulary_size: int) -> PackedClip:
    """A clip of `frames` frames as a dataset of features holds it.

    Args:
        dtype: a name of STORED_TYPES, which the features have.
        vocabulary_size: patches of a frame.
    """
    features = outcome.features
    if features is None:
        name = "filtered" if outcome.filtered else "failed"
        return PackedClip({"outcome": name, "reason": outcome.reason, "detail": outcome.detail})
    tokens = len(features.id)
    columns = {
        "outcome": "ok",
        "tokens": tokens,
        "ratio": tokens / (frames * vocabulary_size),
        "source": outcome.source,
    }
    members = [(f"{name}.npy", _to_npy(values)) for name, values in features.arrays.items()]
    return PackedClip(columns, members, {"dtype": dtype})


@dataclass(frozen=True)
class FeatureDataset(ShardedDataset):
    """A dataset of token features opened for reading."""

    schema: ClassVar[pa.Schema] = FEATURE_INDEX_SCHEMA
    what: ClassVar[str] = "feature dataset"

    @property
    def dtype(self) -> str:
        """What features are stored in: float16 or bfloat16."""
        return str(self.config["store"])

    @property
    def width(self) -> int:
        """D, of a token's feature."""
        return int(self.about["encoder"]["width"])

    @property
    def layers(self) -> list[str]:
        """Names of the stored layers; [] where only pooled features are stored."""
        return list(self.config["layers"])

    @property
    def pooled(self) -> list[str]:
        """What pooled features are stored of: clip, frame, both or none."""
        return list(self.config["pooled"])

    def read_features(self, row: Mapping[str, Any]) -> ClipFeatures:
        """The features of one clip, from an index row whose outcome is ok, its hash checked. Raises PipelineError."""
        members = self.read_clip(row)
        try:
            return self.features_of(row, members)
        except BadSample as error:
            raise self._damaged(row, str(error)) from error

    def features_of(self, row: Mapping[str, Any], members: Members) -> ClipFeatures:
        """The features among the members of a clip; the arrays share the members' memory. Raises BadSample.

        row: of its index, with `tokens` and `frames`.
        """
        tokens, width, stored = int(row["tokens"]), self.width, STORED_TYPES[self.dtype]
        sizes = {"clip": (width,), "frame": (int(row["frames"]), width)}
        return ClipFeatures(
            **{name: _array(members, name, (tokens,), kind) for name, kind in _TOKEN_TYPES.items()},
            layers={name: _array(members, name, (tokens, width), stored) for name in self.layers},
            pooled={name: _array(members, f"pooled_{name}", sizes[name], stored) for name in self.pooled},
        )


def open_features(url: str) -> FeatureDataset:
    """Open a dataset of features for reading. Raises PipelineError when there is none."""
    about = read_about(url)
    if kind_of(about) != "features":
        raise PipelineError(
            f"{Location(url)}: is a dataset of gaze, not of features; make them with: autogaze encode data={url}"
        )
    if about.get("format") not in READABLE_FEATURES:
        raise PipelineError(
            f"{Location(url)}: holds features in format {about.get('format')}, this version reads "
            + " and ".join(map(str, READABLE_FEATURES))
        )
    for name in ("config", "encoder", "vocabulary", "shards"):
        if name not in about:
            raise PipelineError(f"{Location(url)}/dataset.json: damaged: has no {name}")
    return FeatureDataset(Location(url), about)


def open_any(url: str) -> shards.Dataset | FeatureDataset:
    """Open a dataset of whatever kind is there. Raises PipelineError when there is none."""
    return open_features(url) if kind_of(read_about(url)) == "features" else shards.open_dataset(url)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Stored features as float32, exactly: of float16, or of the bits of bfloat16 (uint16)."""
    if values.dtype == STORED_TYPES["bfloat16"]:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _to_npy(values: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(values), allow_pickle=False)
    return sink.getvalue()


def _array(members: Members, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    """A member as an array, without a copy. Raises BadSample where it is missing or another."""
    data = members.get(f"{name}.npy")
    if data is None:
        raise BadSample(f"it has no {name}.npy")
    head = io.BytesIO(bytes(data[:1024]))
    try:
        np.lib.format.read_magic(head)
        found, order, stored = np.lib.format.read_array_header_1_0(head)
        values: np.ndarray = np.frombuffer(data, stored, offset=head.tell())
        if found != shape or stored != kind or order or values.size != np.prod(shape):
            raise ValueError(f"{stored} {list(found)} of {values.size} numbers, not {kind} {list(shape)}")
    except ValueError as error:
        raise BadSample(f"its {name}.npy is unreadable: {error}") from error
    return values.reshape(shape)
