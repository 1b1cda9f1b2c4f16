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

_HOW = ("foreach", "fused", "capturable")  # how steps are computed, which is the device's: a run may go on on another


def pack_optimizer(optimizer: Optimizer) -> bytes:
    """A torch optimizer's state as safetensors: tensors bit for bit, everything else as JSON in the metadata."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    document: dict[str, Any] = {"optimizer": type(optimizer).__name__, "parameters": _parameters(optimizer)}
    for section, entries in (("state", state["state"].items()), ("groups", enumerate(state["param_groups"]))):
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
    """Restore the state that pack_optimizer wrote.

    Raises CheckpointDamaged for bytes it did not write, and PipelineError for an optimizer of another class or with
    other parameters (names, shapes, dtypes). The optimizer is then unchanged.
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
        raise CheckpointDamaged(f"optimizer state: damaged, or not an optimizer state: {error}") from error
    if kind != type(optimizer).__name__:
        raise PipelineError(f"optimizer state: is of {kind}, this run uses {type(optimizer).__name__}")
    wanted = _parameters(optimizer)
    if len(parameters) != len(wanted):
        raise PipelineError(f"optimizer state: is of {len(parameters)} parameters, this run has {len(wanted)}")
    for saved, ours in zip(parameters, wanted, strict=True):
        if saved != ours:
            raise PipelineError(
                f"optimizer state: parameter {saved['name'] or saved['number']} is {saved['dtype']} {saved['shape']}, "
                f"this run has {ours['name'] or ours['number']}, {ours['dtype']} {ours['shape']}"
            )
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        group.update({how: own[how] for how in _HOW if how in own})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Number, name ("" where the optimizer has none), shape and dtype of each parameter, in the state's order."""
    parameters: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [""] * len(group["params"])
        for name, parameter in zip(names, group["params"], strict=True):
            about = {"name": name, "shape": list(parameter.shape), "dtype": str(parameter.dtype)}
            parameters.append({"number": len(parameters), "group": number, **about})
    return parameters


def _tuples(group: dict[str, Any]) -> dict[str, Any]:
    """Undo JSON's lists: all but these two of a torch parameter group are tuples (betas)."""
    lists = ("params", "param_names")
    return {key: tuple(v) if isinstance(v, list) and key not in lists else v for key, v in group.items()}


def pack_random() -> dict[str, Any]:
    """The states of this process's global random generators, as JSON: Python's, numpy's (MT19937), torch's, and that
    of torch's current CUDA device, if it has one.
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
    """Restore what pack_random returned. Without CUDA its CUDA state is ignored: the numbers would differ anyway.

    Raises CheckpointDamaged for a state that pack_random did not make.
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
        raise CheckpointDamaged(f"state of the random generators: damaged: {error}") from error


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
