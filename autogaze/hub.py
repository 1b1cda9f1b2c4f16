"""Finds a checkpoint: a local folder, or a repository of the Hugging Face hub, which is downloaded to one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(ValueError):
    """A checkpoint is missing, cannot be read or does not fit. One line that says what to do."""


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a repository of the hub, "org/name"."""
    return bool(_HUB_ID.fullmatch(text))


def resolve(path_or_id: str | os.PathLike[str], files: Sequence[str] = (CONFIG, WEIGHTS, PREPROCESSOR)) -> Path:
    """The folder of a checkpoint: a local one, or a hub id "org/name", downloaded once into huggingface_hub's cache.

    files: names, or patterns of names, of what is downloaded.
    Raises CheckpointError for what is neither, and for a hub id that is not in the cache and cannot be downloaded.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file: give the checkpoint's folder, which holds {CONFIG} and {WEIGHTS}")
    if not isinstance(path_or_id, str) or not is_hub_id(path_or_id):
        raise CheckpointError(f"there is no folder {path}: give a checkpoint's folder, or a hub id such as org/name")
    from huggingface_hub import snapshot_download  # here, because a local folder needs no hub client

    try:
        return Path(snapshot_download(path_or_id, allow_patterns=list(files)))
    except Exception as error:  # the client fails in the types of whichever HTTP library it uses
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise CheckpointError(
            f"there is no folder {path_or_id} here, and as a hub id it could not be downloaded ({type(error).__name__}:"
            f" {reason}): download it where there is a network (hf download {path_or_id} --local-dir FOLDER)"
            " and give that folder"
        ) from error
