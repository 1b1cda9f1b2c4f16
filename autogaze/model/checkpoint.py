"""Checkpoints in the reference's folder format: config.json, model.safetensors and preprocessor_config.json.

A checkpoint is a local folder or an id on the Hugging Face hub (`resolve`). It is read in full or refused in one line
that says what does not fit. Weights are only ever read from safetensors, never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from autogaze.hub import CONFIG, PREPROCESSOR, WEIGHTS, CheckpointError
from autogaze.images import MEAN, STD
from autogaze.model.config import AutoGazeConfig

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WIDENED = (torch.float32, torch.bfloat16, torch.float16)


def read_config(folder: Path) -> AutoGazeConfig:
    """The config of a checkpoint's folder. If it holds a preprocessor_config.json, that is checked too.

    Raises CheckpointError where it is missing, unreadable, or of a network or preprocessing that is not this one.
    """
    document = _read_json(folder / CONFIG)
    try:
        config = AutoGazeConfig.from_json(document)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG} does not fit this network: {error}") from error
    if (folder / PREPROCESSOR).exists():
        found = _read_json(folder / PREPROCESSOR)
        for key, wanted in _preprocessing(config).items():
            if not _close(found.get(key), wanted):
                raise CheckpointError(
                    f"{folder / PREPROCESSOR} asks for other preprocessing than this network's: {key}:"
                    f" found {json.dumps(found.get(key))[:80]}, wanted {json.dumps(wanted)}"
                )
    return config


def read_weights(folder: Path, expected: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's folder: float32 on the CPU, by name; 16-bit files are widened.

    expected: name and shape of every tensor the network has.

    Raises CheckpointError for a missing, truncated or corrupt file, for tensors that are missing, not expected or of
    another shape, and for NaN or infinity.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLED)
        why = f" (reading {pickled[0]} could run code: convert it to safetensors)" if pickled else ""
        raise CheckpointError(f"{folder} holds no {WEIGHTS}{why}: nothing else is read for weights")
    if _read(path, 11) == b"version htt":
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights: run git lfs pull there")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_names(path, shapes, expected)
            return {name: _float32(path, name, file.get_tensor(name)) for name in sorted(shapes)}
    except safetensors.SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is truncated or corrupt ({size} bytes; {error}): fetch it again") from error


def write(folder: str | os.PathLike[str], config: AutoGazeConfig, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Write a checkpoint that the reference loads as it is; the folder is made if need be.

    float32 weights are written as given, 16-bit ones widened. Each file appears whole or not at all, the config last.

    Raises CheckpointError for weights that could not be read back: other dtypes, NaN, infinity.
    """
    folder = Path(folder).expanduser()
    weights = {name: _float32(folder / WEIGHTS, name, tensor) for name, tensor in state_dict.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
    unused = {
        "crop_size": {"height": config.input_size, "width": config.input_size},
        "image_processor_type": "AutoGazeImageProcessor",
    }
    _replace(folder / PREPROCESSOR, _to_bytes(_preprocessing(config) | unused))
    _replace(folder / CONFIG, _to_bytes(config.to_json()))


def fingerprint(config: AutoGazeConfig, state_dict: Mapping[str, torch.Tensor]) -> str:
    """sha256, in hex, of everything of a policy that changes its results: weights with names, and configuration."""
    hashed = hashlib.sha256()
    fields = {key: value for key, value in asdict(config).items() if key not in ("raw", "max_num_frames")}
    hashed.update(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(state_dict.items()):
        tensor = tensor.detach().cpu().contiguous()
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _preprocessing(config: AutoGazeConfig) -> dict[str, Any]:
    """What preprocessor_config.json says of the only preprocessing there is (autogaze/images.py)."""
    return {
        "do_center_crop": False,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "offset": True,
        "resample": 2,  # PIL's number for bilinear
        "rescale_factor": 1 / 127.5,
        "size": {"shortest_edge": config.input_size},
    }


def _close(found: object, wanted: Any) -> bool:
    """Whether a JSON value is the one wanted; numbers to the float32 digits that some writers keep."""
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_close, found, wanted))
    if isinstance(wanted, float):
        return isinstance(found, int | float) and abs(found - wanted) <= 1e-6 * wanted
    return found == wanted


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {path.name}: it is no AutoGaze checkpoint")
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, wanted an object")
    return document


def _read(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _check_names(path: Path, found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    _refuse(path, "lacks", [name for name in expected if name not in found])
    _refuse(path, "holds what this network does not have:", [name for name in found if name not in expected])
    misshaped = [
        f"{name} {list(shape)}, wanted {list(expected[name])}"
        for name, shape in found.items()
        if shape != expected[name]
    ]
    _refuse(path, "holds tensors of another shape:", misshaped)


def _refuse(path: Path, what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{path} {what} {'; '.join(names[:3])}{more} (is its {CONFIG} the right one?)")


def _float32(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A float32 copy on the CPU, in memory of its own. Raises CheckpointError for other dtypes, NaN and infinity."""
    if tensor.dtype not in _WIDENED:
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}, wanted float32, bfloat16 or float16")
    copy = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not bool(copy.isfinite().all()):
        raise CheckpointError(f"{path}: {name} holds NaN or infinity: the training that wrote it had diverged")
    return copy


def _to_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole: under a temporary name, synced, then moved to its place."""
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
