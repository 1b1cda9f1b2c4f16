"""preset=small: settings with which a training job finishes on a laptop's CPU in minutes.

A preset gives values to keys that the command line and the file leave open; what they name wins. docs/training.md and
docs/rl.md say how long the jobs take with it and what comes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import PipelineError

_ANY: dict[str, Any] = {
    "micro_batch": 4,
    "loader.val_fraction": 0.1,
    "optimizer.lr": 1e-3,
    "optimizer.schedule": "linear_w_warmup",
    "optimizer.clip_norm": 1.0,
    "val_clips": 8,
    "every.validate": 50,
    "every.checkpoint": 50,
}
_POLICY_SIZES: dict[str, Any] = {
    "policy.hidden_size": 96,
    "policy.num_layers": 2,
    "policy.num_heads": 3,
    "policy.intermediate_size": 192,
}
_RECONSTRUCTOR_SIZES: dict[str, Any] = {
    "model.hidden_size": 192,
    "model.num_layers": 4,
    "model.num_heads": 3,
    "model.decoder_hidden_size": 128,
    "model.decoder_num_layers": 2,
    "model.decoder_num_heads": 4,
}
SMALL_POLICY = _ANY | _POLICY_SIZES | {"steps": 100, "global_batch": 8}
SMALL_RECONSTRUCTOR = _ANY | _RECONSTRUCTOR_SIZES | {"steps": 200, "global_batch": 8, "max_ratio": 0.15}
SMALL_REFINER = _ANY | {"steps": 200, "global_batch": 8}
SMALL_ENCODER = _ANY | {
    "steps": 40,
    "global_batch": 4,
    "micro_batch": 1,
    "frames": 2,
    "max_ratio": 0.25,
    "optimizer.lr": 3e-6,
    "optimizer.min_lr": 3e-7,
    "every.validate": 20,
    "every.checkpoint": 20,
}
SMALL_RL = (
    _ANY
    | _POLICY_SIZES
    | {
        "steps": 10,
        "global_batch": 4,
        "micro_batch": 1,
        "optimizer.lr": 1e-4,
        "sample.group": 8,
        "sample.strategy": "ratio",
        "sample.temperature": 0.7,
        "sample.min_temperature": 0.3,
        "objective.advantage": "deviation",
        "objective.frames": 3,
        "max_ratio": 0.02,
        "every.validate": 5,
        "every.checkpoint": 5,
    }
)


def filled(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of keys, with those of the preset that they name beneath them. A schema without presets has none.

    A network that begins from a checkpoint keeps its sizes, so then the preset gives none.
    Raises PipelineError for a preset that is not there.
    """
    presets: dict[str, dict[str, Any]] = getattr(schema, "presets", {})
    name = values.get("preset")
    if not presets or not name:
        return dict(values)
    if name not in presets:
        raise PipelineError(f"preset={name}: must be one of {', '.join(each for each in presets if ' ' not in each)}")
    # A job that trains networks of several kinds has a preset for each: "small refiner" beside "small".
    given = presets.get(f"{name} {values.get('kind')}", presets[name]).items()
    if values.get("init"):
        given = {key: value for key, value in given if not key.startswith(("policy.", "model.", "refiner."))}.items()
    return dict(given) | dict(values)
