"""Checkpoints of a training run: saved in the background, whole or not at all, locally or on s3://.

checkpoints/step-000500/<files>, then state.json with their sizes and hashes, then checkpoints/latest naming the folder.
A folder without a state.json, or with a file that state.json does not agree with, is torn: the trace of a killed save.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.optim import Optimizer

from pipelines import store
from pipelines.errors import PipelineError

FORMAT = 1
STATE = "state.json"
_OWN = ("format", "step", "files")
_FOLDER = re.compile(r"step-(\d{6,})")


class CheckpointDamaged(PipelineError):
    """A checkpoint, or a file of it, that is missing, cut short or altered. The message names it."""


class Checkpoints:
    """The checkpoints of the run at `run_url`. One process of a run saves; any process loads.

    keep: how many of the newest to keep.
    """

    def __init__(self, run_url: str, keep: int = 3) -> None:
        if keep < 1:
            raise PipelineError(f"keep={keep}: at least one checkpoint must be kept")
        self.url, self.keep = store.join(store.normalise(run_url), "checkpoints"), keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def save(self, step: int, files: Mapping[str, bytes], state: Mapping[str, Any], wait: bool = False) -> None:
        """Save the run as it is after `step` steps; returns at once, unless the save before is still under way.

        `latest` moves to it when all of it is durable. Then only the newest `keep` of the steps up to this one are
        left: a run that went back and on from an earlier step has replaced what came after that. Saving the step that
        `latest` already names does nothing: the run has not moved since.

        Args:
            step: steps done, from 0.
            files: content by path within the checkpoint, such as "policy/config.json".
            state: what else goes into state.json; JSON, with finite numbers. "step", "format" and "files" are ours.
            wait: return when all is durable.
        Raises:
            PipelineError: the save before this one failed (a full disk, a store that is gone): what `latest` names is
                still whole. Or this one, with wait.
        """
        for name in files:
            _check_name(name)
        if taken := [name for name in _OWN if name in state]:
            raise ValueError(f"state: {taken[0]} is written by Checkpoints itself")
        # The caller goes on changing its state: it is written down now.
        text = json.dumps(dict(state), allow_nan=False)
        self.wait()
        self._saving = self._thread.submit(self._save, step, dict(files), text)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way. Raises PipelineError if it failed; once."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait, and end the thread. Raises as `wait`."""
        self._thread.shutdown(wait=True)
        self.wait()

    def latest(self) -> int | None:
        """The step that `latest` names if its checkpoint is whole, else the newest whole one, else None.

        Whole means that every file is there and has its size; `load` checks the bytes. A warning names what is passed
        over.
        """
        named, sizes = self._named(), self._sizes()
        newest_first = sorted({*sizes} - {named}, reverse=True)
        for step in [named, *newest_first] if named is not None else newest_first:
            try:
                self._manifest(step, sizes.get(step, {}))
            except CheckpointDamaged as error:
                warnings.warn(f"passed over a checkpoint: {error}", RuntimeWarning, stacklevel=2)
                continue
            return step
        return None

    def load(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The state and the files of a checkpoint (None: of `latest()`), every byte checked.

        Raises CheckpointDamaged, naming the file; PipelineError when the run has no checkpoint.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise PipelineError(f"{self.url}: no whole checkpoint is here; start the run anew, in another folder")
        state = self._manifest(step, self._sizes().get(step, {}))
        listed, files = state.pop("files"), {}
        for name, about in listed.items():
            url = store.join(self._folder(step), name)
            try:
                files[name] = store.read(url)
            except FileNotFoundError as error:
                raise CheckpointDamaged(f"{url}: is missing") from error
            if hashlib.sha256(files[name]).hexdigest() != about["sha256"]:
                raise CheckpointDamaged(f"{url}: its bytes are not those saved; remove its step's folder to go back")
        return {key: value for key, value in state.items() if key != "format"}, files

    def _folder(self, step: int) -> str:
        return store.join(self.url, f"step-{step:06d}")

    def _named(self) -> int | None:
        """The step that the file `latest` names."""
        url = store.join(self.url, "latest")
        try:
            text = store.read(url).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        match = _FOLDER.fullmatch(text)
        if match is None:
            warnings.warn(f"{url}: names no checkpoint ({text[:40]!r})", RuntimeWarning, stacklevel=3)
            return None
        return int(match.group(1))

    def _sizes(self) -> dict[int, dict[str, int]]:
        """Bytes of every file that is there, by step and by path within the checkpoint."""
        found: dict[int, dict[str, int]] = {}
        for entry in store.list_objects(self.url):
            folder, _, name = entry.url[len(self.url) + 1 :].partition("/")
            if (match := _FOLDER.fullmatch(folder)) and name:
                found.setdefault(int(match.group(1)), {})[name] = entry.bytes
        return found

    def _manifest(self, step: int, sizes: Mapping[str, int]) -> dict[str, Any]:
        """state.json of a checkpoint whose files have the sizes it says. Raises CheckpointDamaged."""
        url = store.join(self._folder(step), STATE)
        try:
            state = json.loads(store.read(url))
            written, files = int(state["format"]), {name: int(about["size"]) for name, about in state["files"].items()}
            for name, about in state["files"].items():
                _check_name(name)
                bytes.fromhex(about["sha256"])
        except FileNotFoundError as error:
            raise CheckpointDamaged(f"{self._folder(step)}: torn, it has no {STATE}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointDamaged(f"{url}: damaged, or not the state of a checkpoint: {error}") from error
        if written != FORMAT or state.get("step") != step:
            raise CheckpointDamaged(f"{url}: format {written}, step {state.get('step')}; wanted {FORMAT} and {step}")
        for name, size in files.items():
            if sizes.get(name) != size:
                there = f"{sizes[name]} of its" if name in sizes else "is missing, with its"
                raise CheckpointDamaged(f"{store.join(self._folder(step), name)}: {there} {size} bytes")
        return dict(state)

    def _save(self, step: int, files: dict[str, bytes], state: str) -> None:
        store.remove_temporaries(self.url)
        if self._named() == step:
            try:
                self._manifest(step, self._sizes().get(step, {}))
                return
            except CheckpointDamaged:
                pass  # then it is worth nothing, and written anew
        self._remove(step)
        try:
            for name, data in files.items():
                store.publish(data, store.join(self._folder(step), name))
            about = {
                name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            whole = {"format": FORMAT, "step": step, **json.loads(state), "files": about}
            store.publish((json.dumps(whole, indent=1) + "\n").encode(), store.join(self._folder(step), STATE))
            store.publish(f"step-{step:06d}\n".encode(), store.join(self.url, "latest"))
        except Exception:
            if store.is_local(self.url):
                self._remove(step)  # on a full disk its parts would stay in the way
            raise
        sizes = self._sizes()
        kept = sorted((found for found in sizes if found <= step and STATE in sizes[found]), reverse=True)[: self.keep]
        for found in self._folders() - set(kept):
            self._remove(found)

    def _folders(self) -> set[int]:
        """Steps that have a folder; a local one may hold nothing but temporaries, which no listing shows."""
        if not store.is_local(self.url):
            return set(self._sizes())
        return {int(match.group(1)) for name in os.listdir(self.url) if (match := _FOLDER.fullmatch(name))}

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, state.json first: what is left of it when this is cut short is torn, not false."""
        folder = self._folder(step)
        store.remove(store.join(folder, STATE))
        if store.is_local(folder):
            shutil.rmtree(folder, ignore_errors=True)  # temporaries too; what will not go is no checkpoint any more
            return
        for entry in list(store.list_objects(folder)):
            store.remove(entry.url)


def _check_name(name: str) -> None:
    """Raise ValueError for a path that would leave the checkpoint's folder, hide from listings or be state.json."""
    if name == STATE or not all(part and part[0] != "." and "\\" not in part for part in name.split("/")):
        raise ValueError(f"{name!r}: not a path for a file of a checkpoint")


# -- optimizers ------------------------------------------------------------------------------------------------------


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


# -- random numbers --------------------------------------------------------------------------------------------------


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
