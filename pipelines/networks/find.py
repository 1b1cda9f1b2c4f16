"""Finds the network that a user names: its folder, the run that trains it, a step of that run, or an id of the hub.

Every key that takes a policy, a reconstructor or an encoder takes the same names, since all of them ask here. Of a run
it is the network of the checkpoint that `checkpoints/latest` names at this moment. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from autogaze import hub
from autogaze.hub import CheckpointError, is_hub_id
from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.storage.location import Location

Kind = Literal["policy", "reconstructor", "encoder"]
_CONFIG, _LATEST, _BEST, _CHECKPOINTS = "config.json", "latest", "best", "checkpoints"
# Keys that only a config.json of this kind has, VideoMAE and refiner. An encoder's is Hugging Face's, of many families.
_MARKS: dict[Kind, tuple[str, ...]] = {
    "policy": ("gaze_model_config",),
    "reconstructor": ("decoder_hidden_size", "deep_width"),
}
_MADE_BY: dict[Kind, str] = {
    "policy": "give a policy: a folder in the reference's format, or a run of autogaze train policy or autogaze rl",
    "reconstructor": "give a reconstructor: canvas, its folder or file, or a run of autogaze train reconstructor",
    "encoder": "give a vision transformer: its folder in Hugging Face's format, a hub id, or a run that trains one",
}


def find_network(place: str, kind: Kind, key: str) -> str:
    """Where the network is: a folder, a file or a URL. What is no place here, such as a hub id, is returned as it is.

    Args:
        place: one of
            - the network's folder, which holds config.json, or a file of weights;
            - a run's folder, its checkpoints/, or checkpoints/latest: the newest checkpoint;
            - checkpoints/best: the best one, of a run that keeps it;
            - the folder of a step, such as checkpoints/step-000500.
        key: the setting that names it, for messages.
    Raises:
        PipelineError: the place holds a network of the other kind, a run without a checkpoint, or no network at all.
    """
    try:
        there = Location(place)
        if there.is_local and not os.path.exists(there):
            return place
        return str(_network(there, kind))
    except _NotFound as problem:
        raise PipelineError(f"{key}={place}: {problem}") from None


def require_network(place: str, kind: Kind, key: str) -> None:
    """Raise PipelineError as `find_network` does, and for what is neither a place nor a hub id.

    So a mistyped path is refused at once; opening the network says the same only after torch has loaded.
    """
    found = find_network(place, kind, key)
    is_id = kind != "reconstructor" and is_hub_id(found)
    if "://" not in found and not is_id and not os.path.exists(os.path.expanduser(found)):
        raise PipelineError(f"{key}={place}: is not there; {_MADE_BY[kind]}")


@contextmanager
def on_disk(place: str) -> Iterator[str]:
    """A network's folder as a local path: the place itself, or a copy of a remote one while the context lasts.

    Raises PipelineError when it cannot be read.
    """
    if "://" not in place or Location(place).is_local:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="autogaze-network-") as scratch:
        for entry in store.list_objects(place):
            if "/" not in (name := entry.url[len(Location(place)) + 1 :]):
                store.fetch(entry.url, os.path.join(scratch, name))
        yield scratch


def find_beside(place: str, name: str, most: int) -> tuple[str, bytes | None]:
    """A small file of this name in a folder, such as a network's: where it is, and its bytes; None: it is not there.

    place: the folder, the file itself (which ends as `name` does), or a hub id, of which the file is downloaded.
    most: bytes, of which no more are read. Raises PipelineError when it cannot be read.
    """
    if is_hub_id(place) and not os.path.exists(os.path.expanduser(place)):
        try:
            place = str(hub.resolve(place, [name]))
        except CheckpointError as error:
            raise PipelineError(str(error)) from error
    where = Location(place)
    if os.path.splitext(where)[1] != os.path.splitext(name)[1]:
        where = where / name
    try:
        return str(where), store.read(where, 0, most)
    except (FileNotFoundError, NotADirectoryError):
        return str(where), None


class _NotFound(Exception):
    """Why a place holds no network of the kind that is wanted."""


def _network(place: Location, kind: Kind) -> Location:
    if place.name in (_LATEST, _BEST) and store.exists(place):
        return _of_step(_named(place.parent, place.name), kind)
    if place.is_local and os.path.isfile(place):
        return place
    if store.exists(place / _CONFIG):
        _require_kind(place / _CONFIG, kind)
        return place
    if store.exists(place / _CHECKPOINTS / _LATEST):
        return _of_step(_newest(place / _CHECKPOINTS), kind)
    if store.exists(place / _LATEST):
        return _of_step(_newest(place), kind)
    if store.exists(place / "state.json"):
        return _of_step(place, kind)
    if store.exists(place / "config.yaml"):
        raise _NotFound("this run has no checkpoint yet; wait for its first, or give another")
    if not place.is_local or not any(name.endswith((".safetensors", ".pt")) for name in os.listdir(place)):
        raise _NotFound(f"holds no network, checkpoint or run (no {_CONFIG} and no {_CHECKPOINTS}/{_LATEST})")
    return place  # weights without a config.json: the loader knows what it can do with them


def _newest(checkpoints: Location) -> Location:
    """The folder of the step that `latest` names."""
    return _named(checkpoints, _LATEST)


def _named(checkpoints: Location, name: str) -> Location:
    """The folder of the step that `latest` or `best` names: with its first word, since `best` says more."""
    return checkpoints / store.read(checkpoints / name).decode(errors="replace").strip().partition(" ")[0]


def _of_step(step: Location, kind: Kind) -> Location:
    if store.exists(step / kind / _CONFIG):
        _require_kind(step / kind / _CONFIG, kind)
        return step / kind
    for other in _MADE_BY:
        if store.exists(step / other / _CONFIG):
            raise _NotFound(f"is a run that trains {_a(other)}; {_MADE_BY[kind]}")
    raise _NotFound(f"{step} holds no {kind}/{_CONFIG}; its checkpoint is damaged, give an older step's folder")


def _require_kind(config: Location, kind: Kind) -> None:
    try:
        document = json.loads(store.read(config))
    except ValueError:
        return  # the loader says what is wrong with it
    if not isinstance(document, dict) or not set(document).isdisjoint(_MARKS.get(kind, ())):
        return
    for other, marks in _MARKS.items():
        if not set(document).isdisjoint(marks):
            raise _NotFound(f"is {_a(other)}; {_MADE_BY[kind]}")


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind == "encoder" else f"a {kind}"
