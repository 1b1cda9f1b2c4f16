"""KEY=VALUE arguments and YAML files -> a typed config, with one clear line for every mistake.

A job's config is a dataclass of settings (pipelines.schema): the keys, --print-config and the error that names the
nearest valid key come from it. The text of a value reaches its setting as it was written, in both: what it means is for
the setting's type to say, so that a folder may be called 2024_01_01, 0123, no or ${x}.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import Any, TypeVar, cast

import yaml

from jobs import presets
from jobs.run_files import settings_of_run
from pipelines.errors import PipelineError
from pipelines.networks.find import find_network
from pipelines.schema import Setting, ordered_fields, settings_of
from pipelines.storage.credentials import refuse_credentials
from pipelines.storage.location import Location, places_in

T = TypeVar("T")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KEY = re.compile(r"[\w.]+")
_YAML_FLOAT = re.compile(r"^([+-]?)\.(inf|nan)$")  # .inf and .nan are YAML's names for what Python calls inf and nan
_NULL = "tag:yaml.org,2002:null"


def load(schema: type[T], arguments: Sequence[str], file: str | None = None, positional: str = "") -> T:
    """A config from defaults, then a YAML file, then KEY=VALUE arguments; later ones win.

    Types and words are checked here, ranges by pipelines.schema.check.

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
        # A path with a '=' in it is a path, not an unknown key.
        a_path = name not in known and (not _KEY.fullmatch(name) or os.path.exists(argument))
        bare = not equals or (positional and a_path)
        if bare and positional and positional not in values:
            name, text = positional, argument
        elif not equals:
            raise PipelineError(f"{argument}: expected KEY=VALUE{_without_key(argument, arguments, known, values)}")
        if name not in known:
            raise PipelineError(f"{name}: no such key{_nearest(name, known)}")
        values[name] = _parse(known[name], text)
    return _filled(schema, presets.filled(schema, values))


def _filled(schema: type[T], values: dict[str, Any]) -> T:
    """The config of these values by key, over the defaults; OmegaConf holds them, and checks their types once more."""
    from omegaconf import OmegaConf  # here, since --help does without

    tree = OmegaConf.structured(schema)
    # To OmegaConf ${...} is a reference to another key and ??? a value that is missing; in a path they are only text.
    literal = {name: text for name, text in values.items() if isinstance(text, str) and ("${" in text or text == "???")}
    for name in values.keys() - literal.keys():
        OmegaConf.update(tree, name, values[name])
    config = cast(T, OmegaConf.to_object(tree))
    for name, text in literal.items():
        _set(config, name, text)
    return config


def _set(config: Any, name: str, value: Any) -> None:
    """Set a key by its dotted name."""
    *sections, last = name.split(".")
    setattr(functools.reduce(getattr, sections, config), last, value)


def with_absolute_places(config: T) -> T:
    """The same config, its relative paths made absolute: other processes of the job have other working folders.

    A run, or a step of it, becomes the folder of its network. What is no path here is left as it is: a hub id, or the
    name of a reconstructor. Raises PipelineError for a place that holds no network of the kind that is wanted.
    """
    copy = _sections_copied(config)
    for key in settings_of(config):
        if key.place != "no" and key.value:
            _set(copy, key.name, _absolute(key))
    return copy


def _absolute(key: Setting) -> str:
    """The place that a setting names, as an absolute path or a URL."""
    if key.place == "location":
        return str(Location(key.value))
    if key.place == "locations":
        return ",".join(map(str, places_in(key.value)))
    if key.place == "input":
        from pipelines.corpus.inputs import normal_input  # here, not above: most commands have no such key

        return normal_input(key.value)
    if key.value == "canvas":
        return str(key.value)
    if key.place in ("policy", "reconstructor", "encoder"):
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
    if "\0" in text:
        raise PipelineError(f"{key.name}: holds a NUL character, which no path or word may")
    if key.choices and text not in key.choices:
        raise PipelineError(f"{key.name}={text}: must be {key.allowed}")
    if key.type is str:
        return text
    lowered = text.strip().lower()
    if key.optional and lowered in ("", "null", "~"):
        return None
    try:
        if key.type is bool:
            return _BOOLEANS[lowered]
        if key.type is int:
            return int(lowered.replace("_", ""))
        return float(_YAML_FLOAT.sub(r"\1\2", lowered))
    except (ValueError, KeyError) as error:
        example = " (or null)" if key.optional else f", such as {key.value}"
        raise PipelineError(f"{key.name}={text}: {type_name(key.type)} expected{example}") from error


