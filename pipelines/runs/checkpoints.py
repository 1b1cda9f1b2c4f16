"""Checkpoints of a training run: saved in the background, whole or not at all, locally or on s3://.

checkpoints/step-000500/<files>, then state.json with their sizes and hashes, then checkpoints/latest naming the folder.
A folder without a state.json, or with a file that state.json does not agree with, is torn: the trace of a killed save.
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
from pipelines.storage import store, urls

CHECKPOINT_FORMAT = 1
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
        self.url, self.keep = urls.join(urls.normalise(run_url), "checkpoints"), keep
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
            url = urls.join(self._folder(step), name)
            try:
                files[name] = store.read(url)
            except FileNotFoundError as error:
                raise CheckpointDamaged(f"{url}: is missing") from error
            if hashlib.sha256(files[name]).hexdigest() != about["sha256"]:
                raise CheckpointDamaged(f"{url}: its bytes are not those saved; remove its step's folder to go back")
        return {key: value for key, value in state.items() if key != "format"}, files

    def _folder(self, step: int) -> str:
        return urls.join(self.url, f"step-{step:06d}")

    def _named(self) -> int | None:
        """The step that the file `latest` names."""
        url = urls.join(self.url, "latest")
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
        url = urls.join(self._folder(step), STATE)
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
                there = f"{sizes[name]} of its" if name in sizes else "is missing, with its"
                raise CheckpointDamaged(f"{urls.join(self._folder(step), name)}: {there} {size} bytes")
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
                store.publish(data, urls.join(self._folder(step), name))
            about = {
                name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            whole = {"format": CHECKPOINT_FORMAT, "step": step, **json.loads(state), "files": about}
            store.publish((json.dumps(whole, indent=1) + "\n").encode(), urls.join(self._folder(step), STATE))
            store.publish(f"step-{step:06d}\n".encode(), urls.join(self.url, "latest"))
        except Exception:
            if urls.is_local(self.url):
                self._remove(step)  # on a full disk its parts would stay in the way
            raise
        sizes = self._sizes()
        kept = sorted((found for found in sizes if found <= step and STATE in sizes[found]), reverse=True)[: self.keep]
        for found in self._folders() - set(kept):
            self._remove(found)

    def _folders(self) -> set[int]:
        """Steps that have a folder; a local one may hold nothing but temporaries, which no listing shows."""
        if not urls.is_local(self.url):
            return set(self._sizes())
        return {int(match.group(1)) for name in os.listdir(self.url) if (match := _FOLDER.fullmatch(name))}

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, state.json first: what is left of it when this is cut short is torn, not false."""
        folder = self._folder(step)
        store.remove(urls.join(folder, STATE))
        if urls.is_local(folder):
            shutil.rmtree(folder, ignore_errors=True)  # temporaries too; what will not go is no checkpoint any more
            return
        for entry in list(store.list_objects(folder)):
            store.remove(entry.url)


def _check_name(name: str) -> None:
    """Raise ValueError for a path that would leave the checkpoint's folder, hide from listings or be state.json."""
    if name == STATE or not all(part and part[0] != "." and "\\" not in part for part in name.split("/")):
        raise ValueError(f"{name!r}: not a path for a file of a checkpoint")


# -- optimizers ------------------------------------------------------------------------------------------------------


# -- random numbers --------------------------------------------------------------------------------------------------
