"""A run's config.yaml as a file for --config: it goes on with the run that it lies in."""

from __future__ import annotations

import os
from typing import Any

from pipelines.errors import PipelineError

_JOBS = {
    "PolicyTrainConfig": "train policy",
    "ReconstructorTrainConfig": "train reconstructor",
    "EncoderTrainConfig": "train encoder",
    "RLConfig": "rl",
}


def settings_of_run(tree: dict[str, Any], file: str, schema: type) -> dict[str, Any]:
    """The settings in a config file's tree: of a run's config.yaml those of the run, of any other file the tree itself.

    The run is the folder that the file lies in, wherever it was begun.
    Raises PipelineError when the run is of another job than `schema`'s.
    """
    kind, settings = tree.get("kind"), tree.get("config")
    if not isinstance(settings, dict) or kind not in _JOBS:
        return tree
    if kind != next((each.__name__ for each in schema.__mro__ if each.__name__ in _JOBS), ""):
        raise PipelineError(
            f"{file}: is of a run of another job; go on with it by autogaze {_JOBS[kind]} --config {file}"
        )
    return settings | {"run": os.path.dirname(os.path.abspath(file))}