def type_name(kind: type) -> str:
    """What a type is called in messages and reference pages."""
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


class _AsWritten(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """YAML whose values keep their text: PyYAML makes a number of 2024_01_01, another of 0123, and False of no."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        return _Null(node.value) if node.tag == _NULL else node.value

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        given = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for number, key in enumerate(given) if key in given[:number]]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return node


class _Null(str):
    """What YAML reads as nothing: nothing at all, ~ or null without quotes."""


def _from_file(file: str, known: dict[str, Setting], schema: type) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            tree = _AsWritten(stream).get_single_data() or {}
        leaves = list(_leaves(settings_of_run(tree, file, schema), known)) if isinstance(tree, dict) else None
    except OSError as error:
        raise PipelineError(
            f"--config {file}: {error.strerror}; give a YAML file of keys, such as --print-config prints"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not text
        raise PipelineError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise PipelineError(f"{file}: not YAML: nested too deeply, or in itself") from None
    if leaves is None:
        raise PipelineError(f"{file}: expected keys and values")
    values: dict[str, Any] = {}
    for name, value in leaves:
        if name not in known:
            raise PipelineError(f"{file}: {name}: no such key{_nearest(name, known)}")
        refuse_credentials(str(value), name)
        values[name] = _parse(known[name], _text(known[name], value))
    return values


def _text(key: Setting, value: Any) -> str:
    """The text of a value in a file. Raises PipelineError for several values, and for what may be nothing or a word."""
    if not isinstance(value, str):
        raise PipelineError(
            f"{key.name}: {type_name(key.type)} expected, not {'keys' if isinstance(value, dict) else 'a list'}"
        )
    if isinstance(value, _Null) and value and key.type is str:
        raise PipelineError(f"{key.name}: {value}: is that a word, or nothing? write '{value}' or '', with the quotes")
    return value


def _leaves(tree: dict[Any, Any], known: dict[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict) and full not in known:
            yield from _leaves(value, known, f"{full}.")
        else:
            yield full, value


def _without_key(word: str, arguments: Sequence[str], known: dict[str, Setting], values: dict[str, Any]) -> str:
    """What was meant by a word without '=': a key, if it looks like one; else the value of a key that must be given.

    values: of the words before it.
    """
    if near := difflib.get_close_matches(word, known, 1, 0.8):
        return f"; did you mean {near[0]}=VALUE?"
    given = {name for name, value in values.items() if value != ""} | {
        name for name, equals, text in (argument.partition("=") for argument in arguments) if text
    }
    missing = [key.name for key in known.values() if key.required and key.name not in given]
    bare = [argument for argument in arguments[arguments.index(word) :] if "=" not in argument]
    pairs = [f"{name}={quote(text)}" for name, text in zip(missing, bare, strict=False)]
    return f"; did you mean {' '.join(pairs)}?" if 0 < len(bare) == len(pairs) else _nearest(word, known)


def _nearest(name: str, known: dict[str, Setting]) -> str:
    """'; did you mean X?' by the whole name, else by its last part; else the list of keys."""
    matches = difflib.get_close_matches(name, known, 1, 0.6)
    if not matches:
        last = {full.rsplit(".", 1)[-1]: full for full in reversed(list(known))}
        matches = [last[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 1, 0.6)]
    return f"; did you mean {matches[0]}?" if matches else f"; the keys are {', '.join(known)}"


def to_yaml(config: Any, encoding: str = "utf-8") -> str:
    """A config as YAML, each key with its help: a file that --config reads back.

    encoding: of the stream that it is written to; what that does not have is escaped.
    """
    lines = [f"# {(type(config).__doc__ or '').strip().splitlines()[0]}"]
    _yaml_lines(config, "", encoding, lines)
    return "\n".join(lines) + "\n"


def _yaml_lines(config: Any, indent: str, encoding: str, lines: list[str]) -> None:
    for field in ordered_fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:")
            _yaml_lines(value, indent + "  ", encoding, lines)
        else:
            text = f"{indent}{field.name}: {_yaml_scalar(value, encoding)}"
            lines.append(text.ljust(40) + f" # {field.metadata.get('help', '')}")


def _yaml_scalar(value: Any, encoding: str) -> str:
    try:
        # YAML ends a line at these as well, and PyYAML writes them as they are.
        as_it_is = not {"\x85", "\u2028", "\u2029"} & set(str(value)) and bool(str(value).encode(encoding))
    except UnicodeEncodeError:
        as_it_is = False
    text: str = yaml.safe_dump(value, allow_unicode=as_it_is, width=10**6)
    return text.removesuffix("\n...\n").rstrip("\n")
