"""Optimizer moments and random states as plain tensors and numbers, without pickle."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.optim import Optimizer

from pipelines.errors import PipelineError
from pipelines.runs.checkpoints import CheckpointDamaged


def pack_optimizer(optimizer: Optimizer) -> bytes:
    """The state of a torch optimizer as safetensors: tensors bit for bit, everything else as JSON in its metadata."""
    whole = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    document: dict[str, Any] = {"optimizer": type(optimizer).__name__, "parameters": _parameters(optimizer)}
    for section, entries in (("state", whole["state"].items()), ("groups", enumerate(whole["param_groups"]))):
        document[section] = {}
        for number, values in entries:
            document[section][str(number)] = plain = {}
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    # A copy: safetensors refuses tensors that share memory.
                    tensors[f"{section}.{number}.{key}"] = value.detach().cpu().clone().contiguous()
                else:
                    plain[key] = value
    return safetensors.torch.save(tensors, metadata={"optimizer": json.dumps(document)})


def unpack_optimizer(optimizer: Optimizer, data: bytes) -> None:
    """Give an optimizer the state that pack_optimizer wrote.

    Raises CheckpointDamaged for bytes that are none; PipelineError when the optimizer is of another kind, or its
    parameters have other names, shapes or dtypes; then it is left as it was.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = json.loads(header["__metadata__"]["optimizer"])
        tensors = safetensors.torch.load(data)
        kind, parameters = document["optimizer"], document["parameters"]
        state: dict[int, dict[str, Any]] = {int(number): values for number, values in document["state"].items()}
        groups = [_tuples(document["groups"][str(number)]) for number in range(len(document["groups"]))]
        for name, tensor in tensors.items():
            section, number, key = name.split(".", 2)
            (state if section == "state" else groups)[int(number)][key] = tensor
    except (ValueError, KeyError, TypeError, IndexError, safetensors.SafetensorError) as error:
        raise CheckpointDamaged(f"optimizer state: damaged, or not one: {error}") from error
    if kind != type(optimizer).__name__:
        raise PipelineError(f"optimizer state: is of {kind}, this run uses {type(optimizer).__name__}")
    wanted = _parameters(optimizer)
    if len(parameters) != len(wanted):
        raise PipelineError(f"optimizer state: is of {len(parameters)} parameters, this run has {len(wanted)}")
    for saved, here in zip(parameters, wanted, strict=True):
        if saved != here:
            raise PipelineError(
                f"optimizer state: parameter {saved['name'] or saved['number']} is {saved['dtype']} {saved['shape']}, "
                f"this run has {here['name'] or here['number']}, {here['dtype']} {here['shape']}"
            )
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Number, name (where the optimizer knows it), shape and dtype of each parameter, in the order of the state."""
    found: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [""] * len(group["params"])
        for name, parameter in zip(names, group["params"], strict=True):
            about = {"name": name, "shape": list(parameter.shape), "dtype": str(parameter.dtype)}
            found.append({"number": len(found), "group": number, **about})
    return found


def _tuples(group: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples: what is a list in torch's groups is named here, all else (betas) is a tuple."""
    lists = ("params", "param_names")
    return {key: tuple(v) if isinstance(v, list) and key not in lists else v for key, v in group.items()}


def pack_random() -> dict[str, Any]:
    """The states of this process's global generators (torch, its current CUDA device if there is one, numpy, python).

    Python's generator, the global one of numpy (MT19937) and torch's, as JSON.
    """
    version, internal, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "torch": _text(torch.get_rng_state().numpy()),
        "cuda": _text(torch.cuda.get_rng_state().numpy()) if torch.cuda.is_available() else None,
        "numpy": numpy | {"state": {"key": _text(numpy["state"]["key"]), "pos": int(numpy["state"]["pos"])}},
        "python": [version, list(internal), gauss],
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Go on where pack_random was. A CUDA state is left aside where there is no CUDA: the numbers differ there anyway.

    Raises CheckpointDamaged for what pack_random did not write.
    """
    try:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        key = np.frombuffer(base64.b64decode(state["numpy"]["state"]["key"]), np.uint32)
        np.random.set_state(state["numpy"] | {"state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
        torch.set_rng_state(_bytes(state["torch"]))
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(_bytes(state["cuda"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointDamaged(f"state of the random generators: damaged, or not one: {error}") from error


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
