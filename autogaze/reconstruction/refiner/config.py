"""The refiner's hyper-parameters, and its checkpoints on disk: a folder with config.json and model.safetensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from autogaze.hub import CONFIG, WEIGHTS
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction.base import ReconstructorError

MODEL_TYPE = "autogaze_refiner"
"""What config.json says of it, under model_type."""
_FEWEST_PIXELS = 4  # side of a block: smaller ones would make the network slow without seeing more


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes, patches, and what the error is made of.

    width, blocks: of the part at the grid of blocks, before and after the deep part. deep_width, deep_blocks: of the
    part at half that grid. loss_type, loss_weights: such as "l1+dinov2" and "1+0.3". l1 is a share of 255 here.
    """

    scales: tuple[int, ...] = VOCABULARY.scales
    patch_size: int = VOCABULARY.patch_size
    width: int = 96
    blocks: int = 2
    deep_width: int = 192
    deep_blocks: int = 4
    loss_type: str = "l1"
    loss_weights: str = "1"

    def __post_init__(self) -> None:
        """Raises ReconstructorError for a size that is none, or patches whose edges have too little in common."""
        for name in ("width", "blocks", "deep_width", "deep_blocks", "patch_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ReconstructorError(f"{name} is {value!r}, wanted a positive integer")
        self.vocabulary.require_whole("frames are painted by whole patches")
        if self.block < _FEWEST_PIXELS:
            raise ReconstructorError(
                f"the edges of the patches of scales {self.scales} are multiples of {self.block} pixels only; a refiner"
                f" needs {_FEWEST_PIXELS} or more"
            )

    @property
    def vocabulary(self) -> PatchVocabulary:
        return PatchVocabulary(self.scales, self.patch_size)

    @property
    def block(self) -> int:
        """Side in pixels of the squares that no patch cuts: the network's grid."""
        vocabulary = self.vocabulary
        return math.gcd(*(edge for scale in range(len(self.scales)) for edge in vocabulary.edges(scale)))

    def to_json(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {"model_type": MODEL_TYPE, **asdict(self), "scales": "+".join(map(str, self.scales))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RefinerConfig:
        """Of a parsed config.json. Raises ReconstructorError, in one line, naming the key."""
        if document.get("model_type") != MODEL_TYPE:
            raise ReconstructorError(f"model_type is {document.get('model_type')!r}, wanted {MODEL_TYPE!r}")
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in document]
        if missing:
            raise ReconstructorError(f"no {', '.join(missing)}: not a refiner's")
        unknown = sorted(set(document) - {*names, "model_type"})
        if unknown:
            raise ReconstructorError(f"{', '.join(unknown)}: not known here; update, or use another checkpoint")
        try:
            scales = tuple(int(scale) for scale in str(document["scales"]).split("+"))
            return cls(**{name: document[name] for name in names} | {"scales": scales})
        except ReconstructorError:
            raise
        except (ValueError, TypeError) as error:
            raise ReconstructorError(f"scales is {document['scales']!r}: {error}") from error


def is_refiner(place: str | os.PathLike[str]) -> bool:
    """Whether the config.json of a folder, or beside a file of weights, is a refiner's."""
    try:
        document = json.loads((_folder(Path(place)) / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("model_type") == MODEL_TYPE


def read_refiner(place: str | os.PathLike[str]) -> tuple[RefinerConfig, dict[str, Tensor]]:
    """Config and weights of a folder, or of model.safetensors in it. Raises ReconstructorError, in one line."""
    folder = _folder(Path(place))
    try:
        document = json.loads((folder / CONFIG).read_bytes())
        config = RefinerConfig.from_json(document if isinstance(document, dict) else {})
    except (OSError, ValueError) as error:
        raise ReconstructorError(f"{folder / CONFIG}: {error}") from error
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ReconstructorError(f"{folder / WEIGHTS}: damaged or no checkpoint: {error}") from error


def _folder(place: Path) -> Path:
    return place if place.is_dir() else place.parent
