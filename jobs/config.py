"""KEY=VALUE arguments and YAML files -> a typed config, with one clear line for every mistake.

A job's config is a dataclass of settings (pipelines.schema): the keys, --print-config and the error that names the
nearest valid key come from it. Values of text settings are taken as they stand: a path may hold anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import yaml

from jobs import presets
from jobs.run_files import settings_of_run
from pipelines.errors import PipelineError
from pipelines.networks.find import find_network
from pipelines.schema import Setting, ordered_fields, settings_of
from pipelines.storage.credentials import refuse_credentials
from pipelines.storage.location import Location

T = TypeVar("T")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def load(schema: type[T], arguments: Sequence[str], file: str | None = None, positional: str = "") -> T:
    """A config from defaults, then a YAML file, then KEY=VALUE arguments; later ones win.

    OmegaConf holds the values: types and words are checked here, ranges by pipelines.schema.check.

    Args:
        schema: the config dataclass.
        arguments: KEY=VALUE strings, without credentials (`refuse_secrets`); one without '=' sets the key named
            `positional`.
        file: path of a YAML file.
        positional: key that a bare argument sets ('' = none may).
    Raises:
        PipelineError: unknown key (with the nearest valid one), wrong type, unreadable file.
    """
    known = {key.name: key for key in settings_of(schema())}
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file, known, schema))
    for argument in arguments:
        name, equals, text = argument.partition("=")
        # A path that exists and has a '=' in it is a path, not an unknown key.
        bare = not equals or (positional and name not in known and os.path.exists(argument))
        if bare and positional and positional not in values:
            name, text = positional, argument
        elif not equals:
            raise PipelineError(f"{argument}: expected KEY=VALUE{_nearest(argument, known)}")
        if name not in known:
            raise PipelineError(f"{name}: no such key{_nearest(name, known)}")
        values[name] = _parse(known[name], text)
    values = presets.filled(schema, values)
    from omegaconf import OmegaConf  # here, since --help does without
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(schema)
    for name, value in values.items():
        try:
            # OmegaConf reads ${...} as a reference to another key; in a path it is only text.
            OmegaConf.update(tree, name, value.replace("${", "\\${") if isinstance(value, str) else value)
        except OmegaConfBaseException as error:
            raise PipelineError(f"{name}={value}: must be {known[name].allowed}") from error
    return cast(T, OmegaConf.to_object(tree))


def with_absolute_places(config: T) -> T:
    """The same config, its relative paths made absolute: other processes of the job have other working folders.

    A run, or a step of it, becomes the folder of its network. What is no path here is left as it is: a hub id, or the
    name of a reconstructor. Raises PipelineError for a place that holds no network of the kind that is wanted.
    """
    copy = _sections_copied(config)
    for key in settings_of(config):
        if key.place != "no" and key.value:
            *sections, last = key.name.split(".")
            setattr(functools.reduce(getattr, sections, copy), last, _absolute(key))
    return copy


def _absolute(key: Setting) -> str:
    """The place that a setting names, as an absolute path or a URL."""
    if key.place == "locations" and not os.path.exists(os.path.expanduser(key.value)):
        return ",".join(str(Location(part)) for part in key.value.split(",") if part)
    if key.place in ("location", "locations"):
        return str(Location(key.value))
    if key.value == "canvas":
        return str(key.value)
    if key.place in ("policy", "reconstructor"):
        return find_network(key.value, key.place, key.name)
    return str(Location(key.value)) if os.path.exists(os.path.expanduser(key.value)) else str(key.value)


def _sections_copied(config: T) -> T:
    """A copy of a config that shares no dataclass with it."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    inner = {
        each.name: _sections_copied(value)
        for each in dataclasses.fields(config)
        if dataclasses.is_dataclass(value := getattr(config, each.name))
    }
    return dataclasses.replace(config, **inner)


def refuse_secrets(word: str) -> None:
    """Raise PipelineError, in one line that does not repeat them, if a word of a command line holds credentials."""
    name, equals, text = word.partition("=")
    if equals and "://" not in name:
        refuse_credentials(text, name)
    else:
        refuse_credentials(word)


def _parse(key: Setting, text: str) -> Any:
    if key.type is str:
        return text
    lowered = text.strip().lower()
    if key.optional and lowered in ("", "null"):
        return None
    try:
        if key.type is bool:
            return _BOOLEANS[lowered]
        return key.type(lowered.replace("_", "") if key.type is int else lowered)
    except (ValueError, KeyError) as error:
        example = " (or null)" if key.optional else f", such as {key.value}"
        raise PipelineError(f"{key.name}={text}: {type_name(key.type)} expected{example}") from error


def type_name(kind: type) -> str:
    """What a type is called in messages and reference pages."""
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _from_file(file: str, known: dict[str, Setting], schema: type) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            tree = yaml.safe_load(stream) or {}
    except OSError as error:
        raise PipelineError(
            f"--config {file}: {error.strerror}; give a YAML file of keys, such as --print-config prints"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not text, a date that does not exist
        raise PipelineError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise PipelineError(f"{file}: expected keys and values")
    values: dict[str, Any] = {}
    for name, value in _leaves(settings_of_run(tree, file, schema), known):
        if name not in known:
            raise PipelineError(f"{file}: {name}: no such key{_nearest(name, known)}")
        refuse_credentials(str(value), name)
        values[name] = _parse(known[name], "" if value is None else str(value))
    return values


def _leaves(tree: dict[Any, Any], known: dict[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict) and full not in known:
            yield from _leaves(value, known, f"{full}.")
        else:
            yield full, value


def _nearest(name: str, known: dict[str, Setting]) -> str:
    """'; did you mean X?' by the whole name, else by its last part; else the list of keys."""
    matches = difflib.get_close_matches(name, known, 1, 0.6)
    if not matches:
        last = {full.rsplit(".", 1)[-1]: full for full in reversed(list(known))}
        matches = [last[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 1, 0.6)]
    return f"; did you mean {matches[0]}?" if matches else f"; the keys are {', '.join(known)}"


def to_yaml(config: Any) -> str:
    """A config as YAML, each key with its help: a file that --config reads back."""
    lines = [f"# {(type(config).__doc__ or '').strip().splitlines()[0]}"]
    _yaml_lines(config, "", lines)
    return "\n".join(lines) + "\n"


def _yaml_lines(config: Any, indent: str, lines: list[str]) -> None:
    for field in ordered_fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:")
            _yaml_lines(value, indent + "  ", lines)
        else:
            text = yaml.safe_dump(value, allow_unicode=True, width=10**6).removesuffix("\n...\n").rstrip("\n")
            lines.append(f"{indent}{field.name}: {text}".ljust(40) + f" # {field.metadata.get('help', '')}")
