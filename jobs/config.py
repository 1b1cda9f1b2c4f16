"""KEY=VALUE arguments and YAML files -> a typed config, with one clear line for every mistake.

A job's config is a dataclass whose fields carry their help; the same dataclass makes --print-config, the packaged YAML
and the error that names the nearest valid key. Values of text fields are taken as they stand: a path may hold anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import PipelineError
from pipelines.storage.credentials import refuse_credentials

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One settable key: dotted name, type, default, help."""

    name: str
    type: type
    default: Any
    help: str
    optional: bool = False
    """Whether it may be left open: None, written as null or as nothing."""


def keys(schema: type) -> Iterator[Setting]:
    """Every leaf of a config dataclass, in order."""
    yield from _keys(schema(), "")


def _keys(node: Any, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            kinds = [kind for kind in get_args(hints[field.name]) if kind is not type(None)] or [hints[field.name]]
            open_ = type(None) in get_args(hints[field.name])
            yield Setting(prefix + field.name, kinds[0], value, field.metadata.get("help", ""), open_)


def load(schema: type[T], arguments: Sequence[str], file: str | None = None, positional: str = "") -> T:
    """A config from defaults, then a YAML file, then KEY=VALUE arguments, later ones winning.

    Args:
        schema: the config dataclass.
        arguments: KEY=VALUE strings, without credentials (`refuse_secrets`); one without '=' sets the key named
            `positional`.
        file: path of a YAML file.
        positional: key that a bare argument sets ('' = none may).
    Raises:
        PipelineError: unknown key (with the nearest valid one), wrong type, unreadable file.
    """
    known = {key.name: key for key in keys(schema)}
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file, known))
    for argument in arguments:
        name, equals, text = argument.partition("=")
        # A path that exists and has a '=' in it is a path, not a key nobody knows.
        bare = not equals or (positional and name not in known and os.path.exists(argument))
        if bare and positional and positional not in values:
            name, text = positional, argument
        elif not equals:
            raise PipelineError(f"{argument}: expected KEY=VALUE{_nearest(argument, known)}")
        if name not in known:
            raise PipelineError(f"{name}: no such key{_nearest(name, known)}")
        values[name] = _parse(known[name], text)
    config = OmegaConf.structured(schema)
    for name, value in values.items():
        try:
            # OmegaConf reads ${...} as a reference to another key; in a path it is only text.
            OmegaConf.update(config, name, value.replace("${", "\\${") if isinstance(value, str) else value)
        except OmegaConfBaseException as error:
            raise PipelineError(f"{name}={value}: {_type_name(known[name].type)} expected") from error
    return cast(T, OmegaConf.to_object(config))


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
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[lowered]
        return key.type(lowered.replace("_", "") if key.type is int else lowered)
    except (ValueError, KeyError) as error:
        example = " (or null)" if key.optional else f", such as {key.default}"
        raise PipelineError(f"{key.name}={text}: {_type_name(key.type)} expected{example}") from error


def _from_file(file: str, known: dict[str, Setting]) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            tree = yaml.safe_load(stream) or {}
    except OSError as error:
        raise PipelineError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        raise PipelineError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise PipelineError(f"{file}: expected keys and values")
    values: dict[str, Any] = {}
    for name, value in _leaves(tree, known):
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
    """'; did you mean X?' by whole name, else by its last part; else the list of keys."""
    matches = difflib.get_close_matches(name, known, 1, 0.6)
    if not matches:
        last = {full.rsplit(".", 1)[-1]: full for full in reversed(list(known))}
        matches = [last[found] for found in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 1, 0.6)]
    return f"; did you mean {matches[0]}?" if matches else f"; the keys are {', '.join(known)}"


def _type_name(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, kind.__name__)


def to_yaml(config: Any) -> str:
    """A config as YAML, each key with its help: a file that --config reads back."""
    lines = [f"# {(type(config).__doc__ or '').strip().splitlines()[0]}"]
    _yaml_lines(config, "", lines)
    return "\n".join(lines) + "\n"


def _yaml_lines(node: Any, indent: str, lines: list[str]) -> None:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:")
            _yaml_lines(value, indent + "  ", lines)
        else:
            text = yaml.safe_dump(value, allow_unicode=True, width=10**6).removesuffix("\n...\n").rstrip("\n")
            lines.append(f"{indent}{field.name}: {text}".ljust(40) + f" # {field.metadata.get('help', '')}")
