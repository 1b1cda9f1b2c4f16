"""Opens the network that a setting names, wherever it lies. Errors are one line that begins with the setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.errors import PipelineError
from pipelines.networks.find import find_network, on_disk

if TYPE_CHECKING:
    from autogaze.model import AutoGaze
    from autogaze.reconstruction.base import Reconstructor


def open_policy(place: str, key: str, **options: Any) -> AutoGaze:
    """The policy that the setting `key` names: a run, a step of it, a folder here or on s3://, or a hub id.

    options: of AutoGaze.from_pretrained.
    Raises PipelineError when there is none or it does not load, ValueError for options that do not fit.
    """
    from autogaze.model import AutoGaze, CheckpointError

    found = find_network(place, "policy", key)
    try:
        with on_disk(found) as folder:
            return AutoGaze.from_pretrained(folder, **options)
    except CheckpointError as error:
        raise PipelineError(f"{key}={found}: {error}") from error


def open_reconstructor(place: str, key: str, **options: Any) -> Reconstructor:
    """The reconstructor that the setting `key` names: canvas; a run or its step, a folder here or on s3://, a file.

    options: of autogaze.reconstruction.load.
    Raises PipelineError when there is none, it does not load, or has other patches than those wanted.
    """
    from autogaze import reconstruction

    found = place if place == "canvas" else find_network(place, "reconstructor", key)
    try:
        with on_disk(found) as folder:
            return reconstruction.load(folder, **options)
    except ValueError as error:
        raise PipelineError(f"{key}={found}: {error}") from error
