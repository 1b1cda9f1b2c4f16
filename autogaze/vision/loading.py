"""Checkpoints of vision transformers, read by transformers as they are, or refused in one line.

A checkpoint is a folder or a hub id. The weights are read from safetensors only, and all of them must be there:
transformers alone would go on with random ones.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from autogaze import hub
from autogaze.hub import CONFIG, PREPROCESSOR, CheckpointError
from autogaze.quiet import quiet
from autogaze.vision.embeddings import GazeEmbeddings
from autogaze.vision.families import FAMILIES, Family

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_FILES = (CONFIG, PREPROCESSOR, "*.safetensors", "*.safetensors.index.json")
_NEEDS = "transformers 5.20 or later: pip install -e '.[teachers]' in the checkout"


class Loaded(NamedTuple):
    """What a checkpoint's folder holds.

    model: transformers', on the CPU. normalisation: mean and deviation of its pixels in [0, 1]. embeddings: learnt
    ones, if it has any. preprocessor: its preprocessor_config.json as it is, if there is one.
    """

    family: Family
    model: Any
    normalisation: Normalisation
    embeddings: GazeEmbeddings | None
    preprocessor: bytes | None


def read(path_or_id: str | os.PathLike[str], dtype: torch.dtype) -> Loaded:
    """What a checkpoint holds, in `dtype`, without gradients.

    Raises CheckpointError, one line: it is not there, of no kind known here, without a vision tower, or incomplete; or
    transformers is not installed.
    """
    transformers = _transformers()
    folder = hub.resolve(path_or_id, _FILES)
    family = _family(folder)
    with quiet(transformers):
        try:
            model, report = getattr(transformers, family.model_class).from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                **family.options,
            )
        except Exception as error:  # transformers and safetensors fail in many types
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CheckpointError(f"{folder} does not load as {family.name}: {reason}") from error
    lacking = sorted(name for name in report["missing_keys"] if not name.startswith(family.unused or ("\0",)))
    lacking += [str(key[0]) for key in report.get("mismatched_keys", ())]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise CheckpointError(
            f"{folder} lacks {', '.join(lacking[:3])}{more}, which a vision tower of {family.name} has, or has it in"
            f" another shape (is its {CONFIG} the right one?)"
        )
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise CheckpointError(f"{folder} holds weights that are NaN or infinite")
    if any(name.startswith("head.") for name in report["missing_keys"]):
        model.head = None
    embeddings = GazeEmbeddings.read(folder, model.config.hidden_size)
    preprocessor = (folder / PREPROCESSOR).read_bytes() if (folder / PREPROCESSOR).exists() else None
    return Loaded(
        family,
        model.eval().requires_grad_(False),
        _normalisation(folder, family),
        None if embeddings is None else embeddings.to(dtype).requires_grad_(False),
        preprocessor,
    )


def _transformers() -> ModuleType:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise CheckpointError(f"vision transformers need {_NEEDS} ({error})") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 20):
        raise CheckpointError(f"vision transformers need {_NEEDS} (this is {transformers.__version__})")
    return transformers


def _family(folder: Path) -> Family:
    found = _json(folder / CONFIG)
    kind = found.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise CheckpointError(f"{folder} holds a {kind!r}, which has no vision tower known here: wanted one of {known}")


def _normalisation(folder: Path, family: Family) -> Normalisation:
    """What the folder's image processor says; the family's own where there is none."""
    if not (folder / PREPROCESSOR).exists():
        return family.normalisation
    found = _json(folder / PREPROCESSOR)
    if found.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3
    mean, std = found.get("image_mean", family.normalisation[0]), found.get("image_std", family.normalisation[1])
    scale = found.get("rescale_factor", 1 / 255)
    if not (_three(mean) and _three(std) and isinstance(scale, float) and abs(scale * 255 - 1) < 1e-3):
        raise CheckpointError(
            f"{folder / PREPROCESSOR}: wanted image_mean and image_std of three numbers and rescale_factor 1/255, found"
            f" {mean}, {std}, {scale}: give floats in the encoder's own normalisation, and remove the file"
        )
    return tuple(mean), tuple(std)


def _three(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        run = (path.parent / "checkpoints").is_dir()
        hint = "; of a run of `autogaze train encoder`, give checkpoints/step-N/encoder" if run else ""
        raise CheckpointError(f"{path.parent} holds no {path.name}: it is no checkpoint of a vision transformer{hint}")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, wanted an object")
    return found
