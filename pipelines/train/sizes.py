"""A network that begins from a checkpoint keeps the checkpoint's sizes: what the settings say of them must agree."""

from __future__ import annotations

from typing import Any

from pipelines.errors import PipelineError


def require_own_sizes(init: str, section: str, given: Any, own: object) -> None:
    """Raise PipelineError, naming the key, for a size that was set and is not the checkpoint's.

    Args:
        init: the checkpoint.
        section: of the keys: "policy" or "model".
        given: the config's sizes, a dataclass; one that has its default value was not set.
        own: the checkpoint's config, with attributes of the same names.
    """
    default = type(given)()
    for name, value in vars(given).items():
        if value != getattr(default, name) and value != getattr(own, name):
            raise PipelineError(
                f"{section}.{name}={value}: init={init} has {getattr(own, name)}, and a checkpoint keeps its sizes; "
                f"leave {section}.{name} out, or leave init out for a network of other sizes"
            )


def own_sizes(section: Any, own: object) -> dict[str, Any]:
    """The sizes of a network by the names of the settings, for the record of a run that began from a checkpoint."""
    return {name: getattr(own, name) for name in vars(section)}
