"""Checkpoints of a training run: saved in the background, whole or not at all, locally or on s3://.

A save writes checkpoints/step-000500/<files>, then state.json with their sizes and hashes, then checkpoints/latest,
which names the folder. A folder without a state.json, or with files that do not match it, is torn: a save was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.storage.location import Location

CHECKPOINT_FORMAT = 1
STATE = "state.json"
_OWN = ("format", "step", "files")
_FOLDER = re.compile(r"step-(\d{6,})")


class CheckpointDamaged(PipelineError):
    """A checkpoint, or one of its files, is missing, cut short or altered. The message names it."""


class Checkpoints:
    """The checkpoints of the run at `run_url`. One process of a run saves; any process may load.

    keep: how many of the newest to keep, at least 1. kept: a step that is kept whatever comes after it.
    """

    kept: int | None = None

    def __init__(self, run_url: str, keep: int = 3) -> None:
        if keep < 1:
            raise PipelineError(f"keep={keep}: at least one checkpoint must be kept")
        self.url, self.keep = Location(run_url) / "checkpoints", keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def save(self, step: int, files: Mapping[str, bytes], state: Mapping[str, Any], wait: bool = False) -> None:
        """Save the run as it is after `step` steps, in the background. Waits only for the previous save to end.

        `latest` moves once every file is durable. Then all checkpoints are removed but the newest `keep` up to this
        step: a run that resumed from an earlier step replaces whatever came after it. Saving the step that `latest`
        already names does nothing.

        Args:
            step: steps done, from 0.
            files: content by path within the checkpoint, such as "policy/config.json".
            state: what else goes into state.json: JSON with finite numbers. The keys "step", "format" and "files" are
                taken.
            wait: return only when this save is durable.
        Raises:
            PipelineError: the previous save failed (disk full, store unreachable), or with `wait` this one; the
                checkpoint that `latest` names is still whole.
        """
        for name in files:
            _check_name(name)
        if taken := [name for name in _OWN if name in state]:
            raise ValueError(f"state: {taken[0]} is written by Checkpoints itself")
        # Serialised now, since the caller goes on changing its state.
        text = json.dumps(dict(state), allow_nan=False)
        self.wait()
        self._saving = self._thread.submit(self._save, step, dict(files), text)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress. Raises PipelineError, once, if it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait for the save in progress and end the thread. Raises what `wait` raises."""
        self._thread.shutdown(wait=True)
        self.wait()

    def latest(self) -> int | None:
        """The step that `latest` names if its checkpoint is whole, else the newest whole one, else None.

        Whole: every file exists and has its size; `load` checks the bytes. A warning names each checkpoint passed over.
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

    def state(self, step: int) -> dict[str, Any]:
        """What `save` was given as the state of a checkpoint; its files are not read. Raises CheckpointDamaged."""
        state = self._manifest(step, self._sizes().get(step, {}))
        return {key: value for key, value in state.items() if key not in ("format", "files")}

    def load(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The state and files of a checkpoint (None: that of `latest()`), every byte checked against its hash.

        Raises CheckpointDamaged, naming the file, or PipelineError when the run has no checkpoint.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise PipelineError(f"{self.url}: no whole checkpoint is here; start the run anew, in another folder")
        state = self._manifest(step, self._sizes().get(step, {}))
        listed, files = state.pop("files"), {}
        for name, about in listed.items():
            url = self._folder(step) / name
            try:
                files[name] = store.read(url)
            except FileNotFoundError as error:
                raise CheckpointDamaged(f"{url}: is missing") from error
            if hashlib.sha256(files[name]).hexdigest() != about["sha256"]:
                raise CheckpointDamaged(f"{url}: its bytes are not those saved; remove its step's folder to go back")
        return {key: value for key, value in state.items() if key != "format"}, files

    def _folder(self, step: int) -> Location:
        return self.url / f"step-{step:06d}"

    def _named(self) -> int | None:
        """The step that the file `latest` names."""
        url = self.url / "latest"
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
        """The size in bytes of every stored file, by step and by path within the checkpoint."""
        sizes: dict[int, dict[str, int]] = {}
        for entry in store.list_objects(self.url):
            folder, _, name = entry.url[len(self.url) + 1 :].partition("/")
            if (match := _FOLDER.fullmatch(folder)) and name:
                sizes.setdefault(int(match.group(1)), {})[name] = entry.bytes
        return sizes

    def _manifest(self, step: int, sizes: Mapping[str, int]) -> dict[str, Any]:
        """A checkpoint's state.json, its files' `sizes` checked against it. Raises CheckpointDamaged."""
        url = self._folder(step) / STATE
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
        if written != CHECKPOINT_FORMAT or state.get("step") != step:
            raise CheckpointDamaged(
                f"{url}: format {written}, step {state.get('step')}; wanted {CHECKPOINT_FORMAT} and {step}"
            )
        for name, size in files.items():
            if sizes.get(name) != size:
                problem = f"has {sizes[name]} of {size} bytes" if name in sizes else "is missing"
                raise CheckpointDamaged(f"{self._folder(step) / name}: {problem}")
        return dict(state)

    def _save(self, step: int, files: dict[str, bytes], state: str) -> None:
        store.remove_temporaries(self.url)
        if self._named() == step:
            try:
                self._manifest(step, self._sizes().get(step, {}))
                return
            except CheckpointDamaged:
                pass  # torn or damaged: write it again
        self._remove(step)
        try:
            for name, data in files.items():
                store.publish(data, self._folder(step) / name)
            about = {
                name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            whole = {"format": CHECKPOINT_FORMAT, "step": step, **json.loads(state), "files": about}
            store.publish((json.dumps(whole, indent=1) + "\n").encode(), self._folder(step) / STATE)
            store.publish(f"step-{step:06d}\n".encode(), self.url / "latest")
        except Exception:
            if self.url.is_local:
                self._remove(step)  # so that a full disk does not stay full of its parts
            raise
        sizes = self._sizes()
        complete = [saved for saved in sizes if saved <= step and STATE in sizes[saved]]
        for outdated in self._folders() - set(sorted(complete, reverse=True)[: self.keep]) - {self.kept}:
            self._remove(outdated)

    def _folders(self) -> set[int]:
        """The steps that have a folder. A local folder may hold only temporary files, which listings leave out."""
        if not self.url.is_local:
            return set(self._sizes())
        return {int(match.group(1)) for name in os.listdir(self.url) if (match := _FOLDER.fullmatch(name))}

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, state.json first, so that an interrupted removal leaves it torn, not wrong."""
        folder = self._folder(step)
        store.remove(folder / STATE)
        if folder.is_local:
            shutil.rmtree(folder, ignore_errors=True)  # with temporary files; without state.json, leftovers are inert
            return
        for entry in list(store.list_objects(folder)):
            store.remove(entry.url)


def _check_name(name: str) -> None:
    """Raise ValueError for a path that leaves the checkpoint's folder, is hidden from listings, or is state.json."""
    if name == STATE or not all(part and part[0] != "." and "\\" not in part for part in name.split("/")):
        raise ValueError(f"{name!r}: not a path for a file of a checkpoint")
